"""Every iterative method with its batches in parts: the same gradient, less of it at a time."""

import pytest
import torch

import workers.training.optimise
from orchestrator.core.registry import find, registry
from tests.workers.runtime.test_parts import batches_of
from tests.workers.unlearners.small import small
from workers.interfaces.unlearner import TrainSettings
from workers.runtime.parts import in_parts

METHODS = [
    name
    for name, cls in registry("unlearner").items()
    if cls.changes and issubclass(cls.Settings, TrainSettings)
]
WHOLE = {"forget_me_not", "mace", "receler"}
"""Their losses read what the layers of the trained pass left, so that pass is not parted. The
published settings of all three have a batch of one picture."""


def away_from_the_start(phase):
    """Adapters begin at zero, where many gradients vanish."""
    draw = torch.Generator().manual_seed(5)
    for p in phase.parameters.values():
        p.data.add_(0.02 * torch.randn(p.shape, generator=draw, dtype=p.dtype))


def gradients(pipe, phase):
    """Of the first step, and the sizes of the batches that gradients were asked of."""
    with batches_of(pipe.unet, only_training=True) as sizes:
        phase.backward(0)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in phase.parameters.values()]
    for p in phase.parameters.values():
        p.grad = None
    return found, sizes


def each_phase(monkeypatch, look):
    """Have `look(phase)` called in place of every optimisation."""

    def probe(erasure, settings, phase):
        away_from_the_start(phase)
        look(phase)
        return 0.0

    monkeypatch.setattr(workers.training.optimise, "optimise", probe)


def assert_near(found, expected):
    scale = max(float(g.abs().max()) for g in expected)
    assert scale > 0
    for got, wanted in zip(found, expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-7, atol=1e-9 * scale)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", [name for name in METHODS if name not in WHOLE])
def test_the_gradient_is_that_of_the_whole_batch(pipe, erasure, monkeypatch, name):
    method, seen = small(find("unlearner", name), batch_size=5), []

    def look(phase):
        expected, whole = gradients(pipe, phase)
        for parts, largest in ((2, 3), (3, 2)):
            with in_parts(parts):
                found, sizes = gradients(pipe, phase)
            seen.append((max(whole), max(sizes), largest))
            assert_near(found, expected)

    each_phase(monkeypatch, look)
    method.unlearn(erasure(method))
    assert seen
    assert all(whole == 5 and size == largest for whole, size, largest in seen)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_cannot_be_parted_is_computed_whole(warm, erasure, monkeypatch, name):
    method, seen = small(find("unlearner", name), batch_size=5), []
    each_phase(monkeypatch, lambda phase: seen.append(gradients(warm.pipe, phase)))
    asked = erasure(method)
    method.unlearn(asked)
    warm.reset()
    with in_parts(2):
        method.unlearn(asked)
    (expected, _), (found, sizes) = seen
    assert max(sizes) == 5
    assert_near(found, expected)
