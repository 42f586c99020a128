"""docker/kuberay/: valid manifests that ask for the token and no rights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from tests.docker.kuberay import KINDS

FOLDER = Path(__file__).parents[2] / "docker" / "kuberay"
KUBERNETES = "1.33"
NOT_APPLIED = {"kustomization.yaml", "images.yaml"}
CONSTRAINTS = FOLDER.parents[1] / "constraints.txt"


def read(name: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load((FOLDER / name).read_text())


MANIFESTS = {
    path.name: read(path.name) for path in FOLDER.glob("*.yaml") if path.name not in NOT_APPLIED
}
CLUSTER = MANIFESTS["raycluster.yaml"]["spec"]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the cluster makes, by its group."""
    yield "head", CLUSTER["headGroupSpec"]["template"]["spec"]
    for group in CLUSTER["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


PODS = dict(pods())


def as_kubernetes(kind: str, version: str, **content: Any) -> None:
    manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, **content}
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_its_kind_says(name: str) -> None:
    manifest = MANIFESTS[name]
    if manifest["kind"] in KINDS:
        KINDS[manifest["kind"]].model_validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("group", PODS)
def test_a_pod_is_kubernetes_own(group: str) -> None:
    as_kubernetes("Pod", "v1", spec=PODS[group])


def test_the_autoscaler_container_is_kubernetes_own() -> None:
    options = CLUSTER["autoscalerOptions"]
    container = {key: options[key] for key in ("resources", "securityContext")}
    as_kubernetes("Pod", "v1", spec={"containers": [{"name": "autoscaler", **container}]})


def test_the_fields_would_show_a_slip() -> None:
    cluster = read("raycluster.yaml")
    cluster["spec"]["authOption"] = cluster["spec"].pop("authOptions")
    with pytest.raises(ValidationError, match="authOption"):
        KINDS["RayCluster"].model_validate(cluster)


def test_the_token_is_asked_for_and_comes_from_a_secret() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "resurge-ray-token"}


def test_ray_is_the_version_of_the_constraints() -> None:
    pinned = re.search(r"^ray==(.*)$", CONSTRAINTS.read_text(), re.M)[1]
    assert CLUSTER["rayVersion"] == pinned


@pytest.mark.parametrize("group", PODS)
def test_a_pod_meets_the_restricted_standard(group: str) -> None:
    pod = PODS[group]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("group", PODS)
def test_no_secret_stands_in_a_manifest(group: str) -> None:
    for container in PODS[group]["containers"]:
        for variable in container["env"]:
            assert "value" not in variable, variable["name"]


@pytest.mark.parametrize("group", CLUSTER["workerGroupSpecs"], ids=lambda group: group["groupName"])
def test_a_worker_is_given_longer_than_ray_drains(group: dict[str, Any]) -> None:
    image = (FOLDER.parent / "worker.Dockerfile").read_text()
    drain_s = int(re.search(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", image)[1])
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s


def test_groups_grow_from_nothing_by_label() -> None:
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert CLUSTER["autoscalerOptions"]["version"] == "v2"
    assert all(group["replicas"] == 0 for group in CLUSTER["workerGroupSpecs"])
    assert CLUSTER["workerGroupSpecs"][0]["labels"] == {"ray.io/accelerator-type": "H100"}


def test_the_job_runs_a_sweep_that_the_head_can_read() -> None:
    path = Path(MANIFESTS["rayjob.yaml"]["spec"]["entrypoint"].split()[-1])
    mounts = PODS["head"]["containers"][0]["volumeMounts"]
    assert str(path.parent) in {mount["mountPath"] for mount in mounts}


def test_kustomize_names_what_is_there_and_tags_every_image() -> None:
    kustomization = read("kustomization.yaml")
    assert set(kustomization["resources"]) == MANIFESTS.keys() - {"rayjob.yaml"}
    tagged = {image["name"] for image in kustomization["images"]}
    assert {pod["containers"][0]["image"] for pod in PODS.values()} == tagged
