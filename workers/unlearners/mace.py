"""MACE: refine in closed form, mute attention with LoRA, fuse in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin, Need
from orchestrator.core.settings import Preset, Presets
from workers.data.files import PlaceText
from workers.erasure.materials import need, need_caption_sums, need_pictures
from workers.interfaces.unlearner import Erasure, Prompts, TrainSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline, Tokenizer

    Factors = Mapping[str, tuple[Tensor, Tensor]]

ADVICE = "raise mace's lam or prior_scale, or give it more general_captions"

TEMPLATES = tuple(
    """\
a photo of {concept}
a picture of {concept}
an image of {concept}
{concept}
a photograph that shows {concept}
{concept} in a photograph
a close-up of {concept}
a portrait of {concept}
a wide shot of {concept}
a sharp photo of {concept}
a blurry photo of {concept}
an old photo of {concept}
a black and white photo of {concept}
a colourful picture of {concept}
{concept} in bright daylight
{concept} at night
{concept} indoors
{concept} outdoors
{concept} on a plain background
{concept} in front of a crowd
{concept} in the distance
{concept}, seen from the side
a painting of {concept}
a drawing of {concept}
a pencil sketch of {concept}
a detailed illustration of {concept}
a computer rendering of {concept}
a poster of {concept}
a film still with {concept}
a magazine cover with {concept}""".splitlines()
)
"""Thirty, as many as the released code augments a concept with; its words are not ours to take."""

_SD = {
    "variant": "released", "prompts": "augmented", "rank": 1, "batch_size": 1, "images": 8,
    "end_tokens": True, "segmenter": "clipseg",
}  # fmt: skip
_CELEBRITY = {
    **_SD, "iterations": 50, "learning_rate": 1e-4, "lam": 0.0, "prior_scale": 1e-4,
    "timesteps": "late",
}  # fmt: skip


def _ours(values: Mapping[str, Any], folder: str, note: str) -> Preset:
    source = f"the numbers of MACE's configs/{folder}; templates, captions and any masks are not"
    return Preset(values, "ours", f"{source} its own; {note}")


def _celebrities(count: int, domain_weight: float) -> Preset:
    values = {**_CELEBRITY, "domain_weight": domain_weight}
    together = f"for {count} erased jointly" if count > 1 else "one celebrity, as there"
    return _ours(values, "celebrity", together)


SIZES = {"sd-celebrity-5": 5, "sd-celebrity-10": 10, "sd-celebrity-100": 100, "sd-art-100": 100}
"""Presets whose numbers were chosen for so many concepts, erased jointly."""
SEEDS_APART = 1_000_003
"""Between the seeds of the LoRAs of two concepts."""


class MACESettings(TrainSettings):
    """The three parts. λ and the prior are those of both closed forms, as published.

    Tuned to the shapes base: sweeps/tuning/mace.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-celebrity-1": _celebrities(1, 8e3),
        "sd-celebrity-5": _celebrities(5, 5e4),
        "sd-celebrity-10": _celebrities(10, 8e4),
        "sd-celebrity-100": _celebrities(100, 2e5),
        "sd-art-100": _ours(
            {**_CELEBRITY, "domain_weight": 8e4, "mapping": "art", "segmenter": "none"},
            "art",
            "for 100 artists erased jointly",
        ),
        "sd-object": _ours({
            **_SD, "iterations": 50, "learning_rate": 1e-5, "lam": 1e2, "prior_scale": 0.0,
            "domain_weight": 0.0, "timesteps": "late",
        }, "object", "λ is the automobile's (the bird's is 10, the ship's 1000)"),
        "sd-nudity": _ours({
            **_SD, "iterations": 120, "learning_rate": 1e-5, "lam": 0.0, "prior_scale": 7e-7,
            "domain_weight": 0.0, "mapping": "a person wearing clothes", "timesteps": "uniform",
        }, "explicit_content", "four words erased together there, one here"),
    }  # fmt: skip

    prompts: Literal["augmented"] | Prompts = Field(  # type: ignore[assignment]  # one word more
        "bare",
        description="what is refined and fused: templates; augmented: thirty of ours, as many as "
        "were released; bare: the concept and nothing else; base: the base model's own prompts",
    )
    variant: Literal["paper", "released"] = Field(
        "paper",
        description="released: part 1 scales its prior by prior_scale squared, the LoRA's loss "
        "sums norms instead of their squares, and prompts that match their mapping in different "
        "numbers of tokens are refused",
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
    end_tokens: bool = Field(
        False,
        description="whether attention to the end token and to padding with it is muted as well, "
        "as in every released configuration",
    )
    timesteps: Literal["late", "uniform"] = Field(
        "late", description="late: weighted σ(.05(t-200)) - σ(.05(t-400)); uniform: for nudity"
    )
    images: int = Field(8, ge=1, description="pictures with masks")
    segmenter: Literal["contrast", "clipseg", "none"] = Field(
        "contrast",
        description="how objects are found (material `masks`); none: the whole picture, for styles",
    )


class MACE(Unlearner):
    """Remove the concept from the words around it, then from its own words, then fuse.

    MACE (Lu et al., "Mass Concept Erasure in Diffusion Models", CVPR 2024). (1) Closed-form
    refinement of attn2's k, v: the tokens around the concept (before, after, padding) get the
    values of the mapping concept's prompts; λ I and a caption prior hold the rest. (2) A LoRA on
    k, v minimises Σ over layers ‖attention to the concept's tokens inside the object's mask‖² on
    pictures of it, at late time steps. (3) The LoRA is fused in closed form, W⁰ being the weights
    before all and W those after (1): (λ W + (W + ΔW) E + s W⁰ P)(λ I + E + s P)⁻¹ with E = Σ e eᵀ
    over all tokens of the concept's prompts. P is the general captions' sum + w · a domain's.

    `variant: released` scales the prior of (1) by s², sums ‖·‖ in (2), and refuses prompts of
    which different numbers of tokens are around the concept, as the published code does. In both
    the LoRA begins with `down` from N(0, 1/rank²), gradients are clipped at 1, and masks are
    brought to a layer's resolution by nearest neighbour, on which the paper is silent. Of several
    concepts (1) moves all tokens at once, (2) trains a LoRA for each on what (1) left, and (3)
    sums ΔW E and E over the concepts.
    """

    name = "mace"
    version = 2
    uses = frozenset({"retained", "anchors"})
    joint = True
    jointly = "a LoRA a concept, all fused in one closed form, as published"
    trains_each = True
    paper = "Lu et al., CVPR 2024"
    golden = (
        "tokens, both closed forms, the LoRA's beginning, loss and updates, time steps; not the "
        "fusion of several concepts"
    )
    Settings = MACESettings
    settings: MACESettings

    @classmethod
    def doubts(cls, used: Sequence[MACESettings]) -> list[str]:
        """Without λ the captions alone must fill the embeddings' whole space."""
        if not any(s.lam == 0 and s.general_captions is None for s in used):
            return []
        return [
            "mace's lam is 0 and the retained prompts are all that holds its closed forms, which "
            "may then have no solution; give it general_captions (the published used hundreds of "
            "thousands), or raise lam"
        ]

    def prompts(self, base: BasePlugin, concept: str) -> tuple[str, ...]:
        """As they are chosen."""
        if self.settings.prompts != "augmented":
            return super().prompts(base, concept)
        return tuple(template.replace("{concept}", concept) for template in TEMPLATES)

    def anchor(self, base: BasePlugin, concept: str) -> str:
        """The mapping concept."""
        chosen = self.settings.mapping
        return base.anchor(concept) if chosen is None else str(chosen)

    def needs(self, base: BasePlugin, erased: ConceptSet) -> Mapping[str, Need]:
        """Pictures, their masks, and the caption sums."""
        s = self.settings
        kept = self.kept_prompts(base, erased)
        needs = {"general": need_caption_sums(s.general_captions, kept)}
        if s.domain_weight:
            needs["domain"] = need_caption_sums(s.domain_captions, kept)
        is_alone = len(erased.concepts) == 1
        for target in self.targets(base, erased) if s.iterations else ():
            concept, of = target.concept, "" if is_alone else f" of {target.concept}"
            pictures = need_pictures(base, target.prompts[:1], s.images)
            needs[f"pictures{of}"] = pictures
            if s.segmenter != "none":
                masks = need("masks", {"object": concept}, pictures, segmenter=s.segmenter)
                needs[f"masks{of}"] = masks
        return needs

    def problems_of(self, base: BasePlugin, erased: ConceptSet) -> list[str]:
        """A preset for a set of some size is for no other: its weights go with the number."""
        found, preset = super().problems_of(base, erased), self.settings.preset or ""
        wanted, got = SIZES.get(preset), len(erased.concepts)
        if wanted is not None and got != wanted:
            found.append(
                f"unlearner 'mace': the preset {preset} is for {wanted} concepts erased jointly "
                f"but {erased.name!r} has {got}; take another preset, or write its values out"
            )
        return found

    def passes(self) -> int:
        """The LoRA's training."""
        return self.settings.iterations * 3 * self.settings.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """The three parts, one after another."""
        from workers.erasure.closed_form import projection_edit, projections
        from workers.training.optimise import one_of

        s = self.settings
        original = {
            path: layer.weight.detach().to("cpu", copy=True)
            for path, layer in projections(erasure.pipe.unet).items()
        }
        prior = erasure.materials["general"]
        if s.domain_weight:
            prior = prior + s.domain_weight * erasure.materials["domain"]
        condition = self._refine(erasure, prior)
        numbers: dict[str, float] = {}
        each, factors = _apart(erasure), []
        for number, one in enumerate(each if s.iterations else ()):
            phase = one_of(number, len(each), s.iterations, "lora")
            made, loss = self._mute(one, **phase)
            factors.append(made)
            numbers["loss"] = numbers.get("loss", 0.0) + loss / len(each)
        fused = self._fuse(erasure, prior, original, factors)
        numbers["condition"] = max(condition, fused)
        return Unlearned([projection_edit(erasure.pipe)], numbers)

    def _refine(self, erasure: Erasure, prior: Tensor) -> float:
        """Part 1; returns the condition number."""
        from workers.erasure.closed_form import Sums, apply_map, text_projections

        s, pipe = self.settings, erasure.pipe
        is_released = s.variant == "released"
        sums = Sums.empty(pipe.unet.config.cross_attention_dim)
        sums.move(*surroundings(erasure, is_released), 1.0)
        sums.keep_gram(prior, s.prior_scale**2 if is_released else s.prior_scale)
        matrix, condition = sums.solve(s.lam, ADVICE)
        apply_map(text_projections(pipe.unet), matrix)
        return condition

    def _mute(self, erasure: Erasure, **phase: Any) -> tuple[Factors, float]:
        """Part 2, of one concept: the LoRA's (down, up) by path, and its last loss."""
        from workers.diffusion.attention import recorded
        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.text import embed, end_tokens, subject_words
        from workers.editing.adapters import GatedLora
        from workers.training.optimise import from_loss, minimise

        s, pipe = self.settings, erasure.pipe
        start = beginning(pipe, s.rank, erasure.seed)
        lora = GatedLora(start, erasure.concept, 1.0, is_gated=False)
        predict = noise_predictor(pipe)
        prompts = erasure.materials["pictures"].prompts
        text, words = embed(pipe, prompts), subject_words(pipe, prompts, erasure.concept)
        if s.end_tokens:
            words = words | end_tokens(pipe, prompts)
        masks = erasure.materials.get("masks")
        masks = None if masks is None else masks.to(pipe.device)

        def loss(step: int) -> Tensor:
            rows, noisy, timesteps = self._noised(erasure, step)
            predict(noisy, timesteps, text[rows])
            norms = muted_norms(maps, words[rows], None if masks is None else masks[rows])
            summed: Tensor = (norms if s.variant == "released" else norms.square()).sum(dim=0)
            return summed.mean()

        # For the whole training: gradient checkpointing runs a forward pass again on the way back.
        with lora.on(pipe), recorded(pipe.unet) as maps:
            mean = minimise(
                erasure, s, lora.parameters(), from_loss(loss), weight_decay=1e-2,
                clip_norm=1.0, **phase,
            )  # fmt: skip
        values = lora.tensors()
        return {p: (values[f"{p}.down"], values[f"{p}.up"]) for p in lora.paths()}, mean

    def _noised(self, erasure: Erasure, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which pictures (batch,), their x_t (batch, c, h, w), and t (batch,)."""
        import torch

        from workers.diffusion.denoise import training_scheduler
        from workers.diffusion.rng import generator, integers, normal

        s, pipe, at = self.settings, erasure.pipe, (erasure.seed, step)
        scheduler = training_scheduler(pipe)
        clean = erasure.materials["pictures"].latents.to(pipe.device)
        rows = integers(len(clean), s.batch_size, *at, "pictures", pipe.device)
        weights = timestep_weights(s.timesteps, scheduler.config.num_train_timesteps)
        timesteps = torch.multinomial(
            weights, s.batch_size, True, generator=generator(*at, "timesteps")
        ).to(pipe.device)
        noise = normal(clean[rows].shape, *at, "noise", pipe.device)
        return rows, scheduler.add_noise(clean[rows], noise, timesteps), timesteps

    def _fuse(
        self,
        erasure: Erasure,
        prior: Tensor,
        original: Mapping[str, Tensor],
        factors: Sequence[Factors],
    ) -> float:
        """Part 3, with a LoRA a concept or none; returns the condition number.

        Written as W + (Σ ΔW E + s (W⁰ - W) P)(λ I + Σ E + s P)⁻¹, whose small term takes the
        rounding.
        """
        import torch

        from workers.diffusion.text import embed
        from workers.erasure.closed_form import checked_condition, projections, solve_right

        s, pipe = self.settings, erasure.pipe
        tokens = [
            embed(pipe, target.prompts).flatten(0, 1).cpu().double() for target in erasure.targets
        ]
        grams = [rows.T @ rows for rows in tokens]
        gram = torch.stack(grams).sum(dim=0)
        eye = torch.eye(len(gram), dtype=torch.float64)
        system = s.lam * eye + gram + s.prior_scale * prior
        condition = checked_condition(system, ADVICE)
        with torch.no_grad():
            for path, layer in projections(pipe.unet).items():
                weight = layer.weight.cpu().double()
                moved = s.prior_scale * (original[path].double() - weight) @ prior
                for own, change in zip(grams, factors, strict=False):
                    if path in change:
                        down, up = change[path]
                        moved += up.cpu().double() @ down.cpu().double() @ own
                layer.weight.copy_(weight + solve_right(moved, system))
        return condition


def _apart(erasure: Erasure) -> list[Erasure]:
    """An erasure a concept, with what was made for it and draws of its own."""
    if len(erasure.targets) == 1:
        return [erasure]
    made = erasure.materials
    found = []
    for number, target in enumerate(erasure.targets):
        names = {n: f"{n} of {target.concept}" for n in ("pictures", "masks")}
        own = {name: made[long] for name, long in names.items() if long in made}
        seed = erasure.seed + number * SEEDS_APART
        found.append(replace(erasure, targets=(target,), materials=own, seed=seed))
    return found


def outside(tokenizer: Tokenizer, prompt: str, mapped: str) -> Tensor:
    """Positions (2, n) of the tokens around the concept in `prompt`, and of those in their place
    in `mapped`, the same prompt with the mapping concept.

    They are what both begin with and what both end with, start and end token included, and then
    padding until the longer is full. Words that the two concepts share at their ends are outside.
    """
    import torch

    one, other = (tokenizer(text, truncation=True).input_ids for text in (prompt, mapped))
    shorter = min(len(one), len(other))
    before = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    rest = shorter - before
    after = next((i for i in range(rest) if one[-1 - i] != other[-1 - i]), rest)
    padding = tokenizer.model_max_length - max(len(one), len(other))
    return torch.tensor(
        [[*range(before), *range(len(p) - after, len(p) + padding)] for p in (one, other)]
    )


def surroundings(erasure: Erasure, is_same_count: bool) -> tuple[Tensor, Tensor]:
    """Embeddings (n, width) of the tokens around the concept, and of those in their place in the
    mapping concept's prompts.

    Raises:
        ResurgeError: with `is_same_count`, prompts have different numbers of them.
    """
    import torch

    from workers.diffusion.text import embed

    pairs = list(zip(erasure.prompts, erasure.anchor_prompts, strict=True))
    places = [outside(erasure.pipe.tokenizer, *pair) for pair in pairs]
    counts: dict[str, dict[int, str]] = {}
    for concept, where, (prompt, _) in zip(erasure.subjects, places, pairs, strict=True):
        counts.setdefault(concept, {})[where.shape[1]] = prompt
    if is_same_count and (uneven := next((c for c in counts.values() if len(c) > 1), None)):
        found = ", ".join(f"{count} in {prompt!r}" for count, prompt in uneven.items())
        raise ResurgeError(
            "mace as released needs as many tokens around the concept in every prompt but there "
            f"are {found}; change its prompts, or use `variant: paper`"
        )
    here, there = (embed(erasure.pipe, p) for p in (erasure.prompts, erasure.anchor_prompts))
    sources = [text[where[0]] for text, where in zip(here, places, strict=True)]
    targets = [text[where[1]] for text, where in zip(there, places, strict=True)]
    return torch.cat(sources), torch.cat(targets)


def beginning(pipe: Pipeline, rank: int, seed: int) -> dict[str, Tensor]:
    """The LoRA as it begins, on attn2's k and v: `down` from N(0, 1/rank²), `up` zero."""
    import torch

    from workers.diffusion.rng import normal
    from workers.erasure.closed_form import projections

    values: dict[str, Tensor] = {}
    for path, layer in projections(pipe.unet).items():
        down = normal((rank, layer.in_features), seed, 0, f"lora {path}") / rank
        values |= {f"{path}.down": down, f"{path}.up": torch.zeros(layer.out_features, rank)}
    return values


def timestep_weights(kind: Literal["late", "uniform"], high: int) -> Tensor:
    """How often each time step (high,) is drawn, as probabilities."""
    import torch

    t = torch.arange(high, dtype=torch.float64)
    late = torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))
    weights = late if kind == "late" else torch.ones_like(t)
    return weights / weights.sum()


def muted_norms(maps: Mapping[str, Tensor], words: Tensor, masks: Tensor | None) -> Tensor:
    """‖attention to the words inside the mask‖₂ (layers, n), by layer and picture.

    Maps (n, heads, pixels, tokens) by layer, words bool (n, tokens), masks bool (n, height, width);
    without masks everything is inside.
    """
    import torch

    from workers.diffusion.attention import resized, to_words
    from workers.diffusion.denoise import at_least_fp32

    norms = []
    for probs in to_words(maps, words).values():
        muted = at_least_fp32(probs)
        if masks is not None:
            inside = resized(masks, probs.shape[2], masks.shape[1] / masks.shape[2])
            muted = muted * inside[:, None, :, None]
        norms.append(torch.linalg.vector_norm(muted, dim=(1, 2, 3)))
    return torch.stack(norms)
