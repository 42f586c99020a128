import math
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.coverage import (
    USUAL,
    World,
    coverage_by_prompt,
    coverage_of_resurgence,
    coverage_of_score,
    power,
)
from orchestrator.stats.intervals import are_shares, least_variances, two_way_means, without_gaps


def two_way_mean(values, clusters=None):
    """Of one mean, its numbers."""
    means = two_way_means(values[None], clusters=clusters)
    return SimpleNamespace(
        value=float(means.values[0]),
        variance=float(means.variances[0]),
        df=float(means.dfs[0]),
        half_width=float(means.half_widths[0]),
        p_value=float(means.p_values[0]),
    )


def test_known_variance_and_degrees_of_freedom():
    """Two seeds of three prompts, an image each, by hand.

    Prompts' means 0.25, 0.5, 0.9 have variance 0.1075, seeds' means 0.6, 0.5 have 0.005.
    """
    values = np.array([[[0.3], [0.5], [1.0]], [[0.2], [0.5], [0.8]]])
    mean = two_way_mean(values)
    prompts, seeds = 0.1075 / 3, 0.005 / 2
    assert mean.value == pytest.approx(0.55)
    assert mean.variance == pytest.approx(prompts + seeds)
    assert mean.df == pytest.approx((prompts + seeds) ** 2 / (prompts**2 / 2 + seeds**2 / 1))


def test_one_seed_is_the_one_sample_t_interval_of_the_prompts():
    values = np.random.default_rng(0).uniform(size=(1, 10, 4))
    mean = two_way_mean(values)
    means = values.mean(axis=(0, 2))
    assert mean.df == pytest.approx(9)
    assert mean.half_width == pytest.approx(2.2621572 * means.std(ddof=1) / math.sqrt(10))


def test_images_of_a_single_prompt_stand_for_prompts():
    values = np.random.default_rng(0).uniform(size=(2, 1, 12))
    assert two_way_mean(values) == two_way_mean(values.transpose(0, 2, 1))


def test_a_single_image_proves_nothing():
    mean = two_way_mean(np.full((1, 1, 1), 0.7))
    assert (mean.value, mean.half_width, mean.p_value) == (0.7, math.inf, 1.0)


def test_equal_scores_that_are_no_shares_are_certain():
    mean = two_way_mean(np.full((2, 4, 3), 0.5))
    assert (mean.half_width, mean.p_value) == (0, 0)


def test_the_least_variance_has_half_a_pair_in_every_cell():
    """10 pairs, 4 of which came and 1 of which went: (4.5, 1.5) of 12."""
    differences = np.array([1, 1, 1, 1, -1, 0, 0, 0, 0, 0], dtype=float)
    expected = (6 / 12 - (3 / 12) ** 2) / 10
    assert least_variances(differences[None]) == pytest.approx(expected)


def test_gaps_change_neither_the_mean_nor_the_order_of_its_error():
    rng = np.random.default_rng(1)
    values = rng.uniform(size=(2, 20, 10))
    gappy = np.where(rng.uniform(size=values.shape) < 0.2, np.nan, values)
    [filled] = without_gaps(gappy[None])
    assert filled.mean() == pytest.approx(np.nanmean(gappy))
    full, part = two_way_mean(values), two_way_mean(filled)
    assert full.variance < part.variance < 2 * full.variance
    assert without_gaps(values) is values


def test_gaps_of_one_leave_the_others_alone():
    values = np.random.default_rng(1).uniform(size=(2, 1, 4, 3))
    gappy = values.copy()
    gappy[0, 0, 0, 0] = np.nan
    filled = without_gaps(gappy)
    assert np.array_equal(filled[1], values[1])
    assert filled[0].mean() == pytest.approx(np.nanmean(gappy[0]))


def test_shares_are_told_one_by_one():
    values = np.array([[0.0, 1.0, np.nan], [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]])
    assert are_shares(values).tolist() == [True, False, True]


def test_many_at_once_are_what_each_is_alone():
    rng = np.random.default_rng(3)
    values = rng.uniform(size=(20, 3, 6, 4))
    values[:3] = 0.5  # nothing varies
    clusters = [0, 0, 1, 1, 2, 2]
    least = rng.uniform(0, 0.02, 20)
    for which in (None, clusters):
        many = two_way_means(values, least, which)
        for i in range(20):
            one = two_way_means(values[i : i + 1], least[i : i + 1], which)
            for name in ("values", "variances", "dfs", "half_widths", "p_values"):
                assert getattr(many, name)[i] == getattr(one, name)[0]


@pytest.mark.slow
@pytest.mark.parametrize("world", [w for w in USUAL if w.seeds <= 3 and w.seed_sd > 0], ids=str)
def test_intervals_cover_what_they_say(world: World):
    """2,000 sweeps with effects of prompts and of seeds; one seed is held fixed."""
    assert 0.93 <= coverage_of_resurgence(world).covered <= 0.97


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_several_concepts_speak_of_other_concepts(seeds: int):
    """Concepts differ, and their prompts are many: by prompt alone the interval is too narrow."""
    world = World(
        seeds, prompts=50, images=2, unlearned=1.5, final=0.5, concepts=10, concept_sd=0.6
    )
    assert 0.92 <= coverage_of_resurgence(world, sweeps=400).covered <= 0.98
    assert 0.92 <= coverage_of_score(world, sweeps=400).covered <= 0.985
    assert coverage_by_prompt(world, sweeps=400).covered < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_intervals_of_a_score_cover_what_they_say(seeds: int):
    assert 0.93 <= coverage_of_score(World(seeds)).covered <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_nothing_that_came_back_is_rarely_found(seeds: int):
    """Both models show the concept now and then, and as often: at most 1 in 20 is called clear."""
    assert power(World(seeds, unlearned=-1.0, final=-1.0, seed_sd=0.0, both_sd=0.0)) <= 0.06


def test_clusters_of_one_size_vary_as_their_means_do():
    values = np.random.default_rng(1).uniform(size=(1, 12, 2))
    values += np.repeat(np.linspace(0, 2, 4), 3)[None, :, None]
    mean = two_way_mean(values, clusters=[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    means = values.mean(axis=(0, 2)).reshape(4, 3).mean(axis=1)
    assert mean.variance == pytest.approx(means.var(ddof=1) / 4)
    assert mean.df == pytest.approx(3)


def test_clusters_never_make_an_interval_narrower_and_one_of_them_is_none():
    rng = np.random.default_rng(2)
    values = rng.uniform(size=(2, 6, 3))
    plain = two_way_mean(values)
    for _ in range(20):
        clusters = [int(c) for c in rng.integers(0, 3, 6)]
        assert two_way_mean(values, clusters=clusters).variance >= plain.variance
    assert two_way_mean(values, clusters=[0] * 6) == plain
