"""Ordinary fine-tuning of the UNet, resumable at any step.

Everything random (order of examples, noise, time steps, caption dropout, LoRA's beginning) is a
function of (seed, step, micro-batch), so training resumed at a step goes on exactly as if it had
never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, broadcast
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.errors import ResurgeError
from workers.diffusion.denoise import min_snr_weights, training_scheduler, training_target
from workers.diffusion.lora import Lora
from workers.diffusion.rng import generator, integers, normal, shuffled
from workers.diffusion.text import embed, token_ids
from workers.editing.learned_token import LearnedToken
from workers.interfaces.dataset import Examples
from workers.interfaces.edit import ModelEdit, Undo
from workers.recipes import FinetuneSettings
from workers.runtime.parts import part_size
from workers.runtime.progress import TellProgress
from workers.training.batches import Pictures
from workers.training.loop import LossNotFinite, Training, put_state, state_of, train
from workers.training.optimizers import go_on, new_optimizer, show_average
from workers.training.selection import refuse_half_precision

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


STATE = ("param", "ema")
Part = Literal["unet", "text_encoder"]


@dataclass(frozen=True)
class Batch:
    """x_t (n, c, h, w), time steps (n,), text, what to predict (n, …), and what each counts in the
    loss (n,). The text is embeddings (n, tokens, width), or token ids (n, tokens) where they move
    in training.
    """

    noisy: Tensor
    timesteps: Tensor
    text: Tensor
    target: Tensor
    weights: Tensor

    def parts(self, process: int = 0, processes: int = 1) -> Iterator[tuple[float, Batch]]:
        """What a process computes at a time, with its share of the batch; mostly all of it."""
        count = len(self.noisy)
        low, high = (count * number // processes for number in (process, process + 1))
        size = part_size(high - low)
        for start in range(low, high, size):
            part = Batch(*(v[start : min(start + size, high)] for v in vars(self).values()))
            yield len(part.noisy) / count, part


class Trainer:
    """Fine-tunes `pipe` in place, its UNet and if asked its text encoder, or a token of its own and
    nothing else; call `finish` when done, or reset the pipeline.

    An optimiser on the mean squared error of the scheduler's own target (noise or v) at uniform
    time steps (Ho et al. 2020). Each different caption is embedded once, unless the text encoder or
    a token is trained. What is trained stays in evaluation mode, so that no dropout draws from a
    global generator (Stable Diffusion's dropout is 0 anyway).

    With `prior`, latents (n, c, h, w) of pictures of the class, each micro-batch has as many of
    them as of the data set's, whose loss counts `prior_weight` (Ruiz et al., CVPR 2023).

    Raises:
        ResurgeError: what is trained is in half precision, a package is missing, or a caption does
            not name the token that is to be learned.
    """

    def __init__(
        self,
        pipe: Pipeline,
        settings: FinetuneSettings,
        examples: Examples,
        seed: int,
        prior: Tensor | None = None,
    ) -> None:
        examples = examples.captioned(settings.caption)
        self.pipe, self.settings, self.seed = pipe, settings, seed
        self.step = 0
        self.losses: list[tuple[int, float]] = []
        self._parts: dict[Part, Any] = {"unet": pipe.unet}
        if settings.train_text_encoder:
            self._parts["text_encoder"] = pipe.text_encoder
        for part in self._parts.values():
            refuse_half_precision(dict(part.named_parameters()))
        self._accelerator = accelerator_on(pipe.device.type)
        self._scheduler = training_scheduler(pipe)
        self._pictures = Pictures(pipe, settings, examples, seed)
        self._prior = None if prior is None else prior.to(pipe.device, pipe.vae.dtype)
        captions = sorted(set(examples.captions))
        if settings.adapter == "textual_inversion":
            refuse_unnamed(str(settings.placeholder), examples)
        self.learned, self._forget = new_token(pipe, settings)
        self._is_embedded_in_training = settings.train_text_encoder or self.learned is not None
        as_text = token_ids if self._is_embedded_in_training else embed
        self._text = as_text(pipe, ["", *captions])
        if prior is not None:
            assert settings.prior_prompt is not None
            self._prior_text = as_text(pipe, [settings.prior_prompt])
        row = {caption: index for index, caption in enumerate(captions, start=1)}
        self._text_rows = torch.tensor([row[c] for c in examples.captions], device=pipe.device)
        for part in self._parts.values():
            part.eval().requires_grad_(False)
        if settings.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        self._loras: dict[Part, Lora] = {}
        if settings.has_lora:
            self._loras = {n: Lora(part, settings, seed, n) for n, part in self._parts.items()}
        self._training = self._new_training()

    def _new_training(self) -> Training:
        s = self.settings
        parameters: dict[str, nn.Parameter] = {}
        if self.learned is not None:
            self.learned.value = parameters["token"] = nn.Parameter(self.learned.value)
        for name, part in self._parts.items() if self.learned is None else ():
            own = self._loras[name].parameters() if self._loras else dict(part.named_parameters())
            # The UNet's are called as they were before a text encoder could be trained.
            prefix = "" if name == "unet" else f"{name}."
            parameters |= {f"{prefix}{n}": value for n, value in own.items()}
        for value in parameters.values():
            value.requires_grad_(True)
        average = {n: v.detach().clone() for n, v in parameters.items()} if s.ema_decay else {}
        return Training(
            parameters=parameters,
            optimizer=new_optimizer(s, parameters.values()),
            backward=self._backward,
            agreed=self._agreed,
            rate=lambda step: learning_rate_at(step, s),
            clip_norm=s.clip_norm,
            after_step=self._follow if s.ema_decay else None,
            carried=average,
            advice=f"lower finetune.learning_rate ({s.learning_rate:g})",
        )

    def train_to(
        self,
        stop: int,
        progress: TellProgress | None = None,
        is_due: Callable[[], bool] = lambda: False,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """Train until `stop` optimiser steps are done in all; `losses` has each one's.

        Before the last step the state is saved whenever `is_due` says so, after it has been told.

        Raises:
            LossNotFinite: the weights are then worthless.
        """

        def told(step: int, read: Tensor) -> None:
            self.losses += enumerate(read.tolist(), start=step - len(read) + 1)
            self.step = step
            if progress is not None:
                progress(step, stop, {"loss": self.losses[-1][1]})
            if step < stop and self._agreed(is_due()):
                save()

        try:
            train(self._training, self.step, stop, told, is_due)
        except LossNotFinite as error:
            error.curve = (*self.losses, *error.last)
            raise

    def _backward(self, step: int) -> Tensor:
        """The loss is the mean over the micro-batches, whichever processes computed them."""
        s, here = self.settings, self._accelerator
        total = torch.zeros((), device=self.pipe.device)
        precision = AutocastKwargs(enabled=s.precision == "bf16")
        for micro in range(s.accumulation):
            batch = self._noised(step, micro)
            for share, part in batch.parts(here.process_index, here.num_processes):
                with here.autocast(precision):
                    text = part.text
                    if self._is_embedded_in_training:
                        text = self.pipe.text_encoder(text)[0]
                    found = self.pipe.unet(
                        part.noisy, part.timesteps, encoder_hidden_states=text
                    ).sample
                    loss = self._loss(found.float(), part)  # in fp32 still
                    loss = loss * share / s.accumulation
                here.backward(loss)
                total += loss.detach()
        if here.num_processes > 1:
            total = here.reduce(total, "sum")
            for value in self._training.parameters.values():
                if value.grad is not None:
                    value.grad = here.reduce(value.grad, "sum")
        return total

    def _loss(self, found: Tensor, part: Batch) -> Tensor:
        """Mean square, with the weights of `snr_gamma` and of the prior if they are asked for."""
        if self.settings.snr_gamma is None and self._prior is None:
            return functional.mse_loss(found, part.target.float())
        squares = (found - part.target.float()).square().flatten(1).mean(dim=1)
        return (part.weights * squares).mean()

    def _agreed(self, mine: bool) -> bool:
        """What the first process says, in all of them: they take and report the same steps."""
        if self._accelerator.num_processes == 1:
            return mine
        return bool(broadcast(torch.tensor(int(mine))))

    def _follow(self, step: int) -> None:
        """Move the average towards the parameters."""
        assert self.settings.ema_decay is not None
        values = [p.detach() for p in self._training.parameters.values()]
        average = list(self._training.carried.values())
        torch._foreach_lerp_(average, values, 1 - ema_decay_at(step, self.settings.ema_decay))

    def _noised(self, step: int, micro: int) -> Batch:
        """A step's micro-batch, noised."""
        latents, text = self._batch(step, micro)
        counted = torch.ones(len(latents), device=latents.device)
        if self._prior is not None:
            latents, text, counted = self._with_prior(latents, text, step, micro)
        at = (self.seed, step)
        device = latents.device
        noise = normal(latents.shape, *at, f"noise {micro}", device)
        high = self._scheduler.config.num_train_timesteps
        timesteps = integers(high, len(latents), *at, f"timesteps {micro}", device)
        noisy = self._scheduler.add_noise(latents, noise, timesteps)
        target = training_target(self._scheduler, latents, noise, timesteps)
        gamma = self.settings.snr_gamma
        if gamma is not None:
            counted = counted * min_snr_weights(self._scheduler, timesteps, gamma)
        return Batch(noisy, timesteps, text, target, counted)

    def _with_prior(
        self, latents: Tensor, text: Tensor, step: int, micro: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As many pictures of the class behind a micro-batch, and what each counts (2 · batch,):
        the mean over all is then the mean of the first half and `prior_weight` times the second's.
        """
        assert self._prior is not None and self.settings.prior_weight is not None
        count = len(latents)
        turn = step * self.settings.accumulation + micro
        rows = shuffled(len(self._prior), count, self.seed, turn, "prior order")
        drawn = self._prior[rows.to(self._prior.device, non_blocking=True)]
        asked = self._prior_text.expand(count, *self._prior_text.shape[1:])
        counted = torch.full((2 * count,), 2.0, device=latents.device)
        counted[count:] *= self.settings.prior_weight
        return torch.cat([latents, drawn]), torch.cat([text, asked]), counted

    def _batch(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """Latents (batch, c, h, w) and text (batch, …) of a step's micro-batch."""
        s, chosen = self.settings, self._pictures.chosen(step, micro)
        rows = self._text_rows[chosen.to(self._text_rows.device, non_blocking=True)]
        if s.caption_dropout > 0:
            draw = generator(self.seed, step, f"caption dropout {micro}")
            dropped = torch.rand(s.batch_size, generator=draw) < s.caption_dropout
            dropped = dropped.to(rows.device, non_blocking=True)
            rows = rows.masked_fill(dropped, 0)  # row 0 is the empty caption
        return self._pictures.latents(chosen, step, micro), self._text[rows]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that training carries from step to step, and JSON beside it: to be written at once,
        because on a CPU the tensors are the live ones (copies would double what training takes).
        """
        tensors = {n: value.cpu() for n, value in state_of(self._training, *STATE).items()}
        return tensors, {"trainer": {"step": self.step}, "losses": self.losses}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, in a trainer made with the same arguments."""
        put_state(self._training, tensors, *STATE)
        self.step = int(values["trainer"]["step"])
        self.losses = [(int(step), float(loss)) for step, loss in values["losses"]]

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, `pipe` is the plain model that `finish` would leave; training may go on after.

        The average stands in for the parameters if there is one (of LoRA's factors if it is
        LoRA), and LoRA is merged.
        """
        parameters = list(self._training.parameters.values())
        s = self.settings
        is_averaged = s.ema_decay is not None or s.optimizer == "schedule_free"
        raw = [value.detach().clone() for value in parameters] if is_averaged else []
        self._use_average()
        try:
            with ExitStack() as merged:
                for lora in self._loras.values():
                    merged.enter_context(lora.merged())
                yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, raw, strict=False):
                    parameter.copy_(value)
            go_on(self._training.optimizer)

    def beside(self) -> tuple[ModelEdit, ...]:
        """What was learned that is no weight of the model's: made to it, not part of it."""
        return () if self.learned is None else (self.learned.kept(),)

    def finish(self) -> tuple[ModelEdit, ...]:
        """Make `pipe` a plain pipeline that holds the result; the trainer is then used up.

        What stands beside the weights is returned, and has to be made to the pipeline again.
        """
        self._use_average()
        found = self.beside()
        self._forget()
        for lora in self._loras.values():
            lora.finish()
        if self.settings.gradient_checkpointing:
            self.pipe.unet.disable_gradient_checkpointing()
        for part in self._parts.values():
            part.requires_grad_(False)
        self._training.optimizer.state.clear()
        return found

    @torch.no_grad()
    def _use_average(self) -> None:
        """Put the average, if there is one, into the model."""
        show_average(self._training.optimizer)
        for name, average in self._training.carried.items():
            self._training.parameters[name].copy_(average)


def new_token(pipe: Pipeline, settings: FinetuneSettings) -> tuple[LearnedToken | None, Undo]:
    """The token that textual inversion is to learn, made to `pipe`, and what takes it off again."""
    if settings.adapter != "textual_inversion":
        return None, lambda: None
    assert settings.placeholder is not None and settings.initializer is not None
    learned = LearnedToken.beginning(pipe, settings.placeholder, settings.initializer)
    return learned, learned.apply(pipe)


def refuse_unnamed(token: str, examples: Examples) -> None:
    """See that every picture's caption names the token: without it nothing is learned of it.

    Raises:
        ResurgeError: one does not.
    """
    without = [caption for caption in examples.captions if token not in caption.lower()]
    if without:
        raise ResurgeError(
            f"{len(without)} of {len(examples)} captions do not name the token {token} that is to "
            f"be learned, such as {without[0]!r}; give finetune.caption, 'a photo of {token}'"
        )


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


def ema_decay_at(step: int, decay: float) -> float:
    """The moving average's decay after the step that follows `step` steps, as diffusers' EMAModel.

    0 after the first, (1 + step) / (10 + step) up to `decay` then. With `decay` from the beginning
    a short training would be evaluated by weights that are mostly those it began with: 0.9999
    keeps 99.8% of them over 20 steps.
    """
    return min((1 + step) / (10 + step), decay) if step else 0.0


@cache
def accelerator_on(device: str) -> Accelerator:
    """accelerate of this process, which keeps the device that it began with for good.

    It can do bf16; whether a training does is said at each `autocast`. Models are not given to
    `prepare`: it would leave a changed `forward` in a pipeline that is kept warm. Nor does it count
    micro-batches: its count is the process's, and a batch's parts have different shares.
    """
    made = Accelerator(mixed_precision="bf16", cpu=device == "cpu")
    if made.device.type != device:
        raise RuntimeError(f"this process trains on {made.device.type} and cannot on {device}")
    return made
