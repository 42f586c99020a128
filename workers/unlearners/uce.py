"""Unified Concept Editing: erase in closed form, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Presets, PresetSettings
from workers.interfaces.unlearner import Erasure, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor


_NEWER = {"tokens": "last_subject", "preserve_scale": 1.0}


class UCESettings(PresetSettings):
    """How strongly to erase and to preserve.

    Tuned to the shapes base, where the last token alone leaves a fill untouched (accuracy 1.00)
    and all tokens from it on take a shape and a fill to about 0.1 (sweeps/tuning/uce.yaml).
    """

    PRESETS: ClassVar[Presets] = {
        "sd": {"lam": 0.5, **_NEWER},
        "sd-original": {"lam": 0.1, "tokens": "from_subject", "preserve_scale": None},
        "unlearncanvas-style": {"lam": 1.0, "erase_scale": 0.05, **_NEWER},
        "unlearncanvas-object": {"lam": 10.0, "erase_scale": 0.01, **_NEWER},
    }

    erase_scale: float = Field(1.0, gt=0, description="weight of the erased concept's pairs")
    preserve_scale: float | None = Field(
        0.1,
        ge=0,
        description="weight of the retained prompts; null: 1 / their number, at least 0.1",
    )
    lam: float = Field(0.1, gt=0, description="weight of staying near the original (λ)")
    target: str = Field("", description="the text that the concept is mapped to")
    tokens: Literal["last_subject", "from_subject"] = Field(
        "from_subject",
        description="edit the concept's last token only, or from it on through the padding",
    )


class UCE(Unlearner):
    """Map the concept's text embeddings to a target's in every cross-attention, in closed form.

    UCE (Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, eq. 7), over
    attn2's to_k and to_v. `tokens: last_subject` with λ 0.5 is the newer released code; in it a
    pair is the concept's last token in each of its prompts and the target's last token, and the
    retained prompts keep their last word's token. `from_subject` is the older one: tokens from the
    concept's last through the padding, retained prompts with all tokens, and the empty prompt
    always retained.
    """

    name = "uce"
    version = 2
    seeded = False
    uses = frozenset({"retained"})
    paper = "Gandikota et al., WACV 2024"
    Settings = UCESettings
    settings: UCESettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Solve once, apply to every projection; report the system's condition number."""
        from workers.erasure.closed_form import Sums, apply_map, projection_edit, text_projections

        s, pipe = self.settings, erasure.pipe
        sums = Sums.empty(pipe.unet.config.cross_attention_dim)
        sources, targets = self._pairs(erasure)
        sums.move(sources, targets, s.erase_scale)
        scale = s.preserve_scale
        if scale is None:
            scale = max(0.1, 1 / max(1, len(erasure.retained_prompts)))
        sums.keep(self._kept(erasure), scale)
        matrix, condition = sums.solve(s.lam, "raise uce's lam or lower its erase_scale")
        apply_map(text_projections(pipe.unet), matrix)
        erasure.progress(1, 1, {"condition": condition})
        return Unlearned([projection_edit(pipe)], {"condition": condition})

    def _pairs(self, erasure: Erasure) -> tuple[Tensor, Tensor]:
        """Erased embeddings and their targets, both (n, width)."""
        import torch

        from workers.diffusion.text import embed, last_subject_index

        pipe, target = erasure.pipe, self.settings.target
        goal = embed(pipe, [target])[0]
        at = last_subject_index(pipe.tokenizer, target)
        sources, targets = [], []
        for prompt, text in zip(erasure.prompts, embed(pipe, erasure.prompts), strict=True):
            start = last_subject_index(pipe.tokenizer, prompt, erasure.concept)
            is_one = self.settings.tokens == "last_subject"
            rows = 1 if is_one else len(text) - max(start, at)
            sources.append(text[start : start + rows])
            targets.append(goal[at : at + rows])
        return torch.cat(sources), torch.cat(targets)

    def _kept(self, erasure: Erasure) -> Tensor:
        """Preserved embeddings (n, width)."""
        import torch

        from workers.diffusion.text import embed, last_subject_index

        pipe, prompts = erasure.pipe, erasure.retained_prompts
        if self.settings.tokens == "from_subject":
            return embed(pipe, ["", *prompts]).flatten(0, 1)
        text = embed(pipe, ["", *prompts])[1:]
        rows = [last_subject_index(pipe.tokenizer, prompt) for prompt in prompts]
        return text[torch.arange(len(rows)), torch.tensor(rows, dtype=torch.long)]
