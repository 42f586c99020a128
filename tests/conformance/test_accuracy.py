"""What every unlearning method must do to the bundled model: the concept goes, the others stay.

Dear methods are cut short, so this asks for a clear difference, not for docs/methods.md's numbers.
"""

from __future__ import annotations

import pytest

from orchestrator.plugin import find, registry
from orchestrator.stage import sha256
from workers.bases.shapes import Shapes
from workers.checkpoints import NoCheckpoints
from workers.materials.base import Work
from workers.metrics.base import Probe
from workers.metrics.concept_accuracy import ConceptAccuracy
from workers.pipeline import WarmPipeline
from workers.recipes import SampleSettings
from workers.sampling import sample
from workers.unlearners.base import Erasure

pytestmark = [pytest.mark.slow]

METHODS = [name for name, cls in registry("unlearner").items() if cls.changes]
CONCEPT = "star"
PASSES = 8_000
"""What a method may cost; more, and its iterations are cut in proportion."""


@pytest.fixture(scope="module")
def base():
    return Shapes(Shapes.Settings())


@pytest.fixture(scope="module")
def warm(base):
    return WarmPipeline(base, "cpu")


@pytest.fixture(scope="module")
def material(warm):
    """Make a material, or find it made: methods share most of them."""
    made = {}

    def get(need):
        if need is None:
            return None
        key = sha256(described(need))
        if key not in made:
            source = get(need.of)
            warm.reset()
            made[key] = need.plugin.make(Work(warm.pipe, need.asked, source, lambda *_: None))
        return need.plugin.read(made[key].tensors, need.asked)

    return get


def described(need):
    plugin = need.plugin
    source = described(need.of) if need.of else None
    return [plugin.name, plugin.settings.full(), dict(need.asked), source]


def affordable(name):
    """The method with its defaults, cut short if it is dear."""
    cls = find("unlearner", name)
    method = cls(cls.Settings())
    if method.passes() <= PASSES:
        return method
    iterations = method.settings.iterations * PASSES // method.passes()
    return cls(cls.Settings(iterations=iterations))


def accuracy(pipe, base):
    """(of the concept, mean of the retained) in [0, 1]."""
    probes = [Probe("erased", CONCEPT, prompt) for prompt in base.prompts(CONCEPT)]
    probes += [
        Probe("retained", other, prompt)
        for other in base.retained(CONCEPT)
        for prompt in base.prompts(other)[::3]
    ]
    settings = SampleSettings(images_per_prompt=2, guidance=base.guidance, sampler_steps=12)
    judge = ConceptAccuracy(ConceptAccuracy.Settings())
    metrics = judge.score_images(sample(pipe, probes, settings)).metrics
    return metrics["erased"], metrics["retained"]


@pytest.fixture(scope="module")
def before(warm, base):
    warm.reset()
    return accuracy(warm.pipe, base)


@pytest.mark.parametrize("name", METHODS)
def test_the_concept_goes_and_the_others_stay(warm, base, material, before, name):
    method = affordable(name)
    materials = {key: material(need) for key, need in method.needs(base, CONCEPT).items()}
    warm.reset()
    made = method.unlearn(
        Erasure(
            pipe=warm.pipe,
            concept=CONCEPT,
            prompts=base.prompts(CONCEPT),
            retained_prompts=base.retained_prompts(CONCEPT),
            anchor_prompts=base.prompts(base.anchor(CONCEPT)),
            seed=0,
            progress=lambda *_: None,
            checkpoints=NoCheckpoints(),
            materials=materials,
        )
    )
    warm.put(made.edits)
    erased, retained = accuracy(warm.pipe, base)
    gone, lost = before[0] - erased, before[1] - retained
    assert before[0] >= 0.9
    assert gone >= 0.3, f"erased {before[0]:.2f} -> {erased:.2f}"
    assert gone >= 2 * lost, f"erased -> {erased:.2f}, retained -> {retained:.2f}"
