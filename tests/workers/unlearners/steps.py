"""A method's own steps on the released codes' draws, and what each of them computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import workers.diffusion.denoise
import workers.erasure.relabel
import workers.training.optimise
from workers.erasure.materials import Pictures
from workers.erasure.relabel import NoisyPictures, PictureSet

Drawn = Callable[[int, str], Mapping[str, Any]]
"""(step, stream) -> rows, t and noise of a batch, and a mask if it has one."""


@dataclass
class Steps:
    """Of each optimiser step: its loss, and its gradients' norm before anything is done to them."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    """What predictors gave, call by call."""
    ordinary: list[Tensor] = field(default_factory=list)
    """The ordinary losses, call by call."""
    relabelling: list[Tensor] = field(default_factory=list)

    def loss(self) -> Tensor:
        return torch.stack(self.losses)

    def norm(self) -> Tensor:
        return torch.stack(self.norms)


def watch(monkeypatch) -> Steps:
    """See the steps of the methods that run from here on."""
    steps = Steps()
    optimise, predictor = workers.training.optimise.optimise, workers.diffusion.denoise.predictor

    def watched(erasure, settings, phase):
        backward = phase.backward

        def seen(step):
            steps.losses.append(backward(step))
            found = {
                n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for n, p in phase.parameters.items()
            }
            steps.gradients.append(found)
            steps.norms.append(torch.stack([g.norm() for g in found.values()]).norm())
            return steps.losses[-1]

        phase.backward = seen
        return optimise(erasure, settings, phase)

    def predicting(*args, **kwargs):
        predict = predictor(*args, **kwargs)

        def seen(*inputs):
            found = predict(*inputs)
            steps.outputs.append(found.detach().clone())
            return found

        return seen

    def kept(function, values):
        def seen(*args, **kwargs):
            value = function(*args, **kwargs)
            values.append(value.detach())
            return value

        return seen

    relabel = workers.erasure.relabel
    losses = {"denoising_loss": steps.ordinary, "relabel_loss": steps.relabelling}
    for name, values in losses.items():
        monkeypatch.setattr(relabel, name, kept(getattr(relabel, name), values))
    monkeypatch.setattr(workers.training.optimise, "optimise", watched)
    for module in (relabel, workers.diffusion.denoise):
        monkeypatch.setattr(module, "predictor", predicting)
    return steps


def draw(monkeypatch, drawn: Drawn, noisy: list[Tensor] | None = None) -> None:
    """Have every batch of pictures drawn by `drawn`; each one's x_t is added to `noisy`."""

    def batch(self, count, seed, step, stream):
        given = drawn(step, stream)
        noise, at, rows = given["noise"], given["t"], given["rows"]
        x_t = self.scheduler.add_noise(self.latents[rows], noise, at)
        if noisy is not None:
            noisy.append(x_t)
        return NoisyPictures(x_t, noise, at, rows, given.get("mask"))

    monkeypatch.setattr(PictureSet, "batch", batch)


def pictures(latents: Tensor, prompts: Any) -> Pictures:
    """Pictures of which the latents are known; one prompt is the prompt of them all."""
    images = torch.zeros(len(latents), 3, 32, 32, dtype=torch.uint8)
    return Pictures(
        latents, images, [prompts] * len(latents) if isinstance(prompts, str) else prompts
    )
