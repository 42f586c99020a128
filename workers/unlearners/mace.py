"""MACE: refine in closed form, mute attention with LoRA, fuse in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.plugin import BasePlugin, Need
from orchestrator.core.settings import Preset, Presets
from workers.data.files import PlaceText
from workers.erasure.materials import need, need_caption_sums, need_pictures
from workers.interfaces.unlearner import Erasure, TrainSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor


_CELEBRITY = {
    "iterations": 50, "learning_rate": 1e-4, "batch_size": 1, "lam": 0.0, "prior_scale": 1e-4,
    "segmenter": "clipseg",
}  # fmt: skip


class MACESettings(TrainSettings):
    """The three parts. λ and the prior are those of both closed forms, as published.

    Tuned to the shapes base: sweeps/tuning/mace.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-celebrity-1": Preset({**_CELEBRITY, "domain_weight": 8e3}, "ours", ""),
        "sd-celebrity-5": Preset({**_CELEBRITY, "domain_weight": 5e4}, "ours", ""),
        "sd-celebrity-10": Preset({**_CELEBRITY, "domain_weight": 8e4}, "ours", ""),
        "sd-celebrity-100": Preset({**_CELEBRITY, "domain_weight": 2e5}, "ours", ""),
        "sd-art-100": Preset({**_CELEBRITY, "domain_weight": 8e4}, "ours", ""),
        "sd-object": Preset({
            "iterations": 50, "learning_rate": 1e-5, "batch_size": 1, "lam": 1e2,
            "prior_scale": 0.0,
            "segmenter": "clipseg",
        }, "ours", ""),
        "sd-nudity": Preset({
            "iterations": 120, "learning_rate": 1e-5, "batch_size": 1, "prior_scale": 7e-7,
            "domain_weight": 0.0, "mapping": "a person wearing clothes", "timesteps": "uniform",
            "segmenter": "clipseg",
        }, "ours", ""),
    }  # fmt: skip

    variant: Literal["paper", "released"] = Field(
        "paper",
        description="released: part 1 scales its prior twice, by prior_scale squared",
    )
    mapping: str | None = Field(
        None, description="the concept whose values take over; null: the base's own anchor"
    )
    lam: float = Field(1.0, ge=0, description="λ, weight of staying near the weights")
    prior_scale: float = Field(0.1, ge=0, description="s, weight of the caption sums")
    domain_weight: float = Field(
        0.0, ge=0, description="w, weight of the domain's captions beside the general ones"
    )
    general_captions: PlaceText | None = Field(
        None, description="a text file of general captions; null: the retained prompts"
    )
    domain_captions: PlaceText | None = Field(
        None, description="a text file of the domain's captions; null: the retained prompts"
    )
    iterations: int = Field(50, ge=0, description="optimiser steps of the LoRA; 0: parts 1 and 3")
    learning_rate: float = Field(5e-3, gt=0, description="AdamW's learning rate")
    batch_size: int = Field(8, ge=1, description="pictures per step")
    rank: int = Field(1, ge=1, description="rank of the LoRA")
    timesteps: Literal["late", "uniform"] = Field(
        "late", description="late: weighted σ(.05(t-200)) - σ(.05(t-400)); uniform: for nudity"
    )
    images: int = Field(8, ge=1, description="pictures with masks")
    segmenter: Literal["contrast", "clipseg"] = Field(
        "contrast", description="how objects are found (material `masks`)"
    )


class MACE(Unlearner):
    """Remove the concept from the words around it, then from its own words, then fuse.

    MACE (Lu et al., "Mass Concept Erasure in Diffusion Models", CVPR 2024). (1) Closed-form
    refinement of attn2's k, v: the tokens around the concept (before, after, padding) get the
    values of the mapping concept's prompts; λ I and a caption prior hold the rest. (2) A LoRA on
    k, v minimises Σ over layers ‖attention to the concept's tokens inside the object's mask‖² on
    pictures of it, at late time steps. (3) The LoRA is fused in closed form:
    W + ΔW E (λ I + E + s P)⁻¹ with E = Σ e eᵀ over the concept's prompts, which is the paper's
    (λ W + Σ (W + ΔW) e eᵀ + s P1)(λ I + Σ e eᵀ + s P2)⁻¹ for P1 = W P2. P is the general captions'
    sum + w · a domain's. One concept an erasure; the paper fuses many at once.
    """

    name = "mace"
    version = 1
    uses = frozenset({"retained", "anchors"})
    paper = "Lu et al., CVPR 2024"
    Settings = MACESettings
    settings: MACESettings

    def anchor(self, base: BasePlugin, concept: str) -> str:
        """The mapping concept."""
        chosen = self.settings.mapping
        return base.anchor(concept) if chosen is None else str(chosen)

    def needs(self, base: BasePlugin, concept: str) -> Mapping[str, Need]:
        """Pictures, their masks, and the caption sums."""
        s = self.settings
        kept = self.preserved_prompts(base, concept)
        needs = {"general": need_caption_sums(s.general_captions, kept)}
        if s.domain_weight:
            needs["domain"] = need_caption_sums(s.domain_captions, kept)
        if s.iterations:
            prompts = self.prompts(base, concept)[:1]
            pictures = need_pictures(base, prompts, s.images)
            needs["pictures"] = pictures
            needs["masks"] = need("masks", {"object": concept}, pictures, segmenter=s.segmenter)
        return needs

    def passes(self) -> int:
        """The LoRA's training."""
        return self.settings.iterations * 3 * self.settings.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """The three parts, one after another."""
        from workers.erasure.closed_form import projection_edit

        s = self.settings
        prior = erasure.materials["general"]
        if s.domain_weight:
            prior = prior + s.domain_weight * erasure.materials["domain"]
        condition = self._refine(erasure, prior)
        numbers = {"condition": condition}
        if s.iterations:
            factors, numbers["loss"] = self._mute(erasure)
            numbers["condition"] = max(condition, self._fuse(erasure, prior, factors))
        return Unlearned([projection_edit(erasure.pipe)], numbers)

    def _refine(self, erasure: Erasure, prior: Tensor) -> float:
        """Part 1; returns the condition number."""
        from workers.erasure.closed_form import Sums, apply_map, text_projections

        s, pipe = self.settings, erasure.pipe
        sums = Sums.empty(pipe.unet.config.cross_attention_dim)
        sums.move(*surroundings(erasure), 1.0)
        sums.keep_gram(prior, s.prior_scale**2 if s.variant == "released" else s.prior_scale)
        matrix, condition = sums.solve(s.lam, "raise mace's lam or prior_scale")
        apply_map(text_projections(pipe.unet), matrix)
        return condition

    def _mute(self, erasure: Erasure) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
        """Part 2: the LoRA's (down, up) by path, and its last loss."""
        from workers.diffusion.attention import recorded
        from workers.diffusion.denoise import noise_predictor, training_scheduler
        from workers.diffusion.rng import integers, normal
        from workers.diffusion.text import embed, subject_words
        from workers.editing.adapters import GatedLora
        from workers.training.optimise import from_loss, minimise

        s, pipe = self.settings, erasure.pipe
        lora = GatedLora.new(
            pipe.unet,
            erasure.concept,
            s.rank,
            1.0,
            erasure.seed,
            only=("attn2.to_k", "attn2.to_v"),
            gain=3**0.5,
        )
        predict, scheduler = noise_predictor(pipe), training_scheduler(pipe)
        pictures = erasure.materials["pictures"]
        clean, text = pictures.latents.to(pipe.device), embed(pipe, pictures.prompts)
        masks = erasure.materials["masks"].to(pipe.device)
        words = subject_words(pipe, pictures.prompts, erasure.concept)

        def loss(step: int) -> Tensor:
            at = (erasure.seed, step)
            rows = integers(len(clean), s.batch_size, *at, "pictures", pipe.device)
            timesteps = self._timesteps(scheduler.config.num_train_timesteps, erasure.seed, step)
            timesteps = timesteps.to(pipe.device)
            noise = normal(clean[rows].shape, *at, "noise", pipe.device)
            noisy = scheduler.add_noise(clean[rows], noise, timesteps)
            predict(noisy, timesteps, text[rows])
            return attention_inside(maps, words[rows], masks[rows])

        # For the whole training: gradient checkpointing runs a forward pass again on the way back.
        with lora.on(pipe), recorded(pipe.unet) as maps:
            mean = minimise(
                erasure, s, lora.parameters(), from_loss(loss), name="lora", weight_decay=1e-2
            )
        values = lora.tensors()
        return {p: (values[f"{p}.down"], values[f"{p}.up"]) for p in lora.paths()}, mean

    def _timesteps(self, high: int, seed: int, step: int) -> Tensor:
        """Time steps (batch,), on the CPU."""
        import torch

        from workers.diffusion.rng import generator

        t = torch.arange(high, dtype=torch.float64)
        late = torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))
        weights = late if self.settings.timesteps == "late" else torch.ones_like(t)
        draw = generator(seed, step, "timesteps")
        return torch.multinomial(weights, self.settings.batch_size, True, generator=draw)

    def _fuse(
        self, erasure: Erasure, prior: Tensor, factors: Mapping[str, tuple[Tensor, Tensor]]
    ) -> float:
        """Part 3; returns the condition number."""
        import torch

        from workers.diffusion.text import embed
        from workers.erasure.closed_form import checked_condition, solve_right

        s, pipe = self.settings, erasure.pipe
        tokens = embed(pipe, erasure.prompts).flatten(0, 1).cpu().double()
        gram = tokens.T @ tokens
        eye = torch.eye(len(gram), dtype=torch.float64)
        system = s.lam * eye + gram + s.prior_scale * prior
        condition = checked_condition(system, "raise mace's lam or prior_scale")
        layers = dict(pipe.unet.named_modules())
        with torch.no_grad():
            for path, (down, up) in factors.items():
                weight = layers[path].weight
                moved = solve_right(up.double() @ down.double() @ gram, system)
                weight.copy_((weight.cpu().double() + moved).to(weight.dtype))
        return condition


def surroundings(erasure: Erasure) -> tuple[Tensor, Tensor]:
    """Embeddings (n, width) of the tokens around the concept, and of those in their place in the
    mapping concept's prompts. Tokens after a concept are matched from its end.
    """
    import torch

    from workers.diffusion.text import embed, subject_span

    tokenizer = erasure.pipe.tokenizer
    here, there = (embed(erasure.pipe, p) for p in (erasure.prompts, erasure.anchor_prompts))
    sources, targets = [], []
    for index, prompt in enumerate(erasure.prompts):
        first, last = subject_span(tokenizer, prompt, erasure.concept)
        # Token ids from the start token to the last word.
        one, other = (
            tokenizer(text, truncation=True).input_ids[:-1]
            for text in (prompt, erasure.anchor_prompts[index])
        )
        pairs = zip(one, other, strict=False)
        changed = next((i for i, (a, b) in enumerate(pairs) if a != b), len(one))
        end = len(other) - (len(one) - last)
        count = min(here.shape[1] - last, there.shape[1] - end)
        before = min(first, changed)
        sources += [here[index, :before], here[index, last : last + count]]
        targets += [there[index, :before], there[index, end : end + count]]
    return torch.cat(sources), torch.cat(targets)


def attention_inside(maps: Mapping[str, Tensor], words: Tensor, masks: Tensor) -> Tensor:
    """Σ over layers of ‖attention to the words inside the mask‖², a mean over pictures.

    Maps (n, heads, pixels, tokens) by layer, words bool (n, tokens), masks bool (n, height, width).
    """
    import torch

    from workers.diffusion.attention import resized, to_words
    from workers.diffusion.denoise import at_least_fp32

    terms = []
    for probs in to_words(maps, words).values():
        inside = resized(masks, probs.shape[2], masks.shape[1] / masks.shape[2])
        muted = at_least_fp32(probs) * inside[:, None, :, None]
        terms.append(muted.square().sum() / len(probs))
    return torch.stack(terms).sum()
