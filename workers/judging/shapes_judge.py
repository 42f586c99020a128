"""What metrics ask of the bundled world's judge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from workers.shapes.judge import Judge

JUDGE = "judge"
"""The word that asks for it in a setting."""
PICTURES_PER_PASS = 256


# Beside the judge's module, which is not imported here because it imports torch.
FOLDER = Path(__file__).parent.parent / "shapes" / "weights"
FILES = ("judge.json", "judge.safetensors")


def judge_digest() -> str:
    """sha256 of the judge's weights and classes: another judge is another metric."""
    total = hashlib.sha256()
    for path in (FOLDER / name for name in FILES):
        if not path.is_file():
            raise ResurgeError(
                f"the judge's {path} is missing; "
                "make it with `python -m workers.shapes.making.train`"
            )
        total.update(path.read_bytes())
    return total.hexdigest()


def refusal(metric: str, base: BasePlugin, instead: str = "") -> list[str]:
    """The judge knows only the shapes world."""
    if base.name == "shapes":
        return []
    what = f"metric {metric!r} judges pictures of base 'shapes' only but the base is {base.name!r}"
    return [f"{what}{f'; {instead}' if instead else ''}"]


def judge_inputs(images: Sequence[np.ndarray]) -> list[Tensor]:
    """The judge's inputs, (n, 3, 32, 32) in [0, 1], some at a time; pictures of one size."""
    import numpy as np
    import torch

    from workers.shapes.judge import at_its_size

    found = []
    for start in range(0, len(images), PICTURES_PER_PASS):
        batch = np.stack(images[start : start + PICTURES_PER_PASS])
        found.append(at_its_size(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255))
    return found


def judged(judge: Judge, images: Sequence[np.ndarray]) -> dict[str, list[str]]:
    """For each head, the most probable class of each picture."""
    names: dict[str, list[str]] = {head: [] for head in judge.classes}
    for unit in judge_inputs(images):
        for head, found in judge.names(unit).items():
            names[head] += found
    return names
