import math

import numpy as np
import pytest

from orchestrator.stats.paired import (
    changes,
    holm,
    mean_interval,
    mean_intervals,
    model_ruined,
    paired_interval,
    paired_intervals,
    unchanged,
    unlearning_failed,
    wilson,
)


def draw(rng, shape, spread=0.15, effect=0.3):
    """Unlearned and final values whose prompts differ in how much comes back."""
    seeds, prompts, images = shape
    gain = np.clip(effect + spread * rng.normal(size=(1, prompts, 1)), 0, 1)
    unlearned = np.zeros((1, prompts, images))
    final = (rng.uniform(size=(seeds, prompts, images)) < gain).astype(float)
    return np.ones_like(unlearned), unlearned, final


def test_known_values():
    paired = paired_interval(*(np.full((1, 4, 4), score) for score in (0.9, 0.1, 0.5)))
    assert paired.resurgence.value == pytest.approx(0.4)
    assert paired.recovery is not None
    assert paired.recovery.value == pytest.approx(0.5)


def test_recovery_of_almost_nothing_is_not_a_number():
    scores = (np.full((1, 4, 4), score) for score in (0.9, 0.88, 0.9))
    assert paired_interval(*scores).recovery is None
    values = np.ones((1, 4, 4))
    assert paired_interval(values, values * 0.98, values).recovery is None


def test_unlearning_that_leaves_more_than_half_is_failed():
    assert unlearning_failed(1.0, 0.6)
    assert not unlearning_failed(1.0, 0.5)
    assert unlearning_failed(0.0, 0.0), "a concept that the base cannot draw cannot resurge"


def test_wilson_agrees_with_published_values():
    # Newcombe (1998), table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_estimates_are_the_means_differences():
    base, unlearned, final = draw(np.random.default_rng(0), (2, 6, 8))
    paired = paired_interval(base, unlearned, final)
    assert paired.resurgence.value == pytest.approx(final.mean())
    assert paired.recovery is not None
    assert paired.recovery.value == pytest.approx(final.mean())
    assert paired.resurgence.low < paired.resurgence.value < paired.resurgence.high


def test_the_same_data_give_the_same_interval():
    values = draw(np.random.default_rng(0), (2, 6, 8))
    assert paired_interval(*values) == paired_interval(*(v.copy() for v in values))


def test_clusters_widen_the_interval():
    """Prompts that differ are the uncertainty; many images of few prompts do not hide it."""
    rng = np.random.default_rng(2)
    alike = paired_interval(*draw(rng, (2, 6, 50), spread=0.0)).resurgence
    unlike = paired_interval(*draw(rng, (2, 6, 50), spread=0.3)).resurgence
    assert unlike.high - unlike.low > 2 * (alike.high - alike.low)


def test_pairing_matters():
    """Hard and easy images are the same for both models: only what changed is uncertain."""
    rng = np.random.default_rng(3)
    unlearned = (rng.uniform(size=(1, 8, 16)) < 0.5).astype(float)
    final = np.maximum(unlearned, rng.uniform(size=unlearned.shape) < 0.2)
    base = np.ones_like(unlearned)
    shuffled = rng.permutation(final.ravel()).reshape(final.shape)
    paired = paired_interval(base, unlearned, final).resurgence
    unpaired = paired_interval(base, unlearned, shuffled).resurgence
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.75 * (unpaired.high - unpaired.low)


def test_mean_interval_of_failures_only_has_width():
    """As many prompts as there are decide how much it means: Student's t of 3, not 1.96."""
    interval = mean_interval(np.zeros((1, 4, 5)))
    assert interval.value == interval.low == 0
    assert interval.high == pytest.approx(wilson(0, 20, 3.1824463)[1])
    assert mean_interval(np.ones((1, 4, 5))).low == pytest.approx(1 - interval.high)


def test_a_score_is_as_sure_as_its_effective_number_of_images():
    """Prompts that are all or nothing: 80 images of 8 prompts tell as much as 7 images would."""
    values = np.zeros((1, 8, 10))
    values[:, :4] = 1
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx(wilson(3.5, 7, 2.3646243))


@pytest.mark.parametrize("gain", [0.0, 1.0, -1.0])
def test_where_all_images_agree_the_interval_has_width(gain):
    unlearned = np.full((2, 10, 4), max(0.0, -gain))
    paired = paired_interval(np.ones_like(unlearned), unlearned, unlearned + gain)
    interval = paired.resurgence
    assert interval.value == gain
    assert 0.02 < interval.high - interval.low < 0.2
    assert -1 <= interval.low <= gain <= interval.high <= 1
    assert (paired.p < 0.05) == (gain != 0)


def test_a_model_that_is_the_unlearned_one_has_certainly_not_resurged():
    base, unlearned, _ = draw(np.random.default_rng(0), (1, 6, 8))
    paired = unchanged(paired_interval(base, unlearned, unlearned))
    assert (paired.resurgence.low, paired.resurgence.value, paired.resurgence.high) == (0, 0, 0)
    assert paired.recovery is not None
    assert (paired.recovery.low, paired.recovery.high, paired.p) == (0, 0, 1)


def test_the_p_value_and_the_interval_agree():
    rng = np.random.default_rng(4)
    for effect in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        for shape in ((1, 5, 4), (2, 10, 4), (3, 10, 8)):
            paired = paired_interval(*draw(rng, shape, effect=effect))
            low, high = paired.resurgence.low, paired.resurgence.high
            assert (paired.p < 0.05) == (low > 0 or high < 0)


def test_seeds_that_differ_widen_the_interval():
    """Two seeds that disagree are little evidence, however many images each drew."""
    unlearned = np.zeros((2, 10, 50))
    rng = np.random.default_rng(5)
    agree = (rng.uniform(size=unlearned.shape) < 0.5).astype(float)
    differ = (rng.uniform(size=unlearned.shape) < np.array([0.3, 0.7])[:, None, None]).astype(float)
    base = np.ones_like(unlearned)
    narrow = paired_interval(base, unlearned, agree).resurgence
    wide = paired_interval(base, unlearned, differ).resurgence
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_one_seed_leaves_the_differences_between_seeds_out():
    base, unlearned, final = draw(np.random.default_rng(6), (2, 10, 8))
    one = paired_interval(base, unlearned, final[:1]).resurgence
    alike = paired_interval(base, unlearned, final[:1].repeat(2, axis=0)).resurgence
    assert (one.low, one.high) == pytest.approx((alike.low, alike.high))


def test_recovery_is_as_uncertain_as_resurgence_where_nothing_else_is():
    base, unlearned, final = draw(np.random.default_rng(7), (2, 10, 8))
    paired = paired_interval(base * 2, unlearned, final, shares=False)
    assert paired.recovery is not None
    assert paired.recovery.low == pytest.approx(paired.resurgence.low / 2)
    assert paired.recovery.high == pytest.approx(paired.resurgence.high / 2)


def test_scores_that_are_no_shares_are_not_bounded_by_1():
    rng = np.random.default_rng(8)
    final = 30 + 5 * rng.normal(size=(1, 10, 4))
    paired = paired_interval(np.full_like(final, 32), np.full_like(final, 20), final)
    assert 1 < paired.resurgence.low < 10 < paired.resurgence.high


def test_images_without_a_value_are_left_out():
    values = np.array([[[1.0, np.nan], [0.0, 0.0]]])
    assert mean_interval(values).value == pytest.approx(1 / 3)
    paired = paired_interval(np.ones((1, 2, 2)), np.zeros((1, 2, 2)), values)
    assert paired.resurgence.value == pytest.approx(1 / 3)


def test_holm_agrees_with_a_worked_example():
    # 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04 may be no smaller than the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_of_few_and_of_large_p_values():
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("base", "unlearned", "is_ruined"),
    [
        (0.95, 0.04, True),
        (1.0, 0.49, True),
        (1.0, 0.5, False),
        (0.9, 0.85, False),
        (0.9, 1.0, False),
        (0.05, 0.0, False),  # there was next to nothing to keep
        (28.0, 13.0, True),
        (1.0, math.nan, True),
    ],
)
def test_a_model_is_ruined_where_more_than_half_of_the_rest_went(
    base: float, unlearned: float, is_ruined: bool
) -> None:
    assert model_ruined(base, unlearned) is is_ruined


def test_many_at_once_are_what_each_is_alone():
    rng = np.random.default_rng(11)
    base, unlearned, final = (rng.integers(0, 2, (30, 2, 5, 4)).astype(float) for _ in range(3))
    base[:20] = 1.0  # something that was taken away, so that there is a recovery
    final[5] = unlearned[5]
    final[6:9, 0, 0, 0] = np.nan
    final[10:15] = rng.uniform(size=(5, 2, 5, 4))  # no shares
    clusters = [0, 0, 1, 2, 2]
    for of in (None, clusters):
        many = paired_intervals(base, unlearned, final, None, of)
        alone = [
            paired_interval(*models, None, of)
            for models in zip(base, unlearned, final, strict=True)
        ]
        assert many == alone
        assert any(one.recovery for one in many) and not all(one.recovery for one in many)
        assert mean_intervals(final, None, of) == [mean_interval(one, None, of) for one in final]
        lost = changes(unlearned, base, None, of)
        assert [one.value for one in lost] == pytest.approx([*(base - unlearned).mean((1, 2, 3))])
