# A worker: everything, with torch. Build it from the project's folder:
#   docker build -f docker/worker.Dockerfile -t resurge-worker:0.1.0 .
# Pin the digest as head.Dockerfile says.
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN python -m venv /opt/resurge
WORKDIR /src
COPY constraints.txt ./
# On x86-64 Linux the default index has the CUDA build of this version, with CUDA's libraries as
# wheels: the base image needs none. For another CUDA, or none, name an index:
#   --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX_URL=
RUN /opt/resurge/bin/pip install --no-cache-dir -c constraints.txt \
    ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' constraints.txt)"
COPY docker/requirements-worker.txt ./
RUN /opt/resurge/bin/pip install --no-cache-dir -c constraints.txt -r requirements-worker.txt
COPY pyproject.toml README.md LICENSE ./
COPY orchestrator orchestrator
COPY workers workers
RUN /opt/resurge/bin/pip install --no-cache-dir --no-deps .

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG UID=1000
LABEL org.opencontainers.image.title="resurge-worker" \
      org.opencontainers.image.description="Resurge: a Ray worker with torch" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# As in head.Dockerfile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid "${UID}" --create-home resurge \
    && install -d -o resurge /home/resurge/.resurge /home/resurge/.cache
COPY --from=build /opt/resurge /opt/resurge
COPY docker/entrypoint.sh docker/health.py /opt/resurge/share/
# On SIGTERM Ray drains the node for that long, which is a worker's time to write its checkpoint;
# the container's stop_grace_period must be longer.
ENV PATH=/opt/resurge/bin:$PATH \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=60 \
    RAY_USAGE_STATS_ENABLED=0 \
    RESURGE_HOME=/home/resurge/.resurge
USER ${UID}
WORKDIR /home/resurge
ENTRYPOINT ["tini", "--", "/opt/resurge/share/entrypoint.sh"]
# Ray itself labels a node with ray.io/accelerator-type (H100, A100, …); more labels are
# --labels=name=value. Another head is another --address.
CMD ["ray", "start", "--address=head:6379", "--object-store-memory=200000000", "--block"]
HEALTHCHECK --interval=10s --timeout=15s --start-period=60s --retries=6 \
    CMD ["python", "/opt/resurge/share/health.py", "http://127.0.0.1:52365/api/local_raylet_healthz"]
