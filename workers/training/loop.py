"""The one training loop, which fine-tuning and every iterative unlearning run on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from workers.runtime.pace import SIGN_EVERY_S, Every

STEPS_PER_REPORT = 10

Backward = Callable[[int], Tensor]
"""step -> the loss, detached; its gradients are left in the parameters."""
Told = Callable[[int, Tensor], None]
"""(steps done, the losses (n,) of the last n of them)."""


class LossNotFinite(FloatingPointError):
    """A loss was not finite.

    `last` are the (step, loss) pairs before it that nobody has been told; whoever kept all the
    others makes them the whole `curve`.
    """

    def __init__(self, message: str, last: Sequence[tuple[int, float]]) -> None:
        super().__init__(message)
        self.last = last
        self.curve: tuple[tuple[int, float], ...] = ()


@dataclass(kw_only=True)
class Training:
    """What is trained, and how.

    `carried` are tensors that training changes in place beside the parameters (a moving average).
    `rate(step)` is the learning rate; None leaves it as the optimiser has it. `agreed` makes what
    one process asks for that of all that train together. `advice` says what to do about a loss
    that is not finite.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    backward: Backward
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    clip_norm: float | None = None
    rate: Callable[[int], float] | None = None
    on_gradients: Callable[[], None] | None = None
    after_step: Callable[[int], None] | None = None
    agreed: Callable[[bool], bool] = lambda mine: mine
    advice: str = "lower the learning rate"
    name: str = ""


def train(
    what: Training, start: int, stop: int, told: Told, is_due: Callable[[], bool] = lambda: False
) -> None:
    """Take the optimiser steps from `start` to before `stop`.

    `told` hears of the losses every few steps, at the last step, and after a step at which
    `is_due` says that the state is to be saved: what it is called at is a state to go on from.
    Everything random in `what.backward` must be a function of (seed, step): training that is
    resumed then ends in the very weights of one that ran straight through.

    Raises:
        LossNotFinite: the weights are then worthless.
    """
    losses: list[Tensor] = []
    sign = Every(SIGN_EVERY_S)
    for step in range(start, stop):
        if what.rate is not None:
            for group in what.optimizer.param_groups:
                group["lr"] = what.rate(step)
        losses.append(what.backward(step))
        if what.on_gradients is not None:
            what.on_gradients()
        if what.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(what.parameters.values()), what.clip_norm)
        what.optimizer.step()
        what.optimizer.zero_grad(set_to_none=True)
        if what.after_step is not None:
            what.after_step(step)
        done = step + 1
        is_whole = done % STEPS_PER_REPORT == 0 or done == stop
        if is_whole or what.agreed(is_due() or sign.is_due()):
            # Read in batches: reading makes the CPU wait for the GPU.
            read = torch.stack(losses)
            losses.clear()
            _check(what, done, read.tolist())
            told(done, read)
            sign.done()


def _check(what: Training, done: int, losses: Sequence[float]) -> None:
    first = done - len(losses) + 1
    for index, loss in enumerate(losses):
        if not math.isfinite(loss):
            where = f"step {first + index}" + (f" of {what.name!r}" if what.name else "")
            before = list(enumerate(losses[:index], start=first))
            raise LossNotFinite(f"the loss is {loss} at {where}; {what.advice}", before)


GROUP_NUMBERS = ("k", "weight_sum", "lr_max")
"""What schedule-free optimisers count beside the weights' own states."""


def state_of(what: Training, parameter: str, carried: str) -> dict[str, Tensor]:
    """All tensors that training carries from step to step, under two prefixes and "optimizer".

    These are the live ones: copies would double what training takes.
    """
    tensors = {f"{parameter}.{name}": value.detach() for name, value in what.parameters.items()}
    for name, value in what.parameters.items():
        for kind, kept in what.optimizer.state.get(value, {}).items():
            if isinstance(kept, Tensor):
                tensors[f"optimizer.{kind}.{name}"] = kept
            elif isinstance(kept, int | float):
                tensors[f"optimizer_number.{kind}.{name}"] = _as_tensor(kept)
    for index, group in enumerate(what.optimizer.param_groups):
        for kind in GROUP_NUMBERS:
            if kind in group:
                tensors[f"optimizer_group.{kind}.{index}"] = _as_tensor(group[kind])
    return tensors | {f"{carried}.{name}": value for name, value in what.carried.items()}


@torch.no_grad()
def put_state(what: Training, tensors: Mapping[str, Tensor], parameter: str, carried: str) -> None:
    """The inverse of `state_of`, for a training of the same parameters."""
    for name, trained in what.parameters.items():
        trained.copy_(tensors[f"{parameter}.{name}"])
    for name, value in what.carried.items():
        value.copy_(tensors[f"{carried}.{name}"])
    for key, value in tensors.items():
        if key.startswith("optimizer_group."):
            _, kind, index = key.split(".", 2)
            what.optimizer.param_groups[int(index)][kind] = value.item()
        elif key.startswith("optimizer_number."):
            _, kind, name = key.split(".", 2)
            what.optimizer.state.setdefault(what.parameters[name], {})[kind] = value.item()
        elif key.startswith("optimizer."):
            _, kind, name = key.split(".", 2)
            trained = what.parameters[name]
            kept = value.to(trained.device, copy=True)
            what.optimizer.state.setdefault(trained, {})[kind] = kept


def _as_tensor(number: float) -> Tensor:
    """Of 64 bits, so that it comes back as it was."""
    kind = torch.int64 if isinstance(number, int) else torch.float64
    return torch.tensor(number, dtype=kind)
