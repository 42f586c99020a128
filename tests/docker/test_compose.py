"""docker/compose.yaml: valid, and as closed as docs/security.md says."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from tests.docker.composefile import DOCKER, load

SCHEMA = json.loads(
    (files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text()
)
SERVICES = load()["services"]
ONCE = {"prepare"}
"""What runs to its end, so that others wait for its success and not for its health."""


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_published_schema_accepts_it(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    errors = [
        f"{error.json_path}: {error.message}"
        for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(load(name))
    ]
    assert errors == []


def test_the_schema_would_notice_a_slip() -> None:
    slipped = load()
    slipped["services"]["head"]["stop_grace_time"] = "45s"
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(slipped)


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_loopback(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    allowed = {"postgres": 5, "s3": 1}
    assert len(service.get("cap_add", ())) == allowed.get(name, 0)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_health_check_unless_it_runs_once(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert service["healthcheck"] == {"disable": True}
        return
    dockerfile = service.get("build", {}).get("dockerfile", "")
    own = dockerfile and "\nHEALTHCHECK " in (DOCKER.parent / dockerfile).read_text()
    assert own or "test" in service["healthcheck"]


@pytest.mark.parametrize("name", SERVICES)
def test_whoever_is_waited_for_is_healthy_or_done(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
        assert how["condition"] == wanted


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned(name: str) -> None:
    assert re.search(r":\d+\.\d+", SERVICES[name]["image"]), SERVICES[name]["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_come_by_file_and_only_those_that_are_used(name: str) -> None:
    service = SERVICES[name]
    said = json.dumps([service.get("environment", {}), service.get("command", [])])
    assert set(re.findall(r"/run/secrets/(\w+)", said)) == set(service.get("secrets", ()))
    for variable, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable):
            assert value.startswith("/run/secrets/"), variable


@pytest.mark.parametrize("name", SERVICES)
def test_the_entrypoint_reads_every_file_that_a_service_of_ours_names(name: str) -> None:
    if not SERVICES[name]["image"].startswith("resurge-"):
        return
    known = re.search(r"for name in(.*?); do", (DOCKER / "entrypoint.sh").read_text(), re.S)[1]
    for variable in SERVICES[name].get("environment", {}):
        if variable.endswith("_FILE"):
            assert variable.removesuffix("_FILE") in known.split()


def test_secrets_sh_makes_exactly_the_secrets_that_are_declared(tmp_path: Any) -> None:
    subprocess.run([DOCKER / "secrets.sh", tmp_path], check=True, capture_output=True)
    made = {path.name for path in (tmp_path / "secrets").iterdir()}
    declared = load()["secrets"]
    assert made == set(declared)
    for name, secret in declared.items():
        assert secret == {"file": f"./secrets/{name}"}


def test_workers_reach_neither_the_database_nor_its_dashboard() -> None:
    assert SERVICES["worker"]["networks"] == ["cluster"]
    for name in ("postgres", "optuna-dashboard"):
        assert "cluster" not in SERVICES[name]["networks"]
    assert load()["networks"]["database"] == {"internal": True}


def test_the_head_is_found_on_one_network_only() -> None:
    # Ray listens on one address: a second common network would make `head` mean two.
    shared = set(SERVICES["head"]["networks"]) & set(SERVICES["worker"]["networks"])
    assert shared == {"cluster"}


def test_a_worker_is_given_longer_than_ray_drains() -> None:
    image = (DOCKER / "worker.Dockerfile").read_text()
    drain_s = int(re.search(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", image)[1])
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > drain_s


def test_the_s3_server_shows_nothing_but_s3() -> None:
    command = SERVICES["s3"]["command"]
    assert "-ip.bind=127.0.0.1" in command
    assert "-s3.config=/run/secrets/s3_identities" in command


def test_every_volume_is_named_or_of_the_container() -> None:
    named = load()["volumes"]
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source, _, target = volume.partition(":")
            assert source in named or not target or source == "./postgres-init.sql"
