"""Every preset for Stable Diffusion, cut to a few steps, as a sweep of a model of random weights.

What a preset says of the model stays as published: which weights, losses, masks, adapters, anchors,
weights of terms. What only says how long and how many is cut to two or so (`SHORT`). Batches are of
one picture with gradient checkpointing: the published ones are for cards of 40 to 80 GB. MACE's
presets for five concepts and more are not here: they do to each of them what `sd-celebrity-1` does
to one, which takes hours.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.registry import registry
from workers.unlearners.mace import SIZES as MACE_SIZES

SHORT: dict[str, Any] = {
    "iterations": 2,
    "batch_size": 1,
    "retain_batch_size": 1,
    "gradient_checkpointing": True,
    "sampler_steps": 3,
    "warmup_iterations": 1,
    "warmup_steps": 1,
    "cycles": 1,
    "attack_steps": 2,
    "rounds": 2,
    "search_iterations": 2,
    "inversion_steps": 2,
    "images": 1,
    "images_per_prompt": 1,
    "retain_images_per_prompt": 1,
    "score_batches": 1,
    "mask_batches": 1,
    "epoch_steps": 2,
    "simulations": 1,
    "min_simulated_steps": 1,
    "max_simulated_steps": 2,
    "fixed_point_steps": 2,
}
"""How long and how many, for the methods that have such a setting."""
INSTEAD: dict[str, dict[str, Any]] = {
    # CLIPSeg would have to be fetched; λ 0 wants captions that span the embeddings.
    "mace": {"segmenter": "contrast", "general_captions": "{root}/captions.txt"},
}
REFUSED = {("mace", "sd-celebrity-1"), ("mace", "sd-nudity")}
"""λ is 0 there, which a closed form allows only where the captions' embeddings span their space, as
30,000 of a trained text encoder's do. Random weights' do not, and that is said.
"""
CPU_GIB = 15.5
"""What a preset may take of a GPU if it is to run on a CPU with 20 GiB, where the base's own copy
of 4 GiB lies beside.
"""
MEASURED = Path(__file__).parents[2] / "benchmarks" / "cards" / "nvidia-h200.json"
THINGS = ("cat", "dog", "bird", "ship", "house", "tree", "car", "horse", "river", "chair")
PLACES = ("park", "kitchen", "forest", "street", "field", "museum", "garden", "desert", "harbour")
LOOKS = ("red", "old", "small", "wooden", "bright", "quiet", "broken", "tall", "blue", "strange")


@dataclass(frozen=True)
class Case:
    """A method's preset."""

    method: str
    preset: str

    def settings(self, root: Path) -> dict[str, Any]:
        """The preset, cut short."""
        known = registry("unlearner")[self.method].Settings.model_fields
        short = {name: value for name, value in SHORT.items() if name in known}
        instead = INSTEAD.get(self.method, {})
        filled = {name: value.format(root=root) for name, value in instead.items()}
        return {"preset": self.preset, **short, **filled}


CASES = [
    Case(method, preset)
    for method, cls in sorted(registry("unlearner").items())
    for preset in getattr(cls.Settings, "PRESETS", {})
    if (preset == "sd" or preset.startswith("sd-")) and preset not in MACE_SIZES
]


def peaks_gib() -> dict[str, float]:
    """What each preset took of a GPU with 512 pixels a side, by "method preset"."""
    parts = json.loads(MEASURED.read_text())["parts"]
    [rows] = [part["rows"] for part in parts if part["title"] == "Every preset"]
    found = {}
    for stage, _, peak, *_ in rows:
        method, presets = stage.split(" ", 1)
        found |= {f"{method} {preset}": float(peak) for preset in presets.split(", ")}
    return found


def captions() -> list[str]:
    """Nine hundred that differ."""
    return [
        f"a {look} {thing} in the {place}"
        for look, thing, place in itertools.product(LOOKS, THINGS, PLACES)
    ]


def set_side(model: Path, pixels: int) -> None:
    """Have a model draw at another size than its own: its weights are the same."""
    path = model / "unet" / "config.json"
    config = json.loads(path.read_text()) | {"sample_size": pixels // 8}
    path.write_text(json.dumps(config))


def sweep_of(
    root: Path, model: Path, cases: Sequence[Case], evaluate: Mapping[str, Any], executor: str
) -> dict[str, Any]:
    """A sweep file: the base is loaded once, and a stage's failure is its own."""
    (root / "captions.txt").write_text("\n".join(captions()))
    return {
        "name": "presets",
        "base": {"brief": {"source": str(model), "retained": ["dog"], "templates": ["a {}"]}},
        "concept": "cat",
        "edits": [{"unlearn": [{case.method: case.settings(root)} for case in cases]}],
        "evaluate": dict(evaluate),
        "seeds": 1,
        "keep": [],
        "resources": {"executor": executor, "workers": 1},
    }
