"""Closed-form edits of linear maps: least squares over pairs of embeddings.

A cross-attention projection W should map each erased embedding c to where W0 maps a target c*,
keep each preserved one, and stay near W0. Since every value is W0 applied to an embedding, the
least-squares answer is W0 · M with one M for all projections, found by one solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Sums:
    """The sums of a least-squares problem over embeddings of `width` numbers, in fp64 on the CPU.

    `gram` is Σ s c cᵀ over all pairs; `shift` is Σ s (c* - c) cᵀ; both (width, width).
    """

    gram: Tensor
    shift: Tensor

    @classmethod
    def empty(cls, width: int) -> Sums:
        """No pairs yet."""
        zeros = torch.zeros(width, width, dtype=torch.float64)
        return cls(zeros, zeros.clone())

    def move(self, sources: Tensor, targets: Tensor, scale: float) -> None:
        """Ask that `sources` (n, width) be mapped where `targets` (n, width) are now."""
        c, goal = _double(sources), _double(targets)
        self.gram += scale * c.T @ c
        self.shift += scale * (goal - c).T @ c

    def keep(self, sources: Tensor, scale: float) -> None:
        """Ask that `sources` (n, width) be mapped where they are now."""
        c = _double(sources)
        self.gram += scale * c.T @ c

    def solve(self, lam: float) -> tuple[Tensor, float]:
        """The M (width, width) that turns W0 into W0 · M, and the condition number of the system.

        UCE (Gandikota et al. 2024, eq. 7): W = (λ W0 + Σ s v* cᵀ)(λ I + Σ s c cᵀ)⁻¹ with
        v* = W0 c*. Written as M = I + shift (λ I + gram)⁻¹ it is exactly the identity when nothing
        is moved, and the small term takes the rounding.
        """
        eye = torch.eye(len(self.gram), dtype=torch.float64)
        system = lam * eye + self.gram
        # system is symmetric, so X · system = shift is system · Xᵀ = shiftᵀ.
        return eye + torch.linalg.solve(system, self.shift.T).T, _condition(system)


@torch.no_grad()
def apply_map(projections: list[nn.Linear], matrix: Tensor) -> None:
    """W <- W · matrix for each projection, computed in fp64; matrix (inputs, inputs)."""
    for projection in projections:
        weight = projection.weight
        weight.copy_((_double(weight) @ matrix).to(weight.dtype))


def text_projections(unet: nn.Module) -> list[nn.Linear]:
    """Every attn2's to_k and to_v: the linear maps that read the text."""
    return [
        module
        for name, module in unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v")) and isinstance(module, nn.Linear)
    ]


def _condition(symmetric: Tensor) -> float:
    """Largest over smallest eigenvalue of a symmetric positive matrix."""
    values = torch.linalg.eigvalsh(symmetric)
    return float(values[-1] / values[0].clamp_min(torch.finfo(torch.float64).tiny))


def _double(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)
