"""STEREO: search for every way back to the concept, then erase them all from the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from orchestrator.core.plugin import BasePlugin, Need
from orchestrator.core.settings import Preset, Presets
from workers.erasure.materials import need_pictures
from workers.interfaces.unlearner import Erasure, TrainSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import UNet


class STEREOSettings(TrainSettings):
    """The rounds of the search, and the final erasure.

    Tuned to the shapes base: sweeps/tuning/stereo.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "rounds": 4, "search_iterations": 200, "search_rate": 5e-6, "inversion_steps": 3000,
            "inversion_rate": 5e-3, "iterations": 200, "learning_rate": 2e-5, "batch_size": 1,
            "sampler_steps": 50,
        }, "ours", ""),
    }  # fmt: skip

    rounds: int = Field(2, ge=1, description="times that the concept is erased and found again")
    search_iterations: int = Field(30, ge=1, description="ESD iterations of each round")
    search_rate: float = Field(3e-4, gt=0, description="AdamW's learning rate in the rounds")
    inversion_steps: int = Field(30, ge=1, description="textual inversion steps of each round")
    inversion_rate: float = Field(1e-1, gt=0, description="textual inversion's learning rate")
    iterations: int = Field(75, ge=1, description="iterations of the final erasure")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's learning rate at the end")
    negative_guidance: float = Field(1.0, ge=0, description="η against each found token")
    anchor_guidance: float = Field(1.0, ge=0, description="weight of going towards the anchor")
    anchor: str | None = Field(
        None, description="the concept to go towards at the end; null: the base's own choice"
    )
    images_per_prompt: int = Field(8, ge=1, description="pictures per prompt for the inversion")
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")


class STEREO(Unlearner):
    """Alternate erasing and textual inversion, then erase everything found, once, robustly.

    STEREO (Srivatsan et al., CVPR 2025). Search thoroughly: rounds of ESD on the concept and the
    tokens found so far, each followed by textual inversion of a new token on the concept's pictures
    in the erased model. Erase robustly once, from the original weights: for the concept's prompts
    and every found token cᵢ, MSE(ε_θ(cᵢ), ε*(∅) + w (ε*(a) - ε*(∅)) - η (ε*(cᵢ) - ε*(∅))), a the
    anchor: one compositional target (weights of the composition: M). attn2.
    """

    name = "stereo"
    version = 1
    uses = frozenset({"anchors"})
    paper = "Srivatsan et al., CVPR 2025"
    Settings = STEREOSettings
    settings: STEREOSettings

    def needs(self, base: BasePlugin, concept: str) -> Mapping[str, Need]:
        """Pictures of the concept, to invert."""
        prompts = self.prompts(base, concept)
        return {"forget": need_pictures(base, prompts, self.settings.images_per_prompt)}

    def passes(self) -> int:
        """Rounds of erasing and inverting, then the end."""
        from workers.erasure.negative_guidance import drawing_passes

        s = self.settings
        each = drawing_passes(s.sampler_steps, s.batch_size) + 5 * s.batch_size
        searched = s.rounds * (s.search_iterations * each + s.inversion_steps * 3 * s.batch_size)
        return searched + s.iterations * (each + s.batch_size)

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Search, go back to the original weights, erase."""
        import torch

        from workers.diffusion.text import embed
        from workers.editing.edits import Weights
        from workers.training.selection import frozen_copy, select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, "xattn")
        frozen = frozen_copy(pipe.unet, parameters)
        known = embed(pipe, erasure.prompts)
        for turn in range(s.rounds):
            self._erase(erasure, frozen, known, f"erase {turn}")
            found = self._invert(erasure, turn)
            known = torch.cat([known, found])
        with torch.no_grad():
            for name, value in select(frozen, "xattn").items():
                parameters[name].copy_(value)
        mean = self._erase(erasure, frozen, known, "final")
        edit = Weights.of(pipe, [f"unet.{name}" for name in parameters])
        return Unlearned([edit], {"loss": mean, "found": float(s.rounds)})

    def _erase(self, erasure: Erasure, frozen: UNet, known: Tensor, name: str) -> float:
        """ESD against `known` (n, tokens, width); the final one goes towards the anchor."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.text import embed
        from workers.erasure.negative_guidance import draw, draw_rows
        from workers.training.optimise import from_loss, minimise
        from workers.training.selection import select

        s, pipe, is_final = self.settings, erasure.pipe, name == "final"
        parameters = select(pipe.unet, "xattn")
        student, teacher = noise_predictor(pipe), noise_predictor(pipe, frozen)
        empty, anchors = embed(pipe, [""])[0], embed(pipe, erasure.anchor_prompts)
        towards = s.anchor_guidance if is_final else 0.0

        def loss(step: int) -> Tensor:
            text = draw_rows(known, s.batch_size, erasure.seed, step, f"{name} prompts")
            anchor = draw_rows(anchors, s.batch_size, erasure.seed, step, f"{name} anchors")
            latents, timestep = draw(erasure, s, pipe.unet, text, empty, step)
            with torch.no_grad():
                nothing = teacher(latents, timestep, empty.expand_as(text))
                target = nothing - s.negative_guidance * (
                    teacher(latents, timestep, text) - nothing
                )
                if towards:
                    target += towards * (teacher(latents, timestep, anchor) - nothing)
            return functional.mse_loss(student(latents, timestep, text), target)

        before, total = self._place(name)
        return minimise(
            erasure, s, parameters, from_loss(loss), name=name, weight_decay=1e-2,
            iterations=s.iterations if is_final else s.search_iterations,
            learning_rate=s.learning_rate if is_final else s.search_rate,
            before=before, total=total,
        )  # fmt: skip

    def _invert(self, erasure: Erasure, turn: int) -> Tensor:
        """Textual inversion (Gal et al., ICLR 2023): the embedding (1, tokens, width) of a prompt
        of one new token that draws the concept's pictures with the erased model.
        """
        import torch
        from torch import nn

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.soft_prompt import encode, new_soft, token_ids
        from workers.erasure.relabel import PictureSet, denoising_loss
        from workers.training.optimise import from_loss, minimise

        s, pipe = self.settings, erasure.pipe
        predict = noise_predictor(pipe)
        pictures = PictureSet.of(pipe, erasure.materials["forget"])
        ids = token_ids(pipe, [""], 1)
        start = new_soft(pipe, 1, 1, erasure.seed, turn, "inverted token")
        token = {"token": nn.Parameter(start)}

        def loss(step: int) -> Tensor:
            batch = pictures.batch(s.batch_size, erasure.seed, step, f"invert {turn}")
            text = encode(pipe, ids, token["token"]).expand(len(pictures.latents), -1, -1)
            return denoising_loss(predict, batch, text)

        name = f"invert {turn}"
        before, total = self._place(name)
        minimise(
            erasure, s, token, from_loss(loss), name=name, iterations=s.inversion_steps,
            learning_rate=s.inversion_rate, before=before, total=total,
        )  # fmt: skip
        with torch.no_grad():
            return encode(pipe, ids, token["token"])

    def _place(self, name: str) -> tuple[int, int]:
        """The steps before a phase, and all steps."""
        s = self.settings
        each = s.search_iterations + s.inversion_steps
        total = s.rounds * each + s.iterations
        if name == "final":
            return s.rounds * each, total
        kind, turn = name.split()
        return int(turn) * each + (s.search_iterations if kind == "invert" else 0), total
