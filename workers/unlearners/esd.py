"""Erased Stable Diffusion: train the concept's prediction away from the concept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import Erasure, OutputSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from workers.erasure.stops import Stops
    from workers.training.selection import Group

GROUPS: dict[str, Group] = {
    "x": "xattn",
    "x-strict": "xattn_kv",
    "u": "outside_xattn_layers",
    "noxattn": "noxattn",
}
RATES = {"x": 3e-4, "x-strict": 3e-4, "u": 1e-4, "noxattn": 1e-4}
"""Tuned to the shapes base (sweeps/tuning/esd.yaml)."""

_PUBLISHED = {
    "prompts": "bare",
    "batch_size": 1,
    "negative_guidance": 1.0,
    "start_guidance": 3.0,
    "sampler_steps": 50,
    "loss_in": "output",
}
_2023 = {
    **_PUBLISHED,
    "learning_rate": 1e-5,
    "iterations": 1000,
    "drawing": "2023",
    "x_from": "student",
    "precision": "fp32",
}
_NEWER = {
    **_PUBLISHED,
    "learning_rate": 5e-5,
    "iterations": 200,
    "drawing": "newer",
    "x_from": "frozen",
    "precision": "bf16",
}
_2023_SOURCE = "erasing at a2189e9, script of 2023"
_NEWER_SOURCE = (
    "erasing at 25613d2, whose n = 2 is η = 1; but DDIM in place of PNDM, the base's own "
    "size in place of 1024 x 1024, bf16 autocast over fp32 weights in place of bf16 weights"
)


class ESDSettings(OutputSettings):
    """What is trained and for how long. The defaults are tuned to the shapes base.

    Ten sampler steps in place of the published 50 cost a fifth and erase as well there.
    sweeps/tuning/esd.yaml compares them with their neighbours.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-style": Preset({**_2023, "group": "x"}, "released", _2023_SOURCE),
        "sd-object": Preset({**_2023, "group": "noxattn"}, "released", _2023_SOURCE),
        "sd-nudity": Preset({**_2023, "group": "noxattn"}, "released", _2023_SOURCE),
        "sd-newer-x": Preset({**_NEWER, "group": "x"}, "released", _NEWER_SOURCE),
        "sd-newer-x-strict": Preset({**_NEWER, "group": "x-strict"}, "released", _NEWER_SOURCE),
        "sd-newer-u": Preset({**_NEWER, "group": "u"}, "released", _NEWER_SOURCE),
        "sd-celebrity": Preset(
            {**_2023, "group": "x"}, "ours", "sd-style's values: ESD erases no celebrities"
        ),
    }

    group: Literal["x", "x-strict", "u", "noxattn"] = Field(
        "x",
        description="what is trained: x: attn2; x-strict: attn2's k, v; u: Linear and Conv2d "
        "outside attn2; noxattn: that of 2023, outside attn2 without output layers and time "
        "embedding",
    )
    iterations: int = Field(120, ge=1, description="optimiser steps")
    learning_rate: float | None = Field(  # type: ignore[assignment]  # filled in before it is seen
        None,
        gt=0,
        description="Adam's learning rate; null: the group's own, 3e-4 for x and x-strict, "
        "1e-4 for u and noxattn",
    )
    batch_size: int = Field(16, ge=1, description="prompts and noises per step")
    negative_guidance: float = Field(
        1.0, ge=0, description="the paper's η; code that writes the target from ε(c) says η + 1"
    )
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")
    drawing: Literal["newer", "2023"] = Field(
        "newer",
        description="how x_t is drawn: newer: as far as a step of the sampler, evaluated at its "
        "time step; 2023: without the sampler's first step, evaluated at a random time step up to "
        "three steps above",
    )
    x_from: Literal["student", "frozen"] = Field(
        "student", description="who draws x_t: the model in training, or the original"
    )
    erase_from: str | None = Field(
        None,
        description="the text of which the concept is erased and at which the model is trained; "
        "null: the concept's own prompts",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_groups_rate(cls, values: Any) -> Any:
        """The number itself is hashed and stored, so a change of `RATES` cannot go unnoticed."""
        if not isinstance(values, Mapping) or values.get("learning_rate") is not None:
            return values
        preset = cls.PRESETS.get(str(values.get("preset")))
        rate = (preset and preset.values.get("learning_rate")) or RATES.get(
            str(values.get("group", "x"))
        )
        return {**values, "learning_rate": rate}


class ESD(Unlearner):
    """Fine-tune so that the concept's prediction is guided away from the concept.

    ESD (Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, eq. 7):
    MSE(ε_θ(x_t, c), ε*(∅) - η (ε*(c) - ε*(∅))), ε* the frozen original. x_t comes from denoising
    pure noise for some of N DDIM steps under guidance, as many for all of a step's batch. No data,
    no prior term. With `erase_from` a text f, as the newer code has it, x_t is drawn towards f and
    the loss is MSE(ε_θ(x_t, f), ε*(f) - (η + 1) (ε*(c) - ε*(∅))). Both codes compare the model's
    raw outputs (`loss_in`).

    The presets without "newer" are the code of 2023: x for styles, noxattn for objects and nudity,
    x_t by the model in training, evaluated above the level at which it stands. The others are the
    authors' later code.
    """

    name = "esd"
    version = 4
    joint = True
    jointly = "each step draws from all concepts' prompts, as the code of 2023 does"
    paper = "Gandikota et al., ICCV 2023"
    golden = "the whole training of every form: x_t, targets, losses and the weights"
    Settings = ESDSettings
    settings: ESDSettings

    def passes(self) -> int:
        """Drawing x_t, two or three teacher passes, one trained pass."""
        from workers.erasure.stops import drawing_passes

        s = self.settings
        drawing = drawing_passes(s.sampler_steps, s.batch_size, self._stops())
        return s.iterations * (drawing + (6 if s.erase_from is not None else 5) * s.batch_size)

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the group."""
        from torch import Tensor
        from torch.nn import functional

        from workers.diffusion.denoise import predictor
        from workers.diffusion.text import embed
        from workers.erasure.negative_guidance import (
            draw,
            draw_rows,
            erased_noise,
            erased_noise_from,
        )
        from workers.training.optimise import from_loss, train_weights
        from workers.training.selection import frozen_copy, select

        s, pipe, stops = self.settings, erasure.pipe, self._stops()
        parameters = select(pipe.unet, GROUPS[s.group])
        frozen = frozen_copy(pipe.unet, parameters)
        student, teacher = predictor(pipe, s.loss_in), predictor(pipe, s.loss_in, frozen)
        drawer = pipe.unet if s.x_from == "student" else frozen
        prompts, empty = embed(pipe, erasure.prompts), embed(pipe, [""])[0]
        erased_from = None if s.erase_from is None else embed(pipe, [s.erase_from])

        def loss(step: int) -> Tensor:
            concept = draw_rows(prompts, s.batch_size, erasure.seed, step)
            text = concept if erased_from is None else erased_from.expand_as(concept)
            x_t = draw(erasure, s, drawer, text, empty, step, stops)
            if erased_from is None:
                target = erased_noise(teacher, *x_t, concept, empty, s.negative_guidance)
            else:
                target = erased_noise_from(teacher, *x_t, concept, empty, s.negative_guidance, text)
            return functional.mse_loss(student(*x_t, text), target)

        return train_weights(erasure, s, parameters, from_loss(loss))

    def _stops(self) -> Stops:
        from workers.erasure.stops import as_in_2023, at_the_samplers_steps

        return as_in_2023 if self.settings.drawing == "2023" else at_the_samplers_steps
