"""What every iterative unlearning does with the training loop: checkpoints and a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from workers.editing.edits import Weights
from workers.interfaces.unlearner import Unlearned
from workers.training.loop import (
    STEPS_PER_REPORT,
    Backward,
    Training,
    put_state,
    state_of,
    train,
)
from workers.training.selection import refuse_half_precision

if TYPE_CHECKING:
    from workers.interfaces.unlearner import Erasure, TrainSettings


STATE = ("parameter", "carried")


@dataclass(kw_only=True)
class Phase(Training):
    """One optimisation of an unlearning; it keeps its state under its name.

    `before` and `total` place the phase in the unlearning's own count of steps.
    """

    iterations: int
    before: int = 0
    total: int | None = None
    advice: str = "lower the unlearner's learning_rate"


def one_of(number: int, count: int, iterations: int, name: str = "train") -> dict[str, Any]:
    """How `minimise` is told that it is the phase `number` of `count` alike, one after another."""
    if count == 1:
        return {"name": name}
    place = {"before": number * iterations, "total": count * iterations}
    return {"name": f"{name} {number}", **place}


def train_weights(
    erasure: Erasure,
    settings: TrainSettings,
    parameters: Mapping[str, nn.Parameter],
    backward: Backward,
    part: Literal["unet", "text_encoder"] = "unet",
    **details: Any,
) -> Unlearned:
    """Train some of a part's own weights; what they are then is the edit."""
    mean = minimise(erasure, settings, parameters, backward, **details)
    names = [f"{part}.{name}" for name in parameters]
    return Unlearned([Weights.of(erasure.pipe, names)], {"loss": mean})


def minimise(
    erasure: Erasure,
    settings: TrainSettings,
    parameters: Mapping[str, nn.Parameter],
    backward: Backward,
    *,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    **details: Any,
) -> float:
    """Train `parameters` in one phase, which `details` describe further; the last mean loss.

    Adam, or AdamW where there is a weight decay (0 is none). Rate and number of iterations are
    the settings' unless they are given.
    """
    with training(erasure, settings, parameters):
        rate = settings.learning_rate if learning_rate is None else learning_rate
        values = list(parameters.values())
        if weight_decay is None:
            optimizer: torch.optim.Optimizer = torch.optim.Adam(values, lr=rate, fused=True)
        else:
            optimizer = torch.optim.AdamW(values, lr=rate, weight_decay=weight_decay, fused=True)
        phase: dict[str, Any] = {"name": "train", "iterations": settings.iterations} | details
        return optimise(
            erasure,
            settings,
            Phase(parameters=parameters, optimizer=optimizer, backward=backward, **phase),
        )


def optimise(erasure: Erasure, settings: TrainSettings, phase: Phase) -> float:
    """Run a phase from its last checkpoint, if there is one; return the last mean loss.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    start, mean = 0, math.nan
    # The losses since the last multiple of STEPS_PER_REPORT: what is told last does not depend on
    # when the state was saved.
    losses: list[Tensor] = []
    if (kept := erasure.checkpoints.load(phase.name)) is not None:
        start, tensors = kept
        put_state(phase, tensors, *STATE)
        mean, losses = float(tensors["mean"]), [tensors["losses"].to(erasure.pipe.device)]
    is_bf16, device = settings.precision == "bf16", erasure.pipe.device.type

    def backward(step: int) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=is_bf16):
            return phase.backward(step)

    def told(step: int, read: Tensor) -> None:
        nonlocal mean
        losses.append(read)
        mean = float(torch.cat(losses).mean())
        if step % STEPS_PER_REPORT == 0 or step == phase.iterations:
            losses.clear()
        # Saved before it is told: the worker may be left while it tells.
        if erasure.checkpoints.is_due():
            last = torch.cat(losses) if losses else torch.empty(0)
            numbers = {"mean": torch.tensor(mean, dtype=torch.float64), "losses": last}
            erasure.checkpoints.save(phase.name, step, state_of(phase, *STATE) | numbers)
        total = phase.total or phase.iterations
        erasure.progress(phase.before + step, total, {"loss": mean})

    autocast = replace(phase, backward=backward)
    train(autocast, start, phase.iterations, told, erasure.checkpoints.is_due)
    return mean


def from_loss(loss: Callable[[int], Tensor]) -> Backward:
    """Differentiate and detach; `loss(step)` is a scalar with its graph."""

    def backward(step: int) -> Tensor:
        value = loss(step)
        value.backward()
        return value.detach()

    return backward


@contextmanager
def training(
    erasure: Erasure, settings: TrainSettings, parameters: Mapping[str, nn.Parameter]
) -> Iterator[None]:
    """Inside, only `parameters` have gradients; outside, nothing has.

    Raises:
        ResurgeError: the weights are in half precision, in which small steps vanish.
    """
    pipe = erasure.pipe
    refuse_half_precision(parameters)
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.eval().requires_grad_(False)
    for value in parameters.values():
        value.requires_grad_(True)
    if settings.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for value in parameters.values():
            value.requires_grad_(False)
            value.grad = None
        if settings.gradient_checkpointing:
            pipe.unet.disable_gradient_checkpointing()
