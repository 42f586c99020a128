"""STEREO: search for every way back to the concept, then erase them all from the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import BasePlugin, Need
from orchestrator.core.settings import Preset, Presets
from workers.erasure.materials import need_pictures
from workers.interfaces.unlearner import Erasure, OutputSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from workers.diffusion.denoise import NoisePredictor
    from workers.erasure.stops import Stops

    Target = Callable[[int, Tensor, int, Tensor], Tensor]
    """(step, x_t, t, the texts) -> what the model in training is to predict."""


class STEREOSettings(OutputSettings):
    """The rounds of the search, and the final erasure.

    Tuned to the shapes base: sweeps/tuning/stereo.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset({
            "prompts": "bare", "variant": "released", "group": "noxattn", "rounds": 4,
            "search_iterations": 200, "search_rate": 5e-6, "search_guidance": 0.0,
            "inversion_steps": 3000, "inversion_rate": 5e-3, "iterations": 200,
            "learning_rate": 2e-5, "anchor_guidance": 1.0, "negative_guidance": 3.0,
            "batch_size": 1, "start_guidance": 3.0, "sampler_steps": 50,
        }, "ours", "robust-concept-erasing at 86f124f, defaults and README, but for the inversion: "
        "from a random embedding, alone in the prompt, on pictures of the base"),
    }  # fmt: skip

    variant: Literal["paper", "released"] = Field(
        "paper",
        description="at which time step x_t is evaluated: paper: where it stands; released: almost "
        "a sampler's step above",
    )
    group: Literal["xattn", "noxattn"] = Field(
        "xattn",
        description="what is trained: xattn: attn2; noxattn: outside attn2 without output layers "
        "and time embedding",
    )
    rounds: int = Field(2, ge=1, description="times that the concept is erased and found again")
    search_iterations: int = Field(30, ge=1, description="ESD iterations of each round")
    search_rate: float = Field(3e-4, gt=0, description="AdamW's learning rate in the rounds")
    search_guidance: float = Field(0.0, ge=0, description="η of a round's target; at 0 it is ε(∅)")
    inversion_steps: int = Field(30, ge=1, description="textual inversion steps of each round")
    inversion_rate: float = Field(1e-1, gt=0, description="textual inversion's learning rate")
    iterations: int = Field(75, ge=1, description="iterations of the final erasure")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's learning rate at the end")
    negative_guidance: float = Field(
        3.0, ge=0, description="η against the mean over the concept and every found token"
    )
    anchor_guidance: float = Field(1.0, ge=0, description="weight of going towards the anchor")
    anchor: str | None = Field(
        None, description="the concept to go towards at the end; null: the base's own choice"
    )
    images_per_prompt: int = Field(8, ge=1, description="pictures per prompt for the inversion")
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")


class STEREO(Unlearner):
    """Alternate erasing and textual inversion, then erase everything found, once, robustly.

    STEREO (Srivatsan et al., CVPR 2025). Search thoroughly: a round erases the newest way to ask
    (first the concept) from the model as the round finds it, ε the teacher:
    MSE(ε_θ(c), ε(∅) - η (ε(c) - ε(∅))); then textual inversion of a new token on the concept's
    pictures finds the next. Erase robustly once, from the original weights and with the original
    ε* for teacher: for the concept's prompts and the found tokens cᵢ in turn MSE(ε_θ(cᵢ), ε*(∅) +
    w (ε*(a) - ε*(∅)) - η · mean over all cⱼ of (ε*(cⱼ) - ε*(∅))), a the anchor. The model in
    training draws x_t. What the released code calls scale n is η = n - 2 in the search, and w =
    n - 1, η = n + 1 at the end; its default is n = 2. The variant "released" stops after k in 1 …
    N - 2 of N sampler steps and evaluates almost a step above (`as_stereo_released`).
    """

    name = "stereo"
    version = 2
    uses = frozenset({"anchors"})
    joint = True
    jointly = "ours, published for one concept: one set of prompts, pictures and found tokens"
    paper = "Srivatsan et al., CVPR 2025"
    golden = "both targets, time steps, a found token's text, three steps of the search and the end"
    Settings = STEREOSettings
    settings: STEREOSettings

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The released drawing leaves out a sampler's first step and its last."""
        found = super().problems(base, concept)
        if self.settings.variant == "released" and self.settings.sampler_steps < 3:
            found.append(
                "unlearner 'stereo': the variant released needs sampler_steps of 3 or more"
            )
        return found

    def needs(self, base: BasePlugin, erased: ConceptSet) -> Mapping[str, Need]:
        """Pictures of the concept, to invert."""
        prompts = self.all_prompts(base, erased)
        return {"forget": need_pictures(base, prompts, self.settings.images_per_prompt)}

    def passes(self) -> int:
        """Rounds of erasing and inverting, then the end; as if the concept had one prompt."""
        from workers.erasure.stops import drawing_passes

        s = self.settings
        drawing = drawing_passes(s.sampler_steps, s.batch_size, self._stops())
        searched = s.search_iterations * (drawing + 5 * s.batch_size)
        searched += s.inversion_steps * 3 * s.batch_size
        end = drawing + (6 + s.rounds) * s.batch_size
        return s.rounds * searched + s.iterations * end

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Search, go back to the original weights, erase."""
        import torch

        from workers.diffusion.denoise import predictor
        from workers.diffusion.rng import shuffled
        from workers.diffusion.text import embed
        from workers.editing.edits import Weights
        from workers.erasure.negative_guidance import erased_noise
        from workers.training.selection import frozen_copy, select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, s.group)
        original = frozen_copy(pipe.unet, parameters)
        empty, anchors = embed(pipe, [""])[0], embed(pipe, erasure.anchor_prompts)
        known = [embed(pipe, erasure.prompts)]

        def away(teacher: NoisePredictor) -> Target:
            return lambda _, latents, timestep, text: erased_noise(
                teacher, latents, timestep, text, empty, s.search_guidance
            )

        for turn in range(s.rounds):
            begun = predictor(pipe, s.loss_in, frozen_copy(pipe.unet, parameters))
            self._erase(erasure, parameters, known[-1], f"erase {turn}", away(begun))
            known.append(self._invert(erasure, turn))
        with torch.no_grad():
            for name, value in select(original, s.group).items():
                parameters[name].copy_(value)
        everything, teacher = torch.cat(known), predictor(pipe, s.loss_in, original)

        def towards(step: int, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
            rows = shuffled(len(anchors), len(text), erasure.seed, step, "final anchors")
            nothing = teacher(latents, timestep, empty.expand_as(text))
            found = [teacher(latents, timestep, one.expand_as(text)) for one in everything]
            anchor = teacher(latents, timestep, anchors[rows.to(pipe.device)])
            weights = (s.anchor_guidance, s.negative_guidance)
            return final_target(torch.stack(found), anchor, nothing, *weights)

        mean = self._erase(erasure, parameters, everything, "final", towards)
        edit = Weights.of(pipe, [f"unet.{name}" for name in parameters])
        return Unlearned([edit], {"loss": mean, "found": float(s.rounds)})

    def _erase(
        self,
        erasure: Erasure,
        parameters: Mapping[str, Parameter],
        known: Tensor,
        name: str,
        target: Target,
    ) -> float:
        """MSE(ε_θ(x_t, c), `target`) at the texts `known` (n, tokens, width), each in its turn."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import predictor
        from workers.diffusion.rng import shuffled
        from workers.diffusion.text import embed
        from workers.erasure.negative_guidance import draw
        from workers.training.optimise import from_loss, minimise

        s, pipe, is_final = self.settings, erasure.pipe, name == "final"
        student, stops, empty = predictor(pipe, s.loss_in), self._stops(), embed(pipe, [""])[0]

        def loss(step: int) -> Tensor:
            rows = shuffled(len(known), s.batch_size, erasure.seed, step, f"{name} prompts")
            text = known[rows.to(pipe.device)]
            latents, timestep = draw(
                erasure, s, pipe.unet, text, empty, step, stops, stream=f" {name}"
            )
            with torch.no_grad():
                goal = target(step, latents, timestep, text)
            return functional.mse_loss(student(latents, timestep, text), goal)

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

        from workers.diffusion.denoise import predictor
        from workers.diffusion.soft_prompt import encode, new_soft, token_ids
        from workers.erasure.relabel import PictureSet, denoising_loss
        from workers.training.optimise import from_loss, minimise

        s, pipe = self.settings, erasure.pipe
        predict = predictor(pipe, s.loss_in)
        pictures = PictureSet.of(pipe, erasure.materials["forget"])
        ids = token_ids(pipe, [""], 1)
        start = new_soft(pipe, 1, 1, erasure.seed, turn, "inverted token")
        token = {"token": nn.Parameter(start)}

        def loss(step: int) -> Tensor:
            batch = pictures.batch(s.batch_size, erasure.seed, step, f"invert {turn}")
            text = encode(pipe, ids, token["token"]).expand(len(pictures.latents), -1, -1)
            return denoising_loss(predict, batch, text, pictures.target(batch, s.loss_in))

        name = f"invert {turn}"
        before, total = self._place(name)
        minimise(
            erasure, s, token, from_loss(loss), name=name, weight_decay=1e-2,
            iterations=s.inversion_steps, learning_rate=s.inversion_rate,
            before=before, total=total,
        )  # fmt: skip
        with torch.no_grad():
            return encode(pipe, ids, token["token"])

    def _stops(self) -> Stops:
        from workers.erasure.stops import as_stereo_released, at_the_samplers_steps

        is_released = self.settings.variant == "released"
        return as_stereo_released if is_released else at_the_samplers_steps

    def _place(self, name: str) -> tuple[int, int]:
        """The steps before a phase, and all steps."""
        s = self.settings
        each = s.search_iterations + s.inversion_steps
        total = s.rounds * each + s.iterations
        if name == "final":
            return s.rounds * each, total
        kind, turn = name.split()
        return int(turn) * each + (s.search_iterations if kind == "invert" else 0), total


def final_target(
    concepts: Tensor, anchor: Tensor, nothing: Tensor, towards: float, away: float
) -> Tensor:
    """u + `towards` (a - u) - `away` · mean_i(c_i - u); concepts (m, n, c, h, w), the others
    (n, c, h, w).
    """
    against = (concepts - nothing).mean(dim=0)
    return nothing + towards * (anchor - nothing) - away * against
