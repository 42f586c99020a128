"""RECE: closed-form erasing, repeated against the embeddings that bring the concept back."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import Erasure, MethodSettings, Unlearned, Unlearner

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


_SD = {"preserve_scale": 0.1}


class RECESettings(MethodSettings):
    """How often to look again, and how far derived embeddings may stray.

    Tuned to the shapes base: sweeps/tuning/rece.yaml.
    """

    PRESETS: ClassVar[Presets] = {
        "sd-nudity": Preset({"lam": 0.1, "epochs": 3, **_SD}, "ours", ""),
        "sd-unsafe": Preset({"lam": 0.1, "epochs": 2, **_SD}, "ours", ""),
        "sd-style": Preset({"lam": 1e-3, "epochs": 1, **_SD}, "ours", ""),
        "sd-object-hard": Preset({"lam": 1e-3, "epochs": 1, **_SD}, "ours", ""),
        "sd-object-easy": Preset({"lam": 0.1, "epochs": 1, **_SD}, "ours", ""),
    }

    epochs: int = Field(5, ge=0, description="times that derived embeddings are erased; 0: UCE")
    lam: float = Field(
        1e-3, gt=0, description="λ of the derived embedding: how near to nothing it stays"
    )
    uce_lam: float = Field(0.1, gt=0, description="λ of every closed-form edit")
    erase_scale: float = Field(1.0, gt=0, description="weight of the erased pairs")
    preserve_scale: float = Field(0.03, ge=0, description="weight of the retained prompts")
    target: str = Field("", description="the text that the concept is mapped to")
    keep_best: bool = Field(
        False,
        description="return the epoch whose retained prompts moved least among those whose derived "
        "embedding lost at least half its reach, as the released code chooses an epoch by a score",
    )


class RECE(Unlearner):
    """UCE, then again and again on the embeddings that would still draw the concept.

    RECE (Gong et al., "Reliable and Efficient Concept Erasure", ECCV 2024, eq. 8). After a UCE
    edit on all tokens, the embedding that makes the edited projections answer as the original ones
    did to c is, by least squares, c' = (Σ WᵢᵀWᵢ + λI)⁻¹ (Σ WᵢᵀWᵢ⁰) c over every attn2 k and v (W
    now, W⁰ original); c' is then erased by UCE from the current W, on all tokens. The empty prompt
    is always retained. λ also bounds c', so that erasing it harms little else.
    """

    name = "rece"
    version = 1
    seeded = False
    uses = frozenset({"retained"})
    paper = "Gong et al., ECCV 2024"
    Settings = RECESettings
    settings: RECESettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """One UCE edit, then `epochs` more."""

        from workers.diffusion.text import embed
        from workers.erasure.closed_form import projection_edit, text_projections

        s, pipe = self.settings, erasure.pipe
        original = [layer.weight.detach().clone() for layer in text_projections(pipe.unet)]
        concept = embed(pipe, erasure.prompts).flatten(0, 1)
        goal = embed(pipe, [s.target]).expand(len(erasure.prompts), -1, -1).flatten(0, 1)
        kept = embed(pipe, ["", *erasure.retained_prompts]).flatten(0, 1)
        condition, reach = self._erase(pipe, concept, goal, kept), 0.0
        candidates = []
        for epoch in range(s.epochs):
            derived = derived_embeddings(pipe, original, concept, s.lam)
            reach = float((derived.norm(dim=1) / concept.double().cpu().norm(dim=1)).mean())
            condition = max(condition, self._erase(pipe, derived, goal, kept))
            erasure.progress(epoch + 1, s.epochs, {"reach": reach})
            if s.keep_best:
                candidates.append((reach, _moved(pipe, original, kept), projection_edit(pipe)))
        edit = projection_edit(pipe)
        if candidates:
            low = [c for c in candidates if c[0] <= candidates[0][0] / 2] or candidates
            edit = min(low, key=lambda candidate: candidate[1])[2]
        return Unlearned([edit], {"condition": condition, "reach": reach})

    def _erase(self, pipe: Pipeline, sources: Tensor, goal: Tensor, kept: Tensor) -> float:
        """One UCE edit of the present weights; all (n, width). Returns the condition number."""
        from workers.erasure.closed_form import Sums, apply_map, text_projections

        s = self.settings
        sums = Sums.empty(pipe.unet.config.cross_attention_dim)
        sums.move(sources, goal, s.erase_scale)
        sums.keep(kept, s.preserve_scale)
        matrix, condition = sums.solve(s.uce_lam, "raise rece's uce_lam or lower its erase_scale")
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
