"""Settings of the work that every sweep does: fine-tuning and sampling. Import-light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import Field, model_validator

from orchestrator.core.plugin import BasePlugin, MaterialPlugin, Need, RecipePlugin
from orchestrator.core.registry import find
from orchestrator.core.settings import Settings


class FinetuneSettings(Settings):
    """How a model is fine-tuned. `dataset` is a plug-in choice and is resolved separately."""

    adapter: Literal["full", "lora", "dora", "textual_inversion"] = Field(
        "full",
        description="full weights, LoRA, LoRA with trained lengths of rows (DoRA), or nothing but "
        "the embedding of a new token (textual inversion, Gal et al. 2023, who have rate 5e-3)",
    )
    placeholder: str | None = Field(
        None,
        pattern=r"^<[a-z0-9_-]+>$",
        description="the token that textual inversion learns, such as <mug>, as every caption of "
        "the pictures must name it, and prompts may",
    )
    initializer: str | None = Field(
        None,
        pattern=r"^\S+$",
        description="the word, of one token, as which it begins, and as which models that have not "
        "learned it read it",
    )
    train_text_encoder: bool = Field(
        False,
        description="train the text encoder too, as the UNet is: all of it, or LoRA beside its "
        "attention projections; captions are then embedded at every step",
    )
    learning_rate: float = Field(1e-5, gt=0, description="the optimiser's learning rate")
    steps: int = Field(100, ge=0, description="optimiser steps; 0 is the model before fine-tuning")
    optimizer: Literal["adamw", "adamw8bit", "sgd", "adafactor", "schedule_free"] = Field(
        "adamw",
        description="AdamW; its 8-bit form (bitsandbytes, a GPU); SGD with momentum; Adafactor; "
        "schedule-free AdamW (schedulefree), evaluated by its own average",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    batch_size: int = Field(16, ge=1, description="examples per micro-batch")
    accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after warm-up; linear and cosine decay to 0"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up from 0")
    weight_decay: float = Field(0.01, ge=0, description="weight decay, decoupled but for SGD")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta 1")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's beta 2")
    clip_norm: float | None = Field(1.0, gt=0, description="global gradient norm; null: no clip")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="evaluate an exponential moving average of the weights, which follows them "
        "faster at first: the decay of step k is the lesser of this and k / (9 + k), 0 at the "
        "first; null: off",
    )
    caption_dropout: float = Field(0.0, ge=0, le=1, description="share of captions replaced by ''")
    caption: str | None = Field(
        None,
        min_length=1,
        description="one caption for all pictures in place of the data set's own, as DreamBooth "
        "has ('a photo of sks dog'); null: each picture's own",
    )
    prior_weight: float | None = Field(
        None,
        ge=0,
        description="DreamBooth's prior preservation: weight of the loss on pictures of "
        "prior_prompt that the model which is fine-tuned draws before it is trained; 0, null: off",
    )
    prior_prompt: str | None = Field(
        None, min_length=1, description="what they are of ('a photo of a dog')"
    )
    prior_images: int = Field(100, ge=1, description="how many of them are drawn")
    random_flip: bool = Field(
        False, description="mirror each picture with a probability of 1/2, drawn anew at each step"
    )
    random_crop: float = Field(
        1.0,
        gt=0,
        le=1,
        description="side of the square that is cut out of each picture at a place drawn anew at "
        "each step, and resized, as a share of the picture's side; 1: all of it. Below 1 pictures "
        "are encoded at every step",
    )
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="min-SNR-γ weighting of the loss (Hang et al. 2023, who use 5); null: time "
        "steps count alike",
    )
    lora_rank: int = Field(4, ge=1, description="rank of LoRA and DoRA")
    lora_alpha: float | None = Field(
        None, gt=0, description="LoRA's alpha; the scale is alpha / rank; null: the rank, scale 1"
    )
    lora_targets: Literal["attention", "cross_attention"] = Field(
        "attention", description="which attention projections get LoRA"
    )
    trained_on: Literal["model", "base"] = Field(
        "model",
        description="base: train on the base without unlearning, then add the change of the "
        "weights to the model, as a LoRA from elsewhere is",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 is autocast over fp32 weights"
    )
    gradient_checkpointing: bool = Field(False, description="trade time for memory")

    @model_validator(mode="after")
    def _warmup_is_constant_or_fits(self) -> FinetuneSettings:
        if self.schedule != "constant" and 0 < self.steps <= self.warmup_steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps}) "
                f"with the {self.schedule} schedule"
            )
        return self

    @model_validator(mode="after")
    def _averages_once(self) -> FinetuneSettings:
        if self.optimizer == "schedule_free":
            if self.schedule != "constant":
                raise ValueError("schedule_free takes the schedule's place; leave it constant")
            if self.ema_decay is not None:
                raise ValueError("schedule_free averages the weights itself; leave out ema_decay")
        return self

    @model_validator(mode="after")
    def _prior_is_whole(self) -> FinetuneSettings:
        if self.prior_weight and self.prior_prompt is None:
            raise ValueError("prior_weight needs prior_prompt beside it")
        if self.prior_weight is None and self.prior_prompt is not None:
            raise ValueError("prior_prompt needs prior_weight beside it (0: without the prior)")
        return self

    @model_validator(mode="after")
    def _token_is_learned(self) -> FinetuneSettings:
        if self.adapter != "textual_inversion":
            return self
        if self.placeholder is None or self.initializer is None:
            raise ValueError(
                "adapter textual_inversion needs placeholder, the token to be learned, such as "
                "<mug>, and initializer, a word as which it begins"
            )
        if self.caption is not None and self.placeholder not in self.caption.lower():
            raise ValueError(f"caption must name {self.placeholder}, or nothing is learned of it")
        if self.train_text_encoder:
            raise ValueError(
                "textual_inversion trains the token alone; leave out train_text_encoder"
            )
        if self.prior_weight:
            raise ValueError(
                "textual_inversion changes nothing that a prior would hold: its pictures do not "
                "name the token; leave out prior_weight"
            )
        return self

    @property
    def has_lora(self) -> bool:
        """Whether low-rank factors are trained."""
        return self.adapter in ("lora", "dora")

    @property
    def alpha(self) -> float:
        """LoRA's alpha, which goes with the rank unless it is said."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    def identity(self) -> dict[str, Any]:
        """Non-default settings; LoRA's alpha only where it does not go with the rank."""
        values = super().identity()
        if self.alpha == self.lora_rank:
            values.pop("lora_alpha", None)
        return values

    def uncounted(self) -> frozenset[str]:
        """What only saves memory, and settings of what is not used."""
        names = {"gradient_checkpointing"}
        if not self.prior_weight:
            names |= {"prior_weight", "prior_prompt", "prior_images"}
        if self.optimizer != "sgd":
            names.add("momentum")
        if self.optimizer in ("sgd", "adafactor"):
            names |= {"beta1", "beta2"}
        if self.adapter != "textual_inversion":
            names |= {"placeholder", "initializer"}
        if not self.has_lora:
            names |= {name for name in type(self).model_fields if name.startswith("lora_")}
        return frozenset(names)

    def full(self) -> dict[str, Any]:
        """Every setting, LoRA's alpha as a number."""
        return {**super().full(), "lora_alpha": self.alpha}


class Prepare(RecipePlugin):
    """A data set as one Parquet file, which fine-tuning reads; the version is the file's form."""

    name = "dataset"
    version = 1


class Finetune(RecipePlugin):
    """Fine-tune the UNet, it and the text encoder, or a token, with the ordinary denoising loss."""

    name = "finetune"
    version = 2
    Settings = FinetuneSettings

    def needs(self, base: BasePlugin) -> Mapping[str, Need]:
        """The pictures of prior preservation, drawn as the base draws."""
        s = self.settings
        if not s.prior_weight:
            return {}
        cls = find("material", "images")
        how = {"guidance": base.guidance, "sampler_steps": base.sampler_steps}
        pictures = cls(cls.Settings.model_validate({"images_per_prompt": s.prior_images, **how}))
        return {"prior": Need(cast(MaterialPlugin, pictures), {"prompts": [s.prior_prompt]})}

    def tokens(self) -> Mapping[str, str]:
        """Textual inversion's."""
        s = self.settings
        return {s.placeholder: s.initializer} if s.adapter == "textual_inversion" else {}

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """Captions that the sweep itself says are read to their end, unlike a data set's."""
        said = {"caption": self.settings.caption, "prior_prompt": self.settings.prior_prompt}
        found = {name: base.unread(text) for name, text in said.items() if text is not None}
        return [f"finetune.{name}: {why}" for name, why in found.items() if why]

    @classmethod
    def doubts(cls, used: Sequence[FinetuneSettings]) -> list[str]:
        """Axes that move more than they say, and rates that are never reached."""
        found = []
        lora = [s for s in used if s.has_lora]
        ranks, alphas = {s.lora_rank for s in lora}, {s.alpha for s in lora}
        if len(ranks) > 1 and len(alphas) == 1:
            found.append(
                f"lora_rank varies while lora_alpha stays {alphas.pop():g}, so the scale (alpha / "
                "rank) varies with it; leave lora_alpha out to have a scale of 1 at every rank"
            )
        for schedule in sorted({s.schedule for s in used} - {"constant"}):
            counts = {s.steps for s in used if s.schedule == schedule and s.steps}
            if len(counts) > 1:
                found.append(
                    f"with schedule {schedule} each of the {len(counts)} step counts decays over "
                    "its own steps: they are trainings of their own and no points of one; use "
                    "schedule: constant for a trajectory"
                )
        slow = [s for s in used if 0 < s.steps <= s.warmup_steps]
        if slow:
            longest = max(s.steps for s in slow)
            found.append(
                f"up to {longest} steps all are warm-up (warmup_steps {slow[0].warmup_steps}): the "
                "learning rate is not reached by then"
            )
        still = [s for s in used if s.adapter == "textual_inversion" and s.learning_rate < 1e-4]
        if still:
            found.append(
                f"at learning rate {still[0].learning_rate:g} textual inversion hardly moves its "
                "token; 5e-4 to 5e-3 are usual"
            )
        return found


class Merge(RecipePlugin):
    """Add what a fine-tune changed in one model's weights to another model's."""

    name = "merge"
    version = 1


class SampleSettings(Settings):
    """How images are made for evaluation."""

    ONLY_MEMORY = frozenset({"batch_size"})

    images_per_prompt: int = Field(8, ge=1, description="images of each prompt")
    guidance: float | None = Field(None, ge=0, description="guidance scale; null: the base's own")
    sampler: Literal["ddim", "dpmsolver++", "euler", "unipc"] = Field(
        "ddim",
        description="DDIM (eta 0), DPM-Solver++ (second order), Euler or UniPC; published numbers "
        "are of DDIM's 50 steps",
    )
    sampler_steps: int | None = Field(None, ge=1, description="steps; null: the base's own")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16 is autocast of the UNet over fp32 weights; guidance, the sampler, the "
        "autoencoder and classifier_guidance stay in fp32",
    )
    noise_seed: int = Field(0, ge=0, description="seed of the initial noise, shared by all models")
    batch_size: int = Field(64, ge=1, description="images per forward pass")


class Sample(RecipePlugin):
    """Images of every prompt from fixed initial noise."""

    name = "sample"
    version = 2
    Settings = SampleSettings
