"""Three concepts that MACE erases jointly, at Stable Diffusion 1.4's size.

By its preset for objects, which is for sets of any size; how long and how many, and the pictures'
size, is cut as for every preset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from tests.full_size.full_run import LIMIT_BYTES, ONE_PICTURE, Run, build_model, run_sweep
from tests.full_size.presets import Case, captions, set_side

CONCEPTS = ("cat", "bird", "ship")
TIMEOUT_S = 2 * 60 * 60

pytestmark = [pytest.mark.slow, pytest.mark.full_size, pytest.mark.integration]


def joint_sweep(root: Path) -> dict[str, Any]:
    """The sweep, with the model in `root`'s folder "model"."""
    return {
        "name": "joint",
        "base": {"brief": {"source": str(root / "model"), "retained": ["dog"]}},
        "concept": [list(CONCEPTS)],
        "edits": [{"unlearn": {"mace": Case("mace", "sd-object").settings(root)}}],
        "evaluate": ONE_PICTURE,
        "seeds": 1,
        "resources": {"executor": "ray", "workers": 1},
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    root = tmp_path_factory.mktemp("joint")
    build_model("sd14", root / "model")
    set_side(root / "model", 128)
    (root / "captions.txt").write_text("\n".join(captions()))
    (root / "sweep.yaml").write_text(yaml.safe_dump(joint_sweep(root), sort_keys=False))
    run = run_sweep("joint", root, TIMEOUT_S)
    print(run.report())
    yield run
    for file in root.rglob("*.safetensors"):
        file.unlink()


def test_the_sweep_ends_within_the_memory(done: Run) -> None:
    assert done.watch.peak_bytes() < LIMIT_BYTES, done.report()
    assert done.code == 0, f"{done.failures()}\n{done.output[-4000:]}\n{done.report()}"


def test_each_concept_has_pictures_and_masks_of_its_own_and_one_edit_erases_them_all(
    done: Run,
) -> None:
    made = [record["plugin"] for record in done.records() if record["kind"] == "prepare"]
    assert made.count("images") == made.count("masks") == len(CONCEPTS)
    [erased] = [record for record in done.records() if record["plugin"] == "mace"]
    assert [target["concept"] for target in erased["settings"]["targets"]] == list(CONCEPTS)
    with safe_open(done.edit("mace"), "pt") as weights:
        names = list(weights.keys())
    assert names
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in names)
