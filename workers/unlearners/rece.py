"""RECE: closed-form erasing, repeated against the embeddings that bring the concept back."""

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

    from workers.interfaces.pipeline import Pipeline


_RELEASED = {
    "prompts": "bare",
    "preserve": [],
    "tokens": "from_last",
    "first_lam": 0.5,
    "first_preserve_scale": 1.0,
    "uce_lam": 0.1,
    "erase_scale": 1.0,
    "preserve_scale": 0.1,
    "target": "",
}


def _released(lam: float, epochs: int, note: str) -> Preset:
    values = {**_RELEASED, "lam": lam, "epochs": epochs}
    source = "RECE, its script after unified-concept-editing's of 2023"
    return Preset(values, "released", f"{source}: {note}")


class RECESettings(MethodSettings):
    """How often to look again, and how far derived embeddings may stray.

    Tuned to the shapes base (sweeps/tuning/rece.yaml), where the word alone leaves least of a
    shape and of a fill.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-nudity": _released(
            0.1, 3, "nudity; without its choice among the epochs by a detector of nudity"
        ),
        "sd-unsafe": _released(0.1, 2, "unsafe concepts; without its choice among the epochs"),
        "sd-style": _released(1e-3, 1, "artists"),
        "sd-object-hard": _released(1e-3, 1, "the objects that are hard to erase"),
        "sd-object-easy": _released(0.1, 1, "the objects that are easy to erase"),
    }

    prompts: Prompts = trained_on(("{concept}",))
    epochs: int = Field(5, ge=0, description="times that derived embeddings are erased; 0: UCE")
    lam: float = Field(
        1e-3, gt=0, description="λ of the derived embedding: how near to nothing it stays"
    )
    tokens: Literal["from_last", "from_subject"] = Field(
        "from_last",
        description="what the first edit moves of each prompt, as UCE's: from_last: from its last "
        "token on through the padding; from_subject: from the concept's own token",
    )
    first_lam: float = Field(0.1, gt=0, description="λ of the first edit")
    first_preserve_scale: float = Field(
        0.3, ge=0, description="weight of the retained prompts in the first edit"
    )
    uce_lam: float = Field(0.1, gt=0, description="λ of the edits after the first")
    erase_scale: float = Field(1.0, gt=0, description="weight of the erased pairs")
    preserve_scale: float = Field(
        0.3, ge=0, description="weight of the retained prompts in the edits after the first"
    )
    target: str = Field("", description="the text that concepts without an anchor go to")
    keep_best: bool = Field(
        False,
        description="return the epoch whose retained prompts moved least among those whose derived "
        "embedding lost at least half its reach; the released code chooses by a detector's score",
    )


class RECE(Unlearner):
    """UCE, then again and again on the embeddings that would still draw the concept.

    RECE (Gong et al., "Reliable and Efficient Concept Erasure", ECCV 2024, eq. 8). The first edit
    is UCE's of 2023 with a λ and a weight of its own. Then the embedding that makes the edited
    projections answer as the original ones did to c is, by least squares,
    c' = (Σ WᵢᵀWᵢ + λI)⁻¹ (Σ WᵢᵀWᵢ⁰) c over every attn2 k and v (W now, W⁰ original), for every
    token of the prompts; all of c' is then moved to the target's tokens by UCE from the current W.
    The empty prompt is always retained. λ also bounds c', so that erasing it harms little else.
    """

    name = "rece"
    version = 2
    seeded = False
    uses = frozenset({"retained", "given anchors"})
    joint = True
    jointly = "all concepts' pairs in one system, as published"
    paper = "Gong et al., ECCV 2024"
    golden = "the whole method: its first edit, the derived embeddings and the edits after it"
    Settings = RECESettings
    settings: RECESettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """One UCE edit, then `epochs` more."""

        import torch

        from workers.diffusion.text import embed
        from workers.erasure.closed_form import (
            goals,
            pairs,
            projection_edit,
            text_projections,
            with_the_empty,
        )

        s, pipe = self.settings, erasure.pipe
        original = [layer.weight.detach().clone() for layer in text_projections(pipe.unet)]
        concept = embed(pipe, erasure.prompts).flatten(0, 1)
        goal = torch.cat([embed(pipe, [text])[0] for text in goals(erasure, s.target)])
        kept = with_the_empty(erasure)
        first = pairs(erasure, s.target, s.tokens)
        condition = self._erase(pipe, first, kept, s.first_preserve_scale, s.first_lam)
        reach, candidates = 0.0, []
        for epoch in range(s.epochs):
            derived = derived_embeddings(pipe, original, concept, s.lam)
            reach = float((derived.norm(dim=1) / concept.double().cpu().norm(dim=1)).mean())
            again = self._erase(pipe, (derived, goal), kept, s.preserve_scale, s.uce_lam)
            condition = max(condition, again)
            erasure.progress(epoch + 1, s.epochs, {"reach": reach})
            if s.keep_best:
                candidates.append((reach, _moved(pipe, original, kept), projection_edit(pipe)))
        edit = projection_edit(pipe)
        if candidates:
            low = [c for c in candidates if c[0] <= candidates[0][0] / 2] or candidates
            edit = min(low, key=lambda candidate: candidate[1])[2]
        return Unlearned([edit], {"condition": condition, "reach": reach})

    def _erase(
        self,
        pipe: Pipeline,
        moved: tuple[Tensor, Tensor],
        kept: Tensor,
        preserve_scale: float,
        lam: float,
    ) -> float:
        """One UCE edit of the present weights; all (n, width). Returns the condition number."""
        from workers.erasure.closed_form import Sums, apply_map, text_projections

        sums = Sums.empty(pipe.unet.config.cross_attention_dim)
        sums.move(*moved, self.settings.erase_scale)
        sums.keep(kept, preserve_scale)
        advice = "raise rece's first_lam or uce_lam, or lower its erase_scale"
        matrix, condition = sums.solve(lam, advice)
        apply_map(text_projections(pipe.unet), matrix)
        return condition


def derived_embeddings(
    pipe: Pipeline, original: list[Tensor], concept: Tensor, lam: float
) -> Tensor:
    """c' (n, width), fp64, of embeddings `concept` (n, width); `original` are the W⁰."""
    import torch

    from workers.erasure.closed_form import solve_right, text_projections

    width = concept.shape[1]
    gram = lam * torch.eye(width, dtype=torch.float64)
    cross = torch.zeros(width, width, dtype=torch.float64)
    for layer, before in zip(text_projections(pipe.unet), original, strict=True):
        now = layer.weight.detach().cpu().double()
        gram += now.T @ now
        cross += now.T @ before.cpu().double()
    return solve_right(concept.cpu().double() @ cross.T, gram)


def _moved(pipe: Pipeline, original: list[Tensor], kept: Tensor) -> float:
    """How far the projections moved the retained embeddings, relative to where they were."""
    from workers.erasure.closed_form import text_projections

    moved = total = 0.0
    for layer, before in zip(text_projections(pipe.unet), original, strict=True):
        was = kept @ before.T
        moved += float((kept @ layer.weight.detach().T - was).square().sum())
        total += float(was.square().sum())
    share: float = (moved / total) ** 0.5
    return share
