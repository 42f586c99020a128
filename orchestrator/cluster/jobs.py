"""A cluster's jobs, through Ray's Jobs API: submit, watch, stop. Imports ray when it connects."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.clusters_file import Cluster
from orchestrator.cluster.shipment import STOP_WAIT_S, Shipment, runtime_env
from orchestrator.core.errors import ResurgeError
from orchestrator.core.redact import redact

SWEEP, CONTENT, ATTEMPT = "resurge.sweep", "resurge.content", "resurge.attempt"
CONNECT_TIMEOUT_S = 10.0
LOOK_AGAIN_S = 1.0
# Ray lets these stand before the address that it is given: the token would go elsewhere.
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


class ClusterAwayError(ResurgeError):
    """The cluster's head does not answer."""


@dataclass(frozen=True)
class SweepJob:
    """One attempt at a sweep. `content` is the digest of what was asked for.

    `status` is Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; `message` says more of it.
    """

    id: str
    sweep: str
    attempt: int
    content: str
    status: str
    message: str
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        """Whether nothing happens any more."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class Jobs:
    """The jobs of a cluster.

    Args:
        cluster: which one.
        warn: told of a token's file that others can read.

    Raises:
        ClusterAwayError: from every method, if the head does not answer.
        ResurgeError: from every method, if it refuses, with what to do.
    """

    def __init__(self, cluster: Cluster, warn: Callable[[str], None]) -> None:
        self.cluster = cluster
        self._token = cluster.token(warn)
        self._headers = {"Authorization": f"Bearer {self._token.value}"} if self._token else {}
        self._knock()
        with self._asking():
            self._client = _client(cluster.entry.address, self._headers)

    def of(self, sweep: str) -> list[SweepJob]:
        """Every attempt at a sweep that the cluster remembers, the first one first."""
        with self._asking():
            jobs = [
                _sweep_job(job)
                for job in self._client.list_jobs()
                # Others' jobs have no such words, and what a driver started itself has no id.
                if job.submission_id
                and SWEEP in (job.metadata or {})
                and job.metadata.get(ATTEMPT, "").isdigit()
            ]
        return sorted((job for job in jobs if job.sweep == sweep), key=lambda job: job.attempt)

    def latest(self, sweep: str) -> SweepJob | None:
        """The last attempt at a sweep; None if the cluster remembers none."""
        return next(reversed(self.of(sweep)), None)

    def one(self, job_id: str) -> SweepJob:
        """A job as it is now."""
        with self._asking():
            return _sweep_job(self._client.get_job_info(job_id))

    def submit(self, shipment: Shipment, attempt: int) -> str:
        """Send what the sweep needs and start it; the job's id, for example `quickstart-1`."""
        job_id = f"{shipment.sweep}-{attempt}"
        metadata = {SWEEP: shipment.sweep, CONTENT: shipment.content, ATTEMPT: str(attempt)}
        with self._asking():
            try:
                self._client.submit_job(
                    entrypoint=shipment.entrypoint,
                    submission_id=job_id,
                    runtime_env=runtime_env(shipment),
                    metadata=metadata,
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                raise ResurgeError(
                    f"somebody else submitted {job_id} at the same moment: "
                    f"resurge status {shipment.sweep} --cluster {self.cluster.name}"
                ) from error
        return job_id

    def log(self, job_id: str) -> str:
        """All that the job has printed, without credentials."""
        with self._asking():
            return self._clean(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What the job has printed and prints, piece by piece, until it is over."""
        stream = self._client.tail_job_logs(job_id)

        async def piece() -> str | None:
            found: str | None = await anext(stream, None)
            return found

        # The runner ends the connection in order, also when a Ctrl-C comes in its middle.
        with self._asking(), asyncio.Runner() as runner:
            while (text := runner.run(piece())) is not None:
                yield self._clean(text)

    def wait(self, job_id: str, timeout_s: float) -> SweepJob:
        """The job once it is over, or as it is when the time is."""
        end_s = time.monotonic() + timeout_s
        while not (job := self.one(job_id)).is_over and time.monotonic() < end_s:
            time.sleep(LOOK_AGAIN_S)
        return job

    def stop(self, job_id: str) -> SweepJob:
        """Ask the job to end, and wait until it has, or was made to."""
        with self._asking():
            self._client.stop_job(job_id)
        return self.wait(job_id, STOP_WAIT_S + CONNECT_TIMEOUT_S)

    def _knock(self) -> None:
        """Find out quickly who answers and whether the token is right: Ray's own client waits for a
        silent address as long as the system does.
        """
        url = f"{self.cluster.entry.address}/api/version"
        request = urllib.request.Request(url, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as answer:
                json.load(answer)["ray_version"]
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise self._refused() from None
            raise self._away(f"it answers HTTP {error.code}") from None
        except OSError as error:
            raise self._away(str(getattr(error, "reason", error))) from None
        except (ValueError, KeyError, TypeError):
            raise self._away("what answers there is not Ray's dashboard") from None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Ray's many errors as ours."""
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise self._refused() from None
        except (OSError, ClientError) as error:
            raise self._away(str(error)) from error
        except RuntimeError as error:
            # The first and the last line: between them stands the server's traceback.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            short = " … ".join(dict.fromkeys((lines[0], lines[-1])))
            raise ResurgeError(f"cluster {self.cluster} answers: {self._clean(short)}") from error

    def _refused(self) -> ResurgeError:
        if self._token is None:
            return ResurgeError(
                f"cluster {self.cluster} wants a token and there is none here. Put it into a file "
                "of mode 600 and name that in the cluster's `token_file`, in RAY_AUTH_TOKEN_PATH, "
                "or as ~/.ray/auth_token; who runs the head has it (`ray get-auth-token`)"
            )
        return ResurgeError(
            f"cluster {self.cluster} refuses the token from {self._token.origin}. Ask who runs the "
            "head for the present one (`ray get-auth-token` there prints it)"
        )

    def _away(self, why: str) -> ClusterAwayError:
        return ClusterAwayError(
            f"cluster {self.cluster} cannot be reached: {self._clean(why)}. Is its head up, is the "
            "address that of Ray's dashboard (port 8265), and can this machine reach it?"
        )

    def _clean(self, text: str) -> str:
        return redact(text, [self._token.value] if self._token else [])


def _client(address: str, headers: dict[str, str]) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)  # we say ourselves what is sent
    kept = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        return JobSubmissionClient(address, headers=headers)
    finally:
        os.environ.update(kept)


def _sweep_job(job: Any) -> SweepJob:
    metadata = job.metadata or {}
    return SweepJob(
        id=job.submission_id,
        sweep=metadata.get(SWEEP, ""),
        attempt=int(metadata.get(ATTEMPT, 0)),
        content=metadata.get(CONTENT, ""),
        status=str(job.status),
        message=redact(job.message or ""),
        exit_code=job.driver_exit_code,
    )
