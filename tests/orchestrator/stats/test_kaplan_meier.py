import numpy as np
import pytest
from scipy.stats import CensoredData, ecdf

from orchestrator.stats.kaplan_meier import Time, kaplan_meier
from orchestrator.stats.paired import wilson


def test_kaplan_meier_by_hand():
    """Five seeds: back by 50, by 100 and by 100, and two that never were, one looked at until 50.

    After 50: 4/5. At 100 three are at risk and two come back: 4/5 · 1/3.
    """
    times = [Time(50, True), Time(50, False), Time(100, True), Time(100, True), Time(100, False)]
    first, second = kaplan_meier(times)
    assert (first.at_risk, first.events, first.share) == (5, 1, pytest.approx(4 / 5))
    assert (second.at_risk, second.events, second.share) == (3, 2, pytest.approx(4 / 15))


def test_kaplan_meier_agrees_with_published_values():
    """Freireich et al. (1963), 6-MP: weeks in remission of 21 patients.

    Shares and intervals (Greenwood, log-log) as in Kalbfleisch and Prentice's and R's tables.
    """
    relapsed = (6, 6, 6, 7, 10, 13, 16, 22, 23)
    censored = (6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35)
    curve = kaplan_meier([*(Time(w, True) for w in relapsed), *(Time(w, False) for w in censored)])
    found = {p.steps: (p.share, p.low, p.high) for p in curve}
    assert found[6] == pytest.approx((0.857, 0.620, 0.952), abs=5e-4)
    assert found[13] == pytest.approx((0.690, 0.432, 0.849), abs=5e-4)
    assert found[23] == pytest.approx((0.448, 0.188, 0.680), abs=5e-4)
    assert found[35] == found[23], "censoring alone changes nothing"


def test_all_or_none_have_an_interval_with_width():
    (none,) = kaplan_meier([Time(100, False)] * 3)
    assert (none.share, none.low, none.high) == (1, *wilson(3, 3))
    (everyone,) = kaplan_meier([Time(50, True)] * 3)
    assert (everyone.share, everyone.low, everyone.high) == (0, *wilson(0, 3))


@pytest.mark.filterwarnings("ignore:The confidence interval is undefined")
@pytest.mark.parametrize("seed", range(20))
def test_estimates_and_intervals_are_scipys(seed):
    """Where scipy has an interval: it has none where all or none are still gone."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([25, 50, 100, 200], size=rng.integers(2, 30))
    happened = rng.random(len(steps)) < rng.random()
    found = kaplan_meier([Time(int(s), bool(h)) for s, h in zip(steps, happened, strict=True)])
    known = ecdf(CensoredData.right_censored(steps, ~happened)).sf
    assert [point.steps for point in found] == list(known.quantiles)
    assert [point.share for point in found] == pytest.approx(known.probabilities)
    inside = [point for point in found if 0 < point.share < 1]
    if inside:
        with np.errstate(divide="ignore", invalid="ignore"):
            interval = known.confidence_interval(method="log-log")
        at = np.isin(known.quantiles, [point.steps for point in inside])
        assert [point.low for point in inside] == pytest.approx(interval.low.probabilities[at])
        assert [point.high for point in inside] == pytest.approx(interval.high.probabilities[at])
