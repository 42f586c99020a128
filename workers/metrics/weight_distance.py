"""How far weights moved, and whether fine-tuning undid the unlearning's move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from workers.interfaces.metric import Metric, Score

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = ("attn1", "attn2", "other")


class WeightDistance(Metric):
    """L2 distances between base, unlearned and final weights, and the share of unlearning undone.

    With d = unlearned - base and m = final - unlearned, over all weights and by group (attn1,
    attn2, other): `to_base` = |d + m|, `unlearned_to_base` = |d|, `moved` = |m|, `cosine` =
    ⟨m, d⟩ / (|m| |d|), and `undone` = -⟨m, d⟩ / ⟨d, d⟩: 1 when the fine-tune took back exactly what
    unlearning did, 0 when it moved at a right angle. A ratio whose denominator is 0 is left out.
    """

    name = "weight_distance"
    version = 1
    needs = "weights"
    of = frozenset({"unlearn", "finetune", "merge"})
    values = (None, None)
    higher = "farther from the base"

    def score_weights(
        self,
        base: Mapping[str, Tensor],
        unlearned: Mapping[str, Tensor],
        final: Mapping[str, Tensor],
    ) -> Score:
        """Numbers for all weights ("moved") and for each group ("attn2.moved")."""
        sums = {group: Products() for group in GROUPS}
        for name in base:
            group = next((kind for kind in GROUPS if f".{kind}." in name), "other")
            sums[group].add(base[name], unlearned[name], final[name])
        whole = Products(*map(sum, zip(*map(astuple, sums.values()), strict=True)))
        metrics = dict(whole.distances())
        for group, products in sums.items():
            metrics |= {f"{group}.{name}": value for name, value in products.distances()}
        return Score(metrics)


@dataclass
class Products:
    """⟨d, d⟩, ⟨m, m⟩ and ⟨m, d⟩, summed in fp64."""

    dd: float = 0.0
    mm: float = 0.0
    md: float = 0.0

    def add(self, base: Tensor, unlearned: Tensor, final: Tensor) -> None:
        """Add one parameter's share."""
        before, middle, after = (
            t.detach().cpu().double().flatten() for t in (base, unlearned, final)
        )
        d, m = middle - before, after - middle
        self.dd += float(d @ d)
        self.mm += float(m @ m)
        self.md += float(m @ d)

    def distances(self) -> Iterator[tuple[str, float]]:
        """The metric's numbers, without those that are not defined."""
        yield "to_base", max(0.0, self.dd + 2 * self.md + self.mm) ** 0.5
        yield "unlearned_to_base", self.dd**0.5
        yield "moved", self.mm**0.5
        if self.dd > 0:
            yield "undone", -self.md / self.dd
        if self.dd > 0 and self.mm > 0:
            yield "cosine", self.md / (self.dd * self.mm) ** 0.5
