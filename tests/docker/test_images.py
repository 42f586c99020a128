"""Every line of both images is run: built for real, then started as the compose file says.

Takes minutes and needs root: `make test-docker`. The services of the compose file run as its keys
say (user, rights, read-only, secrets, command, health check) on two hosts: network namespaces.
PostgreSQL and the S3 server are stand-ins from Python wheels, since their images cannot be built.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker.composefile import DOCKER, load
from tests.docker.engine import Engine, Host, hosts, missing
from tests.docker.stand_ins import postgresql, s3

pytestmark = [pytest.mark.docker_lines, pytest.mark.integration]

SERVICES = load()["services"]
ON = {"main": ["head", "mlflow", "optuna-dashboard", "postgres", "s3"], "gpu": ["worker"]}
RESURGE = Path(sys.executable).parent / "resurge"
NETWORK = "10.231.74"
"""A network of the namespaces alone."""

LASTING = ("mlflow", "optuna-dashboard", "head", "worker")
"""The services of our images that stay, each after those it waits for."""

SWEEP = """
name: smoke
base: shapes
concept: star
edits:
  - unlearn: [uce]
  - finetune: {dataset: related, learning_rate: 3.0e-4, steps: [0, 2], batch_size: 2}
evaluate: {metrics: [concept_accuracy], images_per_prompt: 1, controls: false}
seeds: 1
resources: {workers: 1}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if missing() or os.getuid() != 0:
        pytest.fail(
            "these tests run as root, with Debian's packages "
            f"{' '.join(missing())}: apt-get install --no-install-recommends {' '.join(missing())}"
        )
    engine = Engine(tmp_path_factory.mktemp("engine"))
    try:
        engine.stand_in()
        for role in ("head", "worker"):
            engine.build(role)
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A folder that secrets.sh filled; not in pytest's own, which is closed to PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="resurge-made-") as name:
        Path(name).chmod(0o755)
        subprocess.run([DOCKER / "secrets.sh", name], check=True, capture_output=True)
        yield Path(name)


@pytest.fixture(scope="module")
def cluster(engine: Engine, made: Path) -> Iterator[dict[str, Host]]:
    """The compose file's services, each started when those it waits for are healthy."""
    with hosts(ON, NETWORK) as found:
        main = found["main"]
        with postgresql(main, made), s3(main):
            try:
                engine.start("prepare", SERVICES["prepare"], main, made)
                assert engine.wait("prepare") == 0, engine.logs("prepare")
                for name in LASTING:
                    host = found["gpu" if name == "worker" else "main"]
                    engine.start(name, SERVICES[name], host, made)
                    answers(host, health_check(engine, name)[-1])
                    assert engine.healthy(name, health_check(engine, name)), engine.logs(name)
                yield found
            finally:
                engine.attempt("rm", "--all", "--force", "--volumes", "--time", "5")


def health_check(engine: Engine, name: str) -> list[str]:
    """A service's health check: the compose file's, else the image's. A URL is its last word."""
    own = SERVICES[name].get("healthcheck")
    return (own or {}).get("test") or engine.config(name)["Healthcheck"]["Test"]


def answers(host: Host, url: str) -> None:
    """Until a page on the host's loopback answers, or after five minutes."""
    patience = ["--retry", "150", "--retry-delay", "2", "--retry-all-errors", "--fail"]
    host.run("curl", "--silent", *patience, "--output", "/dev/null", url, check=False)


def get(host: Host, url: str, **headers: str) -> int:
    """The HTTP status that a host gets from a URL."""
    options = [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
    done = host.run(
        "curl",
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        "--max-time",
        "20",
        *options,
        url,
        check=False,
    )
    return int(done.stdout)


@pytest.fixture(scope="module")
def secret(made: Path) -> Callable[[str], str]:
    return lambda name: (made / "secrets" / name).read_text().strip()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_the_head_plans_without_torch(engine: Engine, tmp_path: Path) -> None:
    sweep = DOCKER.parent / "sweeps" / "quickstart.yaml"
    mount = [f"--volume={sweep}:/sweep.yaml:ro", "--tmpfs=/tmp", "--read-only"]
    said = engine.in_image("head", "resurge", "plan", "/sweep.yaml", options=mount)
    assert "stages" in said
    look = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'diffusers')])"
    assert "[None, None]" in engine.in_image("head", "python", "-c", look)


def test_the_worker_has_the_torch_of_the_constraints(engine: Engine) -> None:
    pinned = re.search(r"^torch==(.*)$", (DOCKER.parent / "constraints.txt").read_text(), re.M)
    said = engine.in_image("worker", "python", "-c", "import torch; print(torch.__version__)")
    assert said.split()[-1].split("+")[0] == pinned[1]


@pytest.mark.parametrize("role", ["head", "worker"])
def test_both_have_the_same_versions_of_what_they_share(engine: Engine, role: str) -> None:
    pins = dict(
        line.lower().split("==")
        for line in (DOCKER.parent / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    said = engine.in_image(role, "python", "-m", "pip", "list", "--format=json")
    installed = {
        package["name"].lower(): package["version"] for package in json.loads(said.splitlines()[0])
    }
    assert installed["ray"] == pins["ray"]
    for name in installed.keys() & pins.keys():
        assert installed[name].split("+")[0] == pins[name], name


@pytest.mark.parametrize("role", ["head", "worker"])
def test_an_image_is_nobody_special(engine: Engine, role: str) -> None:
    assert engine.config(role)["User"] == "1000"
    assert "uid=1000(resurge)" in engine.in_image(role, "id")
    assert engine.config(role)["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.parametrize("role", ["head", "worker"])
def test_an_image_holds_no_secret(engine: Engine, role: str, made: Path) -> None:
    # The folder lies in the build context, as it does for whoever runs compose.
    said = engine.in_image(role, "sh", "-c", "ls /run/secrets /src 2>&1; env")
    assert "TOKEN_PATH" not in said
    assert said.count("No such file") == 2


def test_services_are_healthy_by_their_own_checks(engine: Engine, cluster: dict[str, Host]) -> None:
    for name in LASTING:
        assert engine.healthy(name, health_check(engine, name)), engine.logs(name)


def test_ray_without_the_token_is_refused(
    cluster: dict[str, Host], engine: Engine, secret: Callable[[str], str]
) -> None:
    outside = cluster["gpu"]
    url = "http://" + outside.hosts["head"] + ":8265"
    assert get(outside, f"{url}/api/jobs/") == 401
    assert get(outside, f"{url}/api/version", Authorization="Bearer wrong") == 403
    assert get(outside, f"{url}/api/version", Authorization=f"Bearer {secret('ray_token')}") == 200
    without = ["exec", "--env=RAY_AUTH_MODE=disabled", "worker"]
    refused = engine.attempt(*without, "ray", "status", "--address=head:6379")
    assert refused.returncode != 0
    assert "AuthenticationError" in refused.stderr


def test_a_node_with_another_token_does_not_join(
    cluster: dict[str, Host], engine: Engine, tmp_path: Path
) -> None:
    subprocess.run([DOCKER / "secrets.sh", tmp_path], check=True, capture_output=True)
    engine.start("stranger", SERVICES["worker"], cluster["gpu"], tmp_path)
    assert engine.wait("stranger") != 0
    assert "uthenticat" in engine.logs("stranger")


def test_mlflow_without_the_password_is_refused(
    cluster: dict[str, Host], secret: Callable[[str], str]
) -> None:
    outside = cluster["gpu"]
    url = f"http://{outside.hosts['mlflow']}:5000/api/2.0/mlflow/experiments/get?experiment_id=0"
    right = basic("resurge", secret("mlflow_password"))
    assert get(outside, url, Host="mlflow:5000") == 401
    assert get(outside, url, Host="mlflow:5000", Authorization=basic("resurge", "x")) == 401
    assert get(outside, url, Host="mlflow:5000", Authorization=right) == 200
    assert get(outside, url, Host="evil.example", Authorization=right) == 403


def test_a_sweep_that_is_submitted_runs_and_its_results_are_read_elsewhere(
    cluster: dict[str, Host],
    engine: Engine,
    secret: Callable[[str], str],
    made: Path,
    tmp_path: Path,
) -> None:
    user = cluster["gpu"]
    (tmp_path / "smoke.yaml").write_text(SWEEP)
    settings = {
        "AWS_ENDPOINT_URL_S3": f"http://{user.hosts['s3']}:8333",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": secret("s3_access_key"),
        "AWS_SECRET_ACCESS_KEY": secret("s3_secret_key"),
        "RAY_AUTH_TOKEN_PATH": str(made / "secrets" / "ray_token"),
        "RESURGE_CLUSTER": f"http://{user.hosts['head']}:8265",
        "RESURGE_STORE": "s3://resurge/store",
        "RESURGE_HOME": str(tmp_path / "home"),
    }
    resurge = ["env", *(f"{name}={value}" for name, value in settings.items()), RESURGE]
    said = user.run(*resurge, "submit", "--follow", tmp_path / "smoke.yaml").stdout
    assert "stages ran · 0 failed" in said
    results = user.run(*resurge, "results", tmp_path / "smoke.yaml", "--csv").stdout
    assert "uce" in results

    url = (
        f"http://{user.hosts['mlflow']}:5000/api/2.0/mlflow/experiments/get-by-name"
        "?experiment_name=smoke"
    )
    right = basic("resurge", secret("mlflow_password"))
    assert get(user, url, Host="mlflow:5000", Authorization=right) == 200
    for name in ("head", "worker", "mlflow"):
        logs = engine.logs(name)
        for path in ("ray_token", "mlflow_password", "postgres_password", "s3_secret_key"):
            assert secret(path) not in logs + said, path


def test_a_stopped_worker_drains_first(cluster: dict[str, Host], engine: Engine) -> None:
    engine.podman("stop", "--time", "90", "worker")
    assert "finished draining" in engine.logs("worker")
    assert engine.podman("inspect", "--format", "{{.State.ExitCode}}", "worker").split()[0] != "137"
