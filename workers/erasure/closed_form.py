"""Closed-form edits of linear maps: least squares over pairs of embeddings.

A cross-attention projection W should map each erased embedding c to where W0 maps a target c*,
keep each preserved one, and stay near W0. Since every value is W0 applied to an embedding, the
least-squares answer is W0 · M with one M for all projections, found by one solve.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from orchestrator.core.errors import ResurgeError
from workers.diffusion.text import embed, last_subject_index
from workers.editing.edits import Weights
from workers.runtime.finite import check_tensors

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline
    from workers.interfaces.unlearner import Erasure


WORST_CONDITION = 1e12
"""Beyond this the solution in fp64 has fewer than four good digits."""


_PROJECTION = re.compile(r"attn2\.to_[kv]\.weight$")


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

    def keep_gram(self, gram: Tensor, scale: float) -> None:
        """`keep` for embeddings whose Σ e eᵀ (width, width) is known already."""
        self.gram += scale * _double(gram)

    def solve(self, lam: float, advice: str) -> tuple[Tensor, float]:
        """The M (width, width) that turns W0 into W0 · M, and the condition number of the system.

        UCE (Gandikota et al. 2024, eq. 7): W = (λ W0 + Σ s v* cᵀ)(λ I + Σ s c cᵀ)⁻¹ with
        v* = W0 c*. Written as M = I + shift (λ I + gram)⁻¹ it is exactly the identity when nothing
        is moved, and the small term takes the rounding.

        Raises:
            ResurgeError: the system is singular for the purposes of fp64; it ends with `advice`.
        """
        eye = torch.eye(len(self.gram), dtype=torch.float64)
        system = lam * eye + self.gram
        condition = checked_condition(system, advice)
        return eye + solve_right(self.shift, system), condition


def pairs(
    erasure: Erasure, target: str, tokens: Literal["last", "from_last", "from_subject"]
) -> tuple[Tensor, Tensor]:
    """UCE's pairs: rows of the erased prompts' embeddings and of the target's, both (n, width).

    Those of several concepts are side by side. `last` is a text's last token alone; `from_last`
    goes on from there through the padding, as far as both texts do; `from_subject` begins at the
    concept's own last token instead. A concept with an anchor goes to the anchor's prompts.
    """
    pipe = erasure.pipe
    asked = zip(
        erasure.prompts, erasure.subjects, embed(pipe, erasure.prompts),
        goals(erasure, target), strict=True,
    )  # fmt: skip
    read = {text: embed(pipe, [text])[0] for text in dict.fromkeys(goals(erasure, target))}
    sources, targets = [], []
    for prompt, concept, text, instead in asked:
        goal, at = read[instead], last_subject_index(pipe.tokenizer, instead)
        subject = concept if tokens == "from_subject" else None
        start = last_subject_index(pipe.tokenizer, prompt, subject)
        rows = 1 if tokens == "last" else len(text) - max(start, at)
        sources.append(text[start : start + rows])
        targets.append(goal[at : at + rows])
    return torch.cat(sources), torch.cat(targets)


def goals(erasure: Erasure, target: str) -> list[str]:
    """The text that each of the erased prompts is mapped to: its anchor's, or else the target."""
    of = (t.anchor_prompts or (target,) * len(t.prompts) for t in erasure.targets)
    return [text for texts in of for text in texts]


def with_the_empty(erasure: Erasure) -> Tensor:
    """Every token (n, width) of the empty prompt and of what is retained."""
    return embed(erasure.pipe, ["", *erasure.retained_prompts]).flatten(0, 1)


def last_tokens(erasure: Erasure) -> Tensor:
    """The last token (n, width) of each of the n retained prompts."""
    prompts = erasure.retained_prompts
    # The empty prompt beside them: there may be none.
    text = embed(erasure.pipe, ["", *prompts])[1:]
    rows = [last_subject_index(erasure.pipe.tokenizer, prompt) for prompt in prompts]
    return text[torch.arange(len(rows)), torch.tensor(rows, dtype=torch.long)]


def solve_right(values: Tensor, system: Tensor) -> Tensor:
    """values · system⁻¹ for a symmetric system, by a solve: X · S = V is S · Xᵀ = Vᵀ.

    Raises:
        ResurgeError: the system is singular.
    """
    try:
        solved: Tensor = torch.linalg.solve(system, values.T)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # it has one
        raise ResurgeError(
            "the closed form has no solution: its system is singular; raise the method's lam"
        ) from error
    return solved.T


def checked_condition(symmetric: Tensor, advice: str) -> float:
    """Largest over smallest eigenvalue of a symmetric positive matrix.

    Raises:
        NotFinite: the matrix is not made of numbers.
        ResurgeError: it is beyond `WORST_CONDITION`.
    """
    check_tensors({"the system": symmetric}, "the closed form", advice)
    values = torch.linalg.eigvalsh(symmetric)
    condition = float(values[-1] / values[0].clamp_min(torch.finfo(torch.float64).tiny))
    if not condition <= WORST_CONDITION:  # so that NaN is refused
        raise ResurgeError(
            f"the closed form's condition number is {condition:.1e}, above "
            f"{WORST_CONDITION:.0e}; {advice}"
        )
    return condition


@torch.no_grad()
def apply_map(projections: list[nn.Linear], matrix: Tensor) -> None:
    """W <- W · matrix for each projection, computed in fp64; matrix (inputs, inputs)."""
    for projection in projections:
        weight = projection.weight
        weight.copy_((_double(weight) @ matrix).to(weight.dtype))


def projections(unet: nn.Module) -> dict[str, nn.Linear]:
    """Every attn2's to_k and to_v by path: the linear maps that read the text."""
    return {
        name: module
        for name, module in unet.named_modules()
        if _PROJECTION.search(f"{name}.weight") and isinstance(module, nn.Linear)
    }


def text_projections(unet: nn.Module) -> list[nn.Linear]:
    """`projections` without their paths."""
    return list(projections(unet).values())


def projection_edit(pipe: Pipeline) -> Weights:
    """The present attn2 k, v weights as an edit: all that a closed form changes."""
    names = [n for n, _ in pipe.unet.named_parameters() if _PROJECTION.search(n)]
    return Weights.of(pipe, [f"unet.{name}" for name in names])


def _double(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)
