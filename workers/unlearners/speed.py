"""SPEED: erase in closed form, in the null space of what must not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

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

    from workers.erasure.closed_form import Sums


class SPEEDSettings(MethodSettings):
    """What is mapped where, and what counts as unchanged.

    Tuned to the shapes base: sweeps/tuning/speed.yaml. No preset: the published thresholds go with
    sums over the authors' own lists of concepts, which were not compared.
    """

    prompts: Prompts = trained_on("base")
    target: str = Field("", description="the text that concepts without an anchor go to")
    tokens: Literal["last", "from_subject"] = Field(
        "from_subject",
        description="what is edited of each prompt: last: its last token; from_subject: tokens "
        "from the concept's own through the padding",
    )
    augmentations: int = Field(
        10, ge=0, description="noisy copies of each retained embedding that the filter keeps"
    )
    noise_rank: int = Field(
        1, ge=1, description="weakest input directions of a projection that the noise lies in"
    )
    null_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="a direction is free if the retained embeddings' energy along it is at most "
        "this share of that along their strongest",
    )


class SPEED(Unlearner):
    """Map the concept's text embeddings to a target's where retained embeddings have no part.

    SPEED (Li et al., "Scalable, Precise, and Efficient Concept Erasure", ICLR 2026), for every
    to_k and to_v W of attn2: the Δ that minimises ‖(W + ΔP) C₁ - W C*‖² + ‖ΔP‖² with ΔP C₂ = 0.
    C₁ are the concept's embeddings, C* the target's, and P projects onto the null space of the
    retained embeddings C₀. Those are refined for each W: only embeddings that an edit without
    constraint would move by more than the average stay (influence-based prior filtering), then
    `augmentations` copies of each, with Gaussian noise along W's weakest input directions, which
    pass the same filter (directed prior augmentation). C₂ are the start token and the empty
    prompt's tokens, which every picture depends on (invariant equality constraints). With P'
    projecting onto what of P's range is orthogonal to P C₂, the solution is
    ΔP = W (C* - C₁) C₁ᵀ P' (C₁ C₁ᵀ P' + I)⁻¹. What is not in the paper's equations is ours: where
    energy counts as none (`null_share`), and tokens beside a prompt's last one.
    """

    name = "speed"
    version = 2
    uses = frozenset({"retained", "given anchors"})
    joint = True
    jointly = "all concepts' pairs in one system, as published (100 celebrities)"
    paper = "Li et al., ICLR 2026"
    Settings = SPEEDSettings
    settings: SPEEDSettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Solve for each projection; report how many directions were free, on average."""
        import torch

        from workers.diffusion.text import embed
        from workers.erasure.closed_form import (
            Sums,
            apply_map,
            pairs,
            projection_edit,
            text_projections,
        )

        s, layers = self.settings, text_projections(erasure.pipe.unet)
        sums = Sums.empty(erasure.pipe.unet.config.cross_attention_dim)
        sums.move(*pairs(erasure, s.target, s.tokens), 1.0)
        fixed = embed(erasure.pipe, [""])[0].to("cpu", torch.float64)
        retained, everywhere = self._retained(erasure), torch.eye(len(sums.gram)).to(sums.gram)
        unbounded = constrained(sums, everywhere) - everywhere
        free = []
        for number, layer in enumerate(layers):
            weight = layer.weight.detach().to("cpu", torch.float64)
            kept = self._refined(weight, unbounded, retained, erasure.seed, number)
            projector = without(null_space(kept, s.null_share), fixed)
            apply_map([layer], constrained(sums, projector))
            free.append(float(projector.trace()))
            erasure.progress(number + 1, len(layers), {"free_directions": free[-1]})
        edit = projection_edit(erasure.pipe)
        return Unlearned([edit], {"free_directions": sum(free) / len(free)})

    def _retained(self, erasure: Erasure) -> Tensor:
        """What may not change (n, width), fp64 on the CPU: last tokens, or all with the padding."""
        import torch

        from workers.diffusion.text import embed
        from workers.erasure.closed_form import last_tokens

        if self.settings.tokens != "from_subject":
            return last_tokens(erasure).to("cpu", torch.float64)
        # The empty prompt beside them: there may be none.
        text = embed(erasure.pipe, ["", *erasure.retained_prompts])[1:]
        return text[:, 1:].flatten(0, 1).to("cpu", torch.float64)

    def _refined(
        self, weight: Tensor, unbounded: Tensor, retained: Tensor, seed: int, number: int
    ) -> Tensor:
        """C₀ of one projection: filtered, augmented, and the copies filtered again."""
        import torch

        from workers.diffusion.rng import normal

        s, change = self.settings, weight @ unbounded
        kept = influenced(change, retained)
        weakest = torch.linalg.svd(weight).Vh[-s.noise_rank :]
        copies = kept.repeat(s.augmentations, 1)
        noise = normal(copies.shape, seed, number, "speed augmentation").to(copies)
        return torch.cat([kept, influenced(change, copies + noise @ weakest.T @ weakest)])


def influenced(change: Tensor, embeddings: Tensor) -> Tensor:
    """Rows of `embeddings` (n, width) that a weight's `change` moves by more than the mean."""
    moved = (embeddings @ change.T).square().sum(1)
    return embeddings[moved > moved.mean()]


def null_space(embeddings: Tensor, share: float) -> Tensor:
    """P (width, width) onto the directions in which `embeddings` (n, width) have least energy.

    Those are the eigenvectors of Σ e eᵀ whose eigenvalues are at most `share` of the largest;
    without embeddings all are.
    """
    import torch

    values, vectors = torch.linalg.eigh(embeddings.T @ embeddings)
    free: Tensor = vectors[:, values <= share * values[-1]] if values[-1] > 0 else vectors
    return free @ free.T


def without(projector: Tensor, fixed: Tensor) -> Tensor:
    """P' (width, width) onto what of P's range is orthogonal to P e for each row e of `fixed`."""
    import torch

    inside = fixed @ projector
    _, values, directions = torch.linalg.svd(inside, full_matrices=False)
    # Relative to the embeddings: what P leaves of them may be no more than rounding.
    spanned: Tensor = directions[values > 1e-9 * fixed.norm()]
    return projector - spanned.T @ spanned


def constrained(sums: Sums, projector: Tensor) -> Tensor:
    """The M (width, width) that turns W into W · M = W + ΔP', for C₁ and C* of `sums`.

    Setting the gradient of ‖Δ P' C₁ - W (C* - C₁)‖² + ‖Δ P'‖² to zero gives
    ΔP' (C₁ C₁ᵀ P' + I) = W (C* - C₁) C₁ᵀ P'.
    """
    import torch

    eye: Tensor = torch.eye(len(projector)).to(projector)
    # X · S = V by columns: Sᵀ Xᵀ = Vᵀ.
    system, values = sums.gram @ projector + eye, sums.shift @ projector
    solved: Tensor = torch.linalg.solve(system.T, values.T)
    return eye + solved.T
