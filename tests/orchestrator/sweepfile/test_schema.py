"""The JSON Schema of the sweep file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.registry import registry
from orchestrator.sweepfile.load import parse
from orchestrator.sweepfile.schema import json_schema

jsonschema = pytest.importorskip("jsonschema")

SWEEP: dict[str, Any] = {
    "name": "quickstart",
    "base": "shapes",
    "concept": ["star"],
    "edits": [
        {"unlearn": [{"esd": {"group": ["x", "u"]}}, "uce"]},
        {
            "finetune": {
                "dataset": ["related", {"folder": {"path": "data"}}],
                "adapter": ["full", "lora"],
                "learning_rate": 3e-4,
                "clip_norm": [None, 1.0],
                "steps": [0, 50],
            }
        },
    ],
    "evaluate": {"metrics": ["concept_accuracy"], "images_per_prompt": 8, "guidance": None},
    "seeds": 2,
    "keep": ["unlearned"],
    "exclude": [{"unlearn.method": "uce", "finetune.steps": [50]}],
    "zip": [["finetune.adapter", "finetune.steps"]],
    "resources": {"executor": "ray", "workers": 2, "gpus": 0},
    "store": None,
}


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def changed(*path: Any, to: Any) -> dict[str, Any]:
    sweep = copy.deepcopy(SWEEP)
    place: Any = sweep
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = to
    return sweep


def test_accepts_a_sweep(validator: Any) -> None:
    assert list(validator.iter_errors(SWEEP)) == []


@pytest.mark.parametrize(
    "concept",
    [
        [["star", "heart"], "circle"],
        {"name": "two", "concepts": ["star", "heart"], "anchors": {"star": "circle"}},
        [{"name": "many", "file": "names.txt"}],
    ],
)
def test_accepts_sets_of_concepts(validator: Any, concept: Any) -> None:
    assert list(validator.iter_errors(changed("concept", to=concept))) == []


@pytest.mark.parametrize(
    "unlearn",
    [
        {"method": ["uce", {"esd": {"group": "x"}}], "order": ["continual", "simultaneous"]},
        {"uce": {}, "concepts": ["star"]},
        {"uce": {"lam": 0.5}, "concepts": [["star"], ["star", "heart"]], "order": "continual"},
    ],
)
def test_accepts_what_an_unlearning_is_told(validator: Any, unlearn: Any) -> None:
    assert list(validator.iter_errors(changed("edits", 0, "unlearn", to=unlearn))) == []


def test_accepts_a_diffusers_repository_as_base(validator: Any) -> None:
    assert validator.is_valid(changed("base", to="owner/model"))


def test_accepts_every_canonical_form(validator: Any) -> None:
    sweep = changed("edits", 1, "finetune", "dataset", to="related")
    canonical = parse(json.dumps(sweep)).canonical()
    assert list(validator.iter_errors(canonical)) == []


def test_accepts_the_sweeps_of_the_project(validator: Any) -> None:
    from orchestrator.config.yaml_tree import read_yaml

    for path in (Path(__file__).parents[3] / "sweeps").glob("*.yaml"):
        node = read_yaml(path.read_text(), str(path), [])
        assert node is not None
        assert list(validator.iter_errors(node.plain())) == []


@pytest.mark.parametrize(
    "sweep",
    [
        changed("nmae", to="x"),
        changed("name", to="../x"),
        changed("edits", to=[]),
        changed("edits", 0, "unlearn", to=["ecu"]),
        changed("edits", 0, "unlearn", to={"esd": {}, "uce": {}}),
        changed("edits", 0, "unlearn", to={"esd": {}, "order": "once"}),
        changed("concept", to={"name": "two"}),
        changed("concept", to={"concepts": ["star"]}),
        changed("edits", 0, "unlearn", 0, "esd", to={"group": "y"}),
        changed("edits", 1, "finetune", "steps", to=[0, -1]),
        changed("edits", 1, "finetune", "steps", to=[]),
        changed("edits", 1, "finetune", "stpes", to=1),
        changed("edits", 1, "finetune", "dataset", to="folder"),
        changed("evaluate", to={}),
        changed("evaluate", "images_per_prompt", to=[1, 2]),
        changed("seeds", to=0),
        changed("resources", "workers", to=0),
        changed("keep", to=["all"]),
    ],
)
def test_refuses(sweep: dict[str, Any], validator: Any) -> None:
    assert not validator.is_valid(sweep)


def test_describes_every_plugin_and_setting() -> None:
    text = json.dumps(json_schema())
    for kind in ("base", "unlearner", "dataset", "evaluation", "metric", "executor"):
        for name, plugin in registry(kind).items():  # type: ignore[arg-type]
            assert json.dumps(plugin.summary()) in text
            assert f'"{name}"' in text
            assert all(f'"{field}"' in text for field in plugin.Settings.model_fields)
