import numpy as np
import pytest

from orchestrator.cli.show.plan import sentence, size_of
from orchestrator.stats.paired import paired_interval
from orchestrator.stats.power import IMAGE_VARIANCE, PROMPT_ICC, SEED_ICC, Size, minimum_detectable
from tests.orchestrator import synthetic

SWEEPS = 2_000


def found(effect: float, size: Size, rng: np.random.Generator) -> bool:
    """Whether a sweep finds the effect, under the correlations stated."""
    seed_icc = SEED_ICC if size.seeds > 1 else 0.0
    parts = (
        (PROMPT_ICC, (1, size.prompts, 1)),
        (seed_icc, (size.seeds, 1, 1)),
        (1 - PROMPT_ICC - seed_icc, (size.seeds, size.prompts, size.images)),
    )
    error = sum(np.sqrt(IMAGE_VARIANCE * icc) * rng.normal(size=shape) for icc, shape in parts)
    final = effect + np.asarray(error)
    zero = np.zeros_like(final)
    return paired_interval(zero + 1, zero, final, shares=False).p < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(10, 8, 1), (10, 4, 2), (10, 8, 3), (6, 4, 2), (20, 8, 5)])
def test_the_least_effect_is_found_in_four_of_five_sweeps(counts):
    size, rng = Size(*counts), np.random.default_rng(0)
    effect = minimum_detectable(size)
    assert np.mean([found(effect, size, rng) for _ in range(SWEEPS)]) == pytest.approx(
        0.80, abs=0.05
    )


def test_many_prompts_and_one_seed_are_the_normal_approximation():
    prompts = 2_000
    error = np.sqrt(IMAGE_VARIANCE * (PROMPT_ICC + (1 - PROMPT_ICC) / 8) / prompts)
    least = minimum_detectable(Size(prompts, 8, 1))
    assert least == pytest.approx((1.95996 + 0.84162) * error, rel=0.02)


def test_more_of_anything_detects_less():
    least = minimum_detectable(Size(10, 4, 3))
    for more in (Size(20, 4, 3), Size(10, 16, 3), Size(10, 4, 6)):
        assert minimum_detectable(more) < least


def test_images_of_a_single_prompt_stand_for_prompts():
    assert minimum_detectable(Size(1, 16, 1)) == minimum_detectable(Size(16, 1, 1), 0.0)


def test_the_sentence_says_what_it_rests_on():
    size = size_of(synthetic.make_plan())
    assert size == Size(prompts=6, images=4, seeds=2)
    said = sentence(size)
    for part in ("6 prompts × 4 images × 2 seeds", "80% power", "0.2 by prompt", "0.05 by seed"):
        assert part in said
    assert "this seed only" in sentence(Size(10, 8, 1))
    assert "none, not even 1.00" in sentence(Size(1, 1, 1))
