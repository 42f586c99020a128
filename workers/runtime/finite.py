"""Numbers that are not finite are refused where they appear: later they look like results."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from orchestrator.core.text import some


class NotFinite(FloatingPointError):
    """A weight, a picture or a metric is NaN or infinite; the message is a sentence."""


def check_tensors(tensors: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Look at all tensors and wait for the GPU once.

    Raises:
        NotFinite: not every number is finite; names the first few tensors.
    """
    floating = {name: value for name, value in tensors.items() if value.is_floating_point()}
    if not floating:
        return
    with torch.no_grad():
        flags = [value.isfinite().all() for value in floating.values()]
        device = flags[0].device
        are_finite = torch.stack([flag.to(device, non_blocking=True) for flag in flags]).tolist()
    if not all(are_finite):
        wrong = [name for name, fine in zip(floating, are_finite, strict=True) if not fine]
        raise NotFinite(f"{where}: {some(wrong)} {_are(wrong)} not finite; {advice}")


def check_numbers(numbers: Mapping[str, float], where: str, advice: str) -> None:
    """The same of plain numbers.

    Raises:
        NotFinite: a number is NaN or infinite; says which and what it is.
    """
    wrong = [f"{name} = {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if wrong:
        raise NotFinite(f"{where}: {some(wrong)}, not finite; {advice}")


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
