"""Stage: identity is what is computed, and nothing else."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from orchestrator.core.digest import Canonical, canonical_json, sha256
from orchestrator.core.stage import Stage

BASE = Stage("base", "tiny", 1, {"settings": {}}, {"settings": {}}, None, None)


def finetune(seed: int = 0, parent: Stage = BASE, version: int = 1, **chosen: Any) -> Stage:
    full = {"steps": 100, "schedule": "constant", "learning_rate": 1e-5, **chosen}
    identity = {"settings": chosen}
    return Stage("finetune", "finetune", version, identity, {"settings": full}, seed, parent)


def test_equal_work_has_an_equal_digest() -> None:
    assert finetune(steps=50) == finetune(steps=50)
    assert len({finetune(steps=50), finetune(steps=50)}) == 1


def test_the_digest_is_pinned() -> None:
    """A change of this value orphans every store there is."""
    assert finetune(steps=50).digest == (
        "2bed65671e543817dd9dd115f8ea6137cefec9544bb00246c71d89fb2ee68788"
    )


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("inputs", [{}, {"b": BASE, "a\n": BASE}])
def test_the_digest_is_that_of_the_canonical_json(
    seed: int | None, inputs: dict[str, Stage]
) -> None:
    identity = {"settings": {"b": [1.0, "ü"], "a": None}}
    stage = Stage("sample", 'a "b"', 3, Canonical(identity), {}, seed, BASE, inputs)
    parts = {
        "kind": "sample", "plugin": 'a "b"', "version": 3, "identity": identity, "seed": seed,
        "parent": BASE.digest,
    }  # fmt: skip
    if inputs:
        parts["inputs"] = {name: BASE.digest for name in inputs}
    assert stage.digest == sha256(parts)


def test_what_stages_share_is_sent_without_its_text() -> None:
    shared = Canonical({"settings": {"a": 1}})
    assert shared.text == canonical_json(dict(shared))
    sent = pickle.loads(pickle.dumps(shared))
    assert sent == shared
    assert type(sent) is Canonical
    assert not vars(sent)


def test_seed_version_settings_and_parent_count() -> None:
    other_parent = Stage("base", "tiny", 2, {"settings": {}}, {"settings": {}}, None, None)
    stages = [
        finetune(steps=50),
        finetune(steps=50, seed=1),
        finetune(steps=50, version=2),
        finetune(steps=51),
        finetune(steps=50, parent=other_parent),
    ]
    assert len({stage.digest for stage in stages}) == len(stages)


def test_stored_settings_do_not_count() -> None:
    one = Stage("base", "tiny", 1, {"settings": {}}, {"settings": {"a": 1}}, None, None)
    two = Stage("base", "tiny", 1, {"settings": {}}, {"settings": {"a": 2}}, None, None)
    assert one.digest == two.digest


def test_step_counts_share_a_trajectory_only_under_a_constant_schedule() -> None:
    assert finetune(steps=50).trajectory == finetune(steps=100).trajectory
    cosine = {"schedule": "cosine"}
    assert finetune(steps=50, **cosine).trajectory != finetune(steps=100, **cosine).trajectory
    assert finetune(steps=50).trajectory != finetune(steps=50, learning_rate=1e-3).trajectory


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [1.0, None]}) == canonical_json({"a": [1.0, None], "b": 1})


def test_ancestry_ends_at_the_base() -> None:
    score = Stage("score", "m", 1, {}, {}, None, Stage("sample", "s", 1, {}, {}, None, BASE))
    assert [stage.kind for stage in score.ancestry()] == ["score", "sample", "base"]
    assert score.model is BASE
