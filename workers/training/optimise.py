"""The loop of every iterative unlearning: steps, checkpoints, progress, and a stop on NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from workers.runtime.pace import SIGN_EVERY_S, Every
from workers.training.selection import refuse_half_precision

if TYPE_CHECKING:
    from workers.interfaces.unlearner import Erasure, TrainSettings


STEPS_PER_REPORT = 10
Loss = Callable[[int], Tensor]
"""step -> a scalar with its graph."""


@dataclass
class Phase:
    """One optimisation of an unlearning.

    `backward(step)` leaves gradients in the parameters and returns the loss, detached; `from_loss`
    makes one from a loss. `carried` are tensors that the phase changes in place beside the
    parameters (a moving average). `before` and `total` place the phase in the unlearning's own
    count of steps. `rate(step)` multiplies the learning rate.
    """

    name: str
    iterations: int
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    backward: Loss
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    clip_norm: float | None = None
    rate: Callable[[int], float] | None = None
    on_gradients: Callable[[], None] | None = None
    after_step: Callable[[int], None] | None = None
    before: int = 0
    total: int | None = None


def from_loss(loss: Loss) -> Loss:
    """Differentiate and detach."""

    def backward(step: int) -> Tensor:
        value = loss(step)
        value.backward()
        return value.detach()

    return backward


def optimise(erasure: Erasure, settings: TrainSettings, phase: Phase) -> float:
    """Run a phase from its last checkpoint, if there is one; return the last mean loss.

    Everything random in `phase.backward` must be a function of (seed, step): a phase that is
    resumed then ends in the very weights of one that ran straight through. The loss is read every
    few steps only, because reading makes the CPU wait for the device.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    # The losses since the last multiple of STEPS_PER_REPORT: what is told last does not depend on
    # when the state was saved.
    step, losses = _resume(erasure, phase)
    mean, sign = math.nan, Every(SIGN_EVERY_S)
    rates = [group["lr"] for group in phase.optimizer.param_groups]
    autocast = mixed_precision(erasure, settings)
    while step < phase.iterations:
        if phase.rate is not None:
            for group, rate in zip(phase.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * phase.rate(step)
        with autocast():
            losses.append(phase.backward(step))
        _apply_gradients(phase)
        if phase.after_step is not None:
            phase.after_step(step)
        step += 1
        is_whole = step % STEPS_PER_REPORT == 0 or step == phase.iterations
        if is_whole or sign.is_due() or erasure.checkpoints.is_due():
            mean = _mean_of(losses, phase, step)
            if is_whole:
                losses.clear()
            # Saved before it is told: the worker may be left while it tells.
            if erasure.checkpoints.is_due():
                erasure.checkpoints.save(phase.name, step, _state(phase, mean, losses))
            total = phase.total or phase.iterations
            erasure.progress(phase.before + step, total, {"loss": mean})
            sign.done()
    return mean if not math.isnan(mean) else _last_mean(erasure, phase)


def mixed_precision(
    erasure: Erasure, settings: TrainSettings
) -> Callable[[], AbstractContextManager[object]]:
    """bf16 autocast over fp32 weights if the settings ask for it."""
    device = erasure.pipe.device.type
    is_on = settings.precision == "bf16"
    return lambda: torch.autocast(device, dtype=torch.bfloat16, enabled=is_on)


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


def adam(
    parameters: Mapping[str, nn.Parameter], learning_rate: float, weight_decay: float | None = None
) -> torch.optim.Optimizer:
    """Adam, or AdamW where there is a weight decay (0 is none)."""
    values = list(parameters.values())
    if weight_decay is None:
        return torch.optim.Adam(values, lr=learning_rate, fused=True)
    return torch.optim.AdamW(values, lr=learning_rate, weight_decay=weight_decay, fused=True)


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The optimiser's tensors as "optimizer.<kind>.<parameter>"."""
    return {
        f"optimizer.{kind}.{name}": value
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """The inverse of `optimizer_state`, for an optimiser of the same parameters."""
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)
            parameter = parameters[name]
            kept = value.to(parameter.device, copy=True)
            optimizer.state.setdefault(parameter, {})[kind] = kept


def _apply_gradients(phase: Phase) -> None:
    if phase.on_gradients is not None:
        phase.on_gradients()
    if phase.clip_norm is not None:
        nn.utils.clip_grad_norm_(list(phase.parameters.values()), phase.clip_norm)
    phase.optimizer.step()
    phase.optimizer.zero_grad(set_to_none=True)


def _state(phase: Phase, mean: float, losses: list[Tensor]) -> dict[str, Tensor]:
    tensors = {f"parameter.{name}": value.detach() for name, value in phase.parameters.items()}
    tensors |= {f"carried.{name}": value for name, value in phase.carried.items()}
    tensors |= optimizer_state(phase.optimizer, phase.parameters)
    last = torch.stack(losses) if losses else torch.empty(0)
    return tensors | {"mean": torch.tensor(mean, dtype=torch.float64), "losses": last}


@torch.no_grad()
def _resume(erasure: Erasure, phase: Phase) -> tuple[int, list[Tensor]]:
    """The steps that are done, and the last losses."""
    kept = erasure.checkpoints.load(phase.name)
    if kept is None:
        return 0, []
    step, tensors = kept
    for name, value in phase.parameters.items():
        value.copy_(tensors[f"parameter.{name}"])
    for name, value in phase.carried.items():
        value.copy_(tensors[f"carried.{name}"])
    load_optimizer_state(phase.optimizer, phase.parameters, tensors)
    return step, list(tensors["losses"].to(erasure.pipe.device).unbind())


def _last_mean(erasure: Erasure, phase: Phase) -> float:
    """Of a phase that was complete when it was resumed."""
    kept = erasure.checkpoints.load(phase.name)
    return float(kept[1]["mean"]) if kept else math.nan


def _mean_of(losses: list[Tensor], phase: Phase, step: int) -> float:
    stacked = torch.stack(losses)
    mean = float(stacked.mean())
    if not math.isfinite(mean):
        values = stacked.tolist()
        first = next((i for i, value in enumerate(values) if not math.isfinite(value)), 0)
        raise FloatingPointError(
            f"the loss is {values[first]} at step {step - len(values) + first + 1} of "
            f"{phase.name!r}; lower the unlearner's learning_rate"
        )
    return mean
