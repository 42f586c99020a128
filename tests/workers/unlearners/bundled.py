"""Erasing the star from the bundled model, and what it draws then."""

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import ConceptSet
from tests.workers.unlearners.small import NoCheckpoints
from workers.bases.shapes import Shapes
from workers.diffusion.sampling import sample
from workers.interfaces.unlearner import Erasure
from workers.metrics.concept_accuracy import ConceptAccuracy
from workers.recipes import SampleSettings

CONCEPT = "star"
ERASED = ConceptSet.of(CONCEPT)
BASE = Shapes(Shapes.Settings())


def unlearn(warm, method, materials=None):
    """Make the base with what the method's edits change of it."""
    warm.reset()
    made = method.unlearn(
        Erasure(
            pipe=warm.pipe,
            targets=method.targets(BASE, ERASED),
            retained_prompts=method.kept_prompts(BASE, ERASED),
            seed=0,
            progress=lambda *_: None,
            checkpoints=NoCheckpoints(),
            materials=materials or {},
        )
    )
    warm.put(made.edits)


def accuracy(pipe):
    """(of the star, mean of what is retained) in [0, 1]."""
    probes = [Probe("erased", CONCEPT, prompt) for prompt in BASE.prompts(CONCEPT)]
    probes += [
        Probe("retained", other, prompt)
        for other in BASE.retained(CONCEPT)
        for prompt in BASE.prompts(other)[::3]
    ]
    settings = SampleSettings(images_per_prompt=2, guidance=BASE.guidance, sampler_steps=12)
    judge = ConceptAccuracy(ConceptAccuracy.Settings())
    metrics = judge.score_images(sample(pipe, probes, settings)).metrics
    return metrics["erased"], metrics["retained"]
