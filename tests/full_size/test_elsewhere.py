"""A released model and a kohya LoRA that is merged, at Stable Diffusion 1.4's size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.full_size.full_run import LIMIT_BYTES, Run, build_model, run_sweep

MAKE = """
import sys
import torch
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import save_file
model, root = Path(sys.argv[1]), Path(sys.argv[2])
released, lora, draw = {}, {}, torch.Generator().manual_seed(0)
with safe_open(model / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
    for name in file.keys():
        if name.endswith("attn2.to_v.weight"):
            weight = file.get_tensor(name)
            released[name] = (weight * 0.5).half()
            flat = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            lora[f"{flat}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=draw) * 0.1
            lora[f"{flat}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=draw) * 0.1
            lora[f"{flat}.alpha"] = torch.tensor(2.0)
save_file(released, root / "released.safetensors")
save_file(lora, root / "style.safetensors")
"""
SWEEP = """
name: elsewhere
base: {{diffusers: {{source: {model}, retained: [dog]}}}}
concept: cat
edits:
  - unlearn: {{weights: {{source: {root}/released.safetensors}}}}
  - merge: {{lora: {root}/style.safetensors, scale: [0, 1.0]}}
evaluate:
  metrics: [brightness, weight_distance]
  images_per_prompt: 1
  guidance: 1
  sampler_steps: 2
  prompts: ["a photo of {{concept}}"]
  retain: []
  controls: false
seeds: 1
resources: {{executor: ray, workers: 1}}
"""

pytestmark = [pytest.mark.slow, pytest.mark.full_size, pytest.mark.integration]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    root = tmp_path_factory.mktemp("elsewhere")
    build_model("sd14", root / "model")
    subprocess.run([sys.executable, "-c", MAKE, str(root / "model"), str(root)], check=True)
    (root / "sweep.yaml").write_text(SWEEP.format(model=root / "model", root=root))
    run = run_sweep("elsewhere", root)
    print(run.report())
    yield run
    for file in root.rglob("*.safetensors"):
        file.unlink()


def test_both_run_within_the_memory(done: Run) -> None:
    assert done.watch.peak_bytes() < LIMIT_BYTES, done.report()
    assert done.code == 0, f"{done.output}\n{done.report()}"


def test_the_merge_is_added_to_what_was_released(done: Run) -> None:
    assert {r["plugin"] for r in done.records() if r["kind"] in ("unlearn", "merge")} == {
        "weights",
        "lora",
    }
    distances = [r["metrics"] for r in done.records() if r["plugin"] == "weight_distance"]
    assert len(distances) == 2
    assert distances[0] != distances[1]
