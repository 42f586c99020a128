# The head: plans, schedules, submits; and, with another command, MLflow's server and
# optuna-dashboard. It has no torch. Build it from the project's folder:
#   docker build -f docker/head.Dockerfile -t resurge-head:0.1.0 .
# The tag is pinned. To pin the very bytes, add the digest that
# `docker buildx imagetools inspect python:3.11.15-slim-bookworm` prints: FROM …@sha256:….
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN python -m venv /opt/resurge
WORKDIR /src
COPY constraints.txt docker/requirements-head.txt ./
RUN /opt/resurge/bin/pip install --no-cache-dir -c constraints.txt -r requirements-head.txt
COPY pyproject.toml README.md LICENSE ./
COPY orchestrator orchestrator
COPY workers workers
# --no-deps: the package itself asks for torch.
RUN /opt/resurge/bin/pip install --no-cache-dir --no-deps .

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG UID=1000
LABEL org.opencontainers.image.title="resurge-head" \
      org.opencontainers.image.description="Resurge: the Ray head, without torch" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# tini reaps what Ray's processes leave behind; wget is what KubeRay's probes call.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid "${UID}" --create-home resurge \
    && install -d -o resurge /home/resurge/.resurge
COPY --from=build /opt/resurge /opt/resurge
COPY docker/entrypoint.sh docker/health.py docker/prepare.py docker/mlflow-auth.ini /opt/resurge/share/
ENV PATH=/opt/resurge/bin:$PATH \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RESURGE_HOME=/home/resurge/.resurge
USER ${UID}
WORKDIR /home/resurge
EXPOSE 6379 8265
ENTRYPOINT ["tini", "--", "/opt/resurge/share/entrypoint.sh"]
# 0.0.0.0 is the container's: what reaches it is the compose file's, or the Service's, to say.
# No CPUs and no GPUs: the head runs the drivers of sweeps, never their tasks.
CMD ["ray", "start", "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=0", "--num-gpus=0", "--object-store-memory=200000000", "--block"]
HEALTHCHECK --interval=10s --timeout=15s --start-period=60s --retries=6 \
    CMD ["python", "/opt/resurge/share/health.py", "http://127.0.0.1:8265/api/gcs_healthz"]
