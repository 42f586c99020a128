"""Time to an event that some never see: Kaplan and Meier's estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.stats.intervals import NORMAL_QUANTILE
from orchestrator.stats.paired import wilson


@dataclass(frozen=True)
class Time:
    """The first step count at which a seed's score passed the threshold.

    Only the sweep's step counts were looked at: the concept came back after `after` and by
    `steps`. Without `happened` it had not come back at `steps`, the largest that has a score.
    """

    steps: int
    happened: bool
    after: int = 0

    def __str__(self) -> str:
        return f"{self.after}–{self.steps}" if self.happened else f">{self.steps}"


@dataclass(frozen=True)
class Survival:
    """Share of seeds whose concept is still gone after `steps`, with its 95% interval."""

    steps: int
    at_risk: int
    events: int
    share: float
    low: float
    high: float


def kaplan_meier(times: Sequence[Time]) -> tuple[Survival, ...]:
    """The share that is still gone after each step count at which something happened or ended.

    Kaplan and Meier (1958): the product of 1 - events / at risk. Intervals are Greenwood's (1926)
    variance on the scale of log(-log share) (Kalbfleisch and Prentice, 1980), which stay between 0
    and 1. They have no value where all or none are still gone: there they are Wilson's, of the
    number at risk and of the number of seeds. `scipy.stats.ecdf`, which a test compares with, has
    none there, and does not give away how many are at risk.
    """
    points, share, greenwood = [], 1.0, 0.0
    for steps in sorted({time.steps for time in times}):
        at_risk = sum(time.steps >= steps for time in times)
        events = sum(time.steps == steps and time.happened for time in times)
        share *= 1 - events / at_risk
        greenwood += events / (at_risk * (at_risk - events)) if events < at_risk else math.inf
        if share == 1:
            low, high = wilson(at_risk, at_risk)
        elif share == 0:
            low, high = wilson(0, len(times))
        else:
            width = NORMAL_QUANTILE * math.sqrt(greenwood) / abs(math.log(share))
            low, high = share ** math.exp(width), share ** math.exp(-width)
        points.append(Survival(steps, at_risk, events, share, low, high))
    return tuple(points)
