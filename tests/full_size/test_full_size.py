"""Stable Diffusion 1.4 and 2.1 in their real sizes, with random weights, through a whole sweep.

Nothing is learned about quality. What is seen: that configurations and tokenizers of the released
models go through every kind of stage, how much memory and time that takes, and how big files are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.full_size.full_run import LIMIT_BYTES, Run, build_model, make_pictures, run_sweep
from tests.full_size.random_pipeline import PARAMETERS

EDIT_LIMIT_BYTES = 120_000_000
ADAPTERS = {"sd14": "full", "sd21": "lora"}
"""Full fine-tuning of SD 2.1 is 16 bytes a parameter beside the pristine copy: beyond the limit."""

SWEEP = """
name: full-size
base: {{diffusers: {{source: {model}, retained: [dog]}}}}
concept: cat
edits:
  - unlearn: [uce, {{esd: {{group: x, iterations: 2, batch_size: 1, sampler_steps: 2}}}}]
  - finetune:
      dataset: {{folder: {{path: {pictures}}}}}
      adapter: {adapter}
      steps: 2
      batch_size: 1
      gradient_checkpointing: true
evaluate:
  metrics: [brightness]
  images_per_prompt: 1
  guidance: 1
  sampler_steps: 2
  prompts: ["a photo of {{concept}}"]
  retain: []
  controls: false
seeds: 1
keep: [unlearned]
resources: {{executor: ray, workers: 1}}
"""

pytestmark = [pytest.mark.slow, pytest.mark.full_size, pytest.mark.integration]


@pytest.fixture(scope="module", params=["sd14", "sd21"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pipeline's folder; removed at the end, because it is gigabytes."""
    folder = tmp_path_factory.mktemp(name) / "model"
    build_model(name, folder)
    yield folder
    for file in folder.rglob("*.safetensors"):
        file.unlink()


@pytest.fixture(scope="module")
def done(name: str, model: Path) -> Iterator[Run]:
    root = model.parent
    make_pictures(root / "pictures")
    sweep = SWEEP.format(model=model, pictures=root / "pictures", adapter=ADAPTERS[name])
    (root / "sweep.yaml").write_text(sweep)
    run = run_sweep(name, root)
    print(run.report())
    yield run
    for file in run.home.rglob("*.safetensors"):
        file.unlink()


def test_the_pipeline_has_the_released_models_size(name: str, model: Path) -> None:
    for part, expected in PARAMETERS[name].items():
        [file] = (model / part).glob("*.safetensors")
        with safe_open(file, "pt") as weights:
            sizes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
        assert sum(product(shape) for shape in sizes) == expected, part


def product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def test_the_sweep_ends_within_the_memory(done: Run) -> None:
    assert done.watch.peak_bytes() < LIMIT_BYTES, done.report()
    assert done.code == 0, f"{done.output}\n{done.report()}"


def test_closed_form_edits_are_stored_as_what_they_changed(done: Run) -> None:
    path = done.edit("uce")
    with safe_open(path, "pt") as weights:
        names = list(weights.keys())
    assert names
    assert all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in names)
    assert path.stat().st_size < EDIT_LIMIT_BYTES
