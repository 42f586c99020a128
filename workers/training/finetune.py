"""The one training loop: ordinary fine-tuning of the UNet, resumable at any step.

Everything random (order of examples, noise, time steps, caption dropout, LoRA's beginning) is a
function of (seed, step, micro-batch), so training resumed at a step goes on exactly as if it had
never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from workers.diffusion.denoise import training_scheduler, training_target
from workers.diffusion.latents import encode_images
from workers.diffusion.lora import Lora
from workers.diffusion.rng import generator, integers, normal
from workers.diffusion.text import embed
from workers.interfaces.dataset import Examples
from workers.recipes import FinetuneSettings
from workers.runtime.pace import SIGN_EVERY_S, Every
from workers.runtime.parts import part_size
from workers.runtime.progress import TellProgress
from workers.training.optimise import load_optimizer_state, optimizer_state
from workers.training.selection import refuse_half_precision

if TYPE_CHECKING:
    from accelerate import Accelerator

    from workers.interfaces.pipeline import Pipeline


STEPS_PER_REPORT = 10


class LossNotFinite(FloatingPointError):
    """A loss was not finite; `curve` has the (step, loss) pairs before it."""

    def __init__(self, message: str, curve: Sequence[tuple[int, float]]) -> None:
        super().__init__(message)
        self.curve = tuple(curve)


@dataclass(frozen=True)
class Batch:
    """x_t (n, c, h, w), time steps (n,), text (n, tokens, width), and what to predict (n, …)."""

    noisy: Tensor
    timesteps: Tensor
    text: Tensor
    target: Tensor

    def parts(self) -> Iterator[tuple[float, Batch]]:
        """What is computed at a time, with its share of the batch; mostly the batch itself."""
        count = len(self.noisy)
        for start in range(0, count, size := part_size(count)):
            part = Batch(*(v[start : start + size] for v in vars(self).values()))
            yield len(part.noisy) / count, part


class Trainer:
    """Fine-tunes `pipe.unet` in place; call `finish` when done, or reset the pipeline.

    AdamW on the mean squared error of the scheduler's own target (noise or v) at uniform time
    steps (Ho et al. 2020). The data are encoded once: latents as the mode of the autoencoder's
    posterior, which needs no random numbers, and each different caption's embedding. The UNet
    stays in evaluation mode, so that no dropout draws from a global generator (Stable Diffusion's
    dropout is 0 anyway).

    Raises:
        ResurgeError: the UNet is in half precision.
    """

    def __init__(
        self,
        pipe: Pipeline,
        settings: FinetuneSettings,
        examples: Examples,
        seed: int,
    ) -> None:
        self.pipe, self.settings, self.seed = pipe, settings, seed
        self.step = 0
        self._pending: list[tuple[int, Tensor]] = []
        self._accelerator = new_accelerator(settings.precision, pipe.device)
        self._scheduler = training_scheduler(pipe)
        self._latents = encode_images(pipe, examples)
        captions = sorted(set(examples.captions))
        self._text = embed(pipe, ["", *captions])
        row = {caption: index for index, caption in enumerate(captions, start=1)}
        self._text_rows = torch.tensor([row[c] for c in examples.captions], device=pipe.device)
        self._prepare_parameters()

    def _prepare_parameters(self) -> None:
        s, unet = self.settings, self.pipe.unet
        refuse_half_precision(dict(unet.named_parameters()))
        unet.eval().requires_grad_(False)
        if s.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self._lora = Lora(unet, s, self.seed) if s.adapter == "lora" else None
        self._params = self._lora.parameters() if self._lora else dict(unet.named_parameters())
        for value in self._params.values():
            value.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(
            self._params.values(),
            lr=s.learning_rate,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
            fused=True,
        )
        self._ema = [p.detach().clone() for p in self._params.values()] if s.ema_decay else None

    def train_to(
        self,
        step: int,
        progress: TellProgress | None = None,
        is_due: Callable[[], bool] = lambda: False,
    ) -> list[tuple[int, float]]:
        """Train until `step` optimiser steps are done in all; return the new (step, loss) pairs.

        It returns early, after any step, where `is_due` says that the state is to be saved.

        Raises:
            LossNotFinite: the weights are then worthless.
        """
        losses: list[tuple[int, float]] = []
        is_over, sign = False, Every(SIGN_EVERY_S)
        # The loss is read in batches: reading it at every step would make the CPU wait for the GPU.
        while self.step < step and not is_over:
            loss = self._one_step()
            self.step += 1
            self._pending.append((self.step, loss))
            is_over = is_due()
            is_last = self.step == step or is_over
            if len(self._pending) >= STEPS_PER_REPORT or is_last or sign.is_due():
                losses += self._read(losses)
                if progress is not None:
                    progress(self.step, step, {"loss": losses[-1][1]})
                sign.done()
        return losses

    def _one_step(self) -> Tensor:
        s = self.settings
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, s)
        total = torch.zeros((), device=self.pipe.device)
        for micro in range(s.accumulation):
            for share, part in self._noised(micro).parts():
                with self._accelerator.autocast():
                    loss = self._loss(part) * share / s.accumulation
                self._accelerator.backward(loss)
                total += loss.detach()
        if s.clip_norm is not None:
            self._accelerator.clip_grad_norm_(list(self._params.values()), s.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            values = [p.detach() for p in self._params.values()]
            torch._foreach_lerp_(self._ema, values, 1 - s.ema_decay)
        return total

    def _loss(self, batch: Batch) -> Tensor:
        """Mean squared error, a scalar; fp32 even under autocast."""
        predicted = self.pipe.unet(
            batch.noisy, batch.timesteps, encoder_hidden_states=batch.text
        ).sample
        return functional.mse_loss(predicted.float(), batch.target.float())

    def _noised(self, micro: int) -> Batch:
        """This step's micro-batch, noised."""
        latents, text = self._batch(micro)
        at = (self.seed, self.step)
        device = latents.device
        noise = normal(latents.shape, *at, f"noise {micro}", device)
        high = self._scheduler.config.num_train_timesteps
        timesteps = integers(high, len(latents), *at, f"timesteps {micro}", device)
        noisy = self._scheduler.add_noise(latents, noise, timesteps)
        target = training_target(self._scheduler, latents, noise, timesteps)
        return Batch(noisy, timesteps, text, target)

    def _batch(self, micro: int) -> tuple[Tensor, Tensor]:
        """Latents (batch, c, h, w) and text (batch, tokens, width) of this step's micro-batch."""
        s, count = self.settings, len(self._latents)
        start = (self.step * s.accumulation + micro) * s.batch_size
        places = range(start, start + s.batch_size)
        chosen = torch.tensor([_order(self.seed, p // count, count)[p % count] for p in places])
        chosen = chosen.to(self._latents.device, non_blocking=True)
        rows = self._text_rows[chosen]
        if s.caption_dropout > 0:
            draw = generator(self.seed, self.step, f"caption dropout {micro}")
            dropped = torch.rand(s.batch_size, generator=draw) < s.caption_dropout
            dropped = dropped.to(rows.device, non_blocking=True)
            rows = rows.masked_fill(dropped, 0)  # row 0 is the empty caption
        return self._latents[chosen], self._text[rows]

    def _read(self, before: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        """The losses since the last look; those `before` them are for the error."""
        values = torch.stack([loss for _, loss in self._pending]).tolist()
        read = [(step, value) for (step, _), value in zip(self._pending, values, strict=True)]
        self._pending.clear()
        for index, (step, value) in enumerate(read):
            if not math.isfinite(value):
                raise LossNotFinite(
                    f"the loss is {value} at step {step}; "
                    f"lower finetune.learning_rate ({self.settings.learning_rate:g})",
                    [*before, *read[:index]],
                )
        return read

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the loop carries from step to step, and JSON beside it: to be written at once,
        because on a CPU the tensors are the live ones (copies would double what training takes).
        """
        tensors = {f"param.{name}": value for name, value in self._params.items()}
        tensors |= optimizer_state(self._optimizer, self._params)
        if self._ema is not None:
            tensors |= {f"ema.{n}": e for n, e in zip(self._params, self._ema, strict=True)}
        return {n: value.detach().to("cpu") for n, value in tensors.items()}, {"step": self.step}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, in a trainer made with the same arguments."""
        for name, value in self._params.items():
            value.copy_(tensors[f"param.{name}"])
        load_optimizer_state(self._optimizer, self._params, tensors)
        if self._ema is not None:
            for name, average in zip(self._params, self._ema, strict=True):
                average.copy_(tensors[f"ema.{name}"])
        self.step = int(meta["step"])
        self._pending.clear()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, `pipe` is the plain model that `finish` would leave; training may go on after.

        The moving average stands in for the parameters if there is one (of LoRA's factors if it is
        LoRA), and LoRA is merged.
        """
        raw = self._use_average()
        try:
            if self._lora is None:
                yield
            else:
                with self._lora.merged():
                    yield
        finally:
            self._put_back(raw)

    def finish(self) -> None:
        """Make `pipe` a plain pipeline that holds the result; the trainer is then used up."""
        self._use_average()
        if self._lora is not None:
            self._lora.finish()
        if self.settings.gradient_checkpointing:
            self.pipe.unet.disable_gradient_checkpointing()
        self.pipe.unet.requires_grad_(False)
        self._optimizer.state.clear()

    @torch.no_grad()
    def _use_average(self) -> list[Tensor] | None:
        """Put the moving average into the model; return the parameters that it displaced."""
        if self._ema is None:
            return None
        raw = [value.detach().clone() for value in self._params.values()]
        self._put_back(self._ema)
        return raw

    @torch.no_grad()
    def _put_back(self, values: list[Tensor] | None) -> None:
        if values is not None:
            for parameter, value in zip(self._params.values(), values, strict=True):
                parameter.copy_(value)


def learning_rate_at(step: int, settings: FinetuneSettings) -> float:
    """The rate of the step after `step` steps: linear warm-up, then the schedule's decay to 0."""
    warmup = settings.warmup_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * left


def new_accelerator(precision: str, device: torch.device) -> Accelerator:
    """accelerate for one process on `device`: autocast, backward and clipping, nothing else.

    Models are not given to `prepare`: it would leave a changed `forward` in a pipeline that is
    kept warm.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # accelerate keeps the first precision and device of a process for good; a worker needs both
    # to be each task's own.
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed = "bf16" if precision == "bf16" else "no"
    return Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order of an epoch: every example once."""
    return tuple(torch.randperm(count, generator=generator(seed, epoch, "order")).tolist())
