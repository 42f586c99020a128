import numpy as np
import pytest

from orchestrator.analysis import (
    mean_interval,
    paired_bootstrap,
    recovery,
    resurgence,
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
    assert resurgence(0.1, 0.5) == pytest.approx(0.4)
    assert recovery(0.9, 0.1, 0.5) == pytest.approx(0.5)


def test_recovery_of_almost_nothing_is_not_a_number():
    assert recovery(0.9, 0.88, 0.9) is None
    values = np.ones((1, 4, 4))
    assert paired_bootstrap(values, values * 0.98, values).recovery is None


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
    paired = paired_bootstrap(base, unlearned, final)
    assert paired.resurgence.value == pytest.approx(final.mean())
    assert paired.recovery is not None
    assert paired.recovery.value == pytest.approx(final.mean())
    assert paired.resurgence.low < paired.resurgence.value < paired.resurgence.high


def test_the_same_data_give_the_same_interval():
    values = draw(np.random.default_rng(0), (2, 6, 8))
    assert paired_bootstrap(*values) == paired_bootstrap(*(v.copy() for v in values))


def test_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        interval = paired_bootstrap(*draw(rng, (2, 10, 8))).resurgence
        covered += interval.low <= 0.3 <= interval.high
    assert 0.90 <= covered / 100 <= 1.0


def test_clusters_widen_the_interval():
    """Prompts that differ are the uncertainty; many images of few prompts do not hide it."""
    rng = np.random.default_rng(2)
    alike = paired_bootstrap(*draw(rng, (2, 6, 50), spread=0.0)).resurgence
    unlike = paired_bootstrap(*draw(rng, (2, 6, 50), spread=0.3)).resurgence
    assert unlike.high - unlike.low > 2 * (alike.high - alike.low)


def test_pairing_matters():
    """Hard and easy images are the same for both models: only what changed is uncertain."""
    rng = np.random.default_rng(3)
    unlearned = (rng.uniform(size=(1, 8, 16)) < 0.5).astype(float)
    final = np.maximum(unlearned, rng.uniform(size=unlearned.shape) < 0.2)
    base = np.ones_like(unlearned)
    shuffled = rng.permutation(final.ravel()).reshape(final.shape)
    paired = paired_bootstrap(base, unlearned, final).resurgence
    unpaired = paired_bootstrap(base, unlearned, shuffled).resurgence
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.75 * (unpaired.high - unpaired.low)


def test_mean_interval_of_failures_only_has_width():
    interval = mean_interval(np.zeros((1, 4, 5)))
    assert interval.value == interval.low == 0
    assert interval.high == pytest.approx(wilson(0, 20)[1])


def test_images_without_a_value_are_left_out():
    values = np.array([[[1.0, np.nan], [0.0, 0.0]]])
    assert mean_interval(values).value == pytest.approx(1 / 3)


def test_large_data_are_resampled_in_chunks():
    values = np.random.default_rng(0).uniform(size=(2, 10, 100))
    interval = paired_bootstrap(np.ones_like(values), np.zeros_like(values), values).resurgence
    assert interval.low < 0.5 < interval.high
