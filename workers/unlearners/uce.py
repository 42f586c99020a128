"""Unified Concept Editing: erase in closed form, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import (
    Erasure,
    MethodSettings,
    Prompts,
    Unlearned,
    Unlearner,
    trained_on,
)

if TYPE_CHECKING:
    from torch import Tensor


_NEWER = {"prompts": "bare", "tokens": "last", "lam": 0.5, "preserve_scale": 1.0}
_2023 = {"prompts": "bare", "tokens": "from_last", "preserve_scale": None}
_NEWER_SOURCE = "unified-concept-editing, scripts of 2024"
_UNLEARNCANVAS_SOURCE = "UnlearnCanvas, machine_unlearning/mu_unified_concept_editing_uce"


class UCESettings(MethodSettings):
    """How strongly to erase and to preserve.

    Tuned to the shapes base (sweeps/tuning/uce.yaml), where the last token alone leaves a fill
    untouched, and the bare concept leaves it in three pictures of ten; all tokens from the
    concept's on, in each of the base's prompts, take a shape and a fill to about 0.1.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-object": Preset(_NEWER, "released", _NEWER_SOURCE),
        "sd-style": Preset({**_NEWER, "target": "art"}, "released", _NEWER_SOURCE),
        "sd-2023": Preset(
            {**_2023, "lam": 0.5}, "released", "unified-concept-editing, script of 2023"
        ),
        "unlearncanvas-style": Preset(
            {**_2023, "lam": 1.0, "erase_scale": 0.05, "target": "An image in Photo style"},
            "ours",
            f"{_UNLEARNCANVAS_SOURCE}, which adds five templates to the bare style",
        ),
        "unlearncanvas-object": Preset(
            {**_2023, "lam": 10.0, "erase_scale": 0.01, "target": "A Elephant image"},
            "released",
            _UNLEARNCANVAS_SOURCE,
        ),
    }

    prompts: Prompts = trained_on("base")
    erase_scale: float = Field(1.0, gt=0, description="weight of the erased concept's pairs")
    preserve_scale: float | None = Field(
        0.1,
        ge=0,
        description="weight of the retained prompts; null: 1 / (their number + 1), at least 0.1",
    )
    lam: float = Field(0.1, gt=0, description="weight of staying near the original (λ)")
    target: str = Field("", description="the text that concepts without an anchor go to")
    tokens: Literal["last", "from_last", "from_subject"] = Field(
        "from_subject",
        description="what is edited of each prompt: last: its last token; from_last: from that "
        "token on through the padding; from_subject: as from_last, from the concept's own token",
    )


class UCE(Unlearner):
    """Map the concept's text embeddings to a target's in every cross-attention, in closed form.

    UCE (Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, eq. 7), over
    attn2's to_k and to_v. `tokens: last` is the newer released code: a pair is the last token of
    the text, whatever the concept is, and the last token of the target; retained prompts keep
    their own last token. `from_last` is the code of 2023: tokens from the text's last through the
    padding, retained prompts with all tokens, and the empty prompt always retained. Both train on
    the bare concept, which ends in its own last token; `from_subject`, ours, is for prompts that
    do not.
    """

    name = "uce"
    version = 3
    seeded = False
    uses = frozenset({"retained", "given anchors"})
    joint = True
    jointly = "all concepts' pairs in one system, as published"
    paper = "Gandikota et al., WACV 2024"
    golden = "the whole edit, by the newer rule and by that of 2023"
    Settings = UCESettings
    settings: UCESettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Solve once, apply to every projection; report the system's condition number."""
        from workers.erasure.closed_form import (
            Sums,
            apply_map,
            pairs,
            projection_edit,
            text_projections,
        )

        s, pipe = self.settings, erasure.pipe
        sums = Sums.empty(pipe.unet.config.cross_attention_dim)
        sums.move(*pairs(erasure, s.target, s.tokens), s.erase_scale)
        scale = s.preserve_scale
        if scale is None:
            scale = max(0.1, 1 / (len(erasure.retained_prompts) + 1))
        sums.keep(self._kept(erasure), scale)
        matrix, condition = sums.solve(s.lam, "raise uce's lam or lower its erase_scale")
        apply_map(text_projections(pipe.unet), matrix)
        erasure.progress(1, 1, {"condition": condition})
        return Unlearned([projection_edit(pipe)], {"condition": condition})

    def _kept(self, erasure: Erasure) -> Tensor:
        """Preserved embeddings (n, width)."""
        from workers.erasure.closed_form import last_tokens, with_the_empty

        return (last_tokens if self.settings.tokens == "last" else with_the_empty)(erasure)
