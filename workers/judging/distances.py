"""Distances between two sets of features, in fp64, and between two pictures' layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def frechet(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of Gaussians with the means and covariances of x (n, d) and y (m, d).

    Heusel et al., NeurIPS 2017. Covariances with n - 1.
    """
    x, y = x.double(), y.double()
    return frechet_of_gaussians(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())


def frechet_of_gaussians(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """‖μ₁ - μ₂‖² + Tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), of means (d,) and covariances (d, d).

    Tr (Σ₁ Σ₂)^½ is the trace of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric, so eigenvalues give it.
    """
    import torch

    values, vectors = torch.linalg.eigh(cov1)
    # No eigenvalue is negative but by rounding.
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    mixed = root @ cov2 @ root
    cross = torch.linalg.eigvalsh((mixed + mixed.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(0.0, float(distance))


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of x (n, d) and y (m, d) with the kernel (⟨a, b⟩ / d + 1)³.

    KID (Bińkowski et al., ICLR 2018), all features in one block.
    """
    x, y, width = x.double(), y.double(), x.shape[1]
    return _unbiased(
        *((a @ b.T / width + 1).pow(3) for a, b in ((x, x), (y, y), (x, y))),
    )


def rbf_distance(x: Tensor, y: Tensor, sigma: float) -> float:
    """Unbiased squared MMD of x (n, d) and y (m, d) with the kernel exp(-‖a - b‖² / 2σ²).

    Jayasumana et al., CVPR 2024.
    """
    import torch

    x, y = x.double(), y.double()
    # Not by the products of matrices: with σ far larger than the distances, what is looked for is
    # in the last digits.
    pairs = ((x, x), (y, y), (x, y))
    squares = (torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") for a, b in pairs)
    return _unbiased(*((-d.square() / (2 * sigma**2)).exp() for d in squares))


def perceptual(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """LPIPS (n,) of two pictures' layers, each (n, channels, height, width).

    Zhang et al., CVPR 2018, eq. 1: each position's channels are scaled to length 1; squared
    differences, weighted by channel (channels,), averaged over positions, summed over layers.
    """
    import torch
    from torch.nn import functional

    shares = []
    for one, other, weight in zip(ours, theirs, weights, strict=True):
        difference = functional.normalize(one, dim=1) - functional.normalize(other, dim=1)
        shares.append((difference.square() * weight[:, None, None]).sum(dim=1).mean(dim=(1, 2)))
    return torch.stack(shares).sum(dim=0)


def _unbiased(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    """A kernel's matrices (n, n), (m, m), (n, m): means without the pairs of one with itself."""
    n, m = xy.shape
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.mean())
