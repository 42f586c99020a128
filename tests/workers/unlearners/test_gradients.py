"""The gradient of every hand-written loss, against differences of the loss itself in fp64.

A method's targets are constants to its gradient (sg[...] in the papers), and so are x_t and what an
adversary found. All of them come out of the UNet, the text encoder or the attack; so these are
written down while the gradient is computed and played back while the loss is probed beside it.
"""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

import workers.erasure.adversary
import workers.training.optimise
from orchestrator.core.registry import find, registry
from tests.workers.unlearners.small import small
from workers.interfaces.unlearner import TrainSettings

METHODS = [
    name
    for name, cls in registry("unlearner").items()
    if cls.changes and issubclass(cls.Settings, TrainSettings)
]
ONE_LOSS = {
    "concept_ablation": {"variant": "paper"},
    "erasediff": {"variant": "released", "weight": 1.0, "inner_passes": 0},
    "resalign": {"resilience_weight": 0.0},
    "scissorhands": {"variant": "released"},
}
"""Settings under which what a method descends is the gradient of one loss: without gradients at
other weights, without projections and with none blocked, which have tests of their own."""

STEP = 1e-5
"""Of the central differences: rounding is near 1e-11 and truncation near 1e-10 of the loss."""


class Constants:
    """What is computed outside the graph: written down at first, then played back in order."""

    def __init__(self):
        self.kept, self.again = [], None

    def replay(self):
        self.again = iter(self.kept)

    def of(self, make):
        if self.again is not None:
            return next(self.again)
        self.kept.append(copy.deepcopy(make()))
        return self.kept[-1]

    def hook(self, module, args, output):
        """A forward hook of every module; only whole networks without a graph are constants."""
        if isinstance(module, UNet2DConditionModel | CLIPTextModel) and not torch.is_grad_enabled():
            return self.of(lambda: output)
        return None


def slopes(phase, constants, count=3):
    """(⟨∇L, δ⟩, (L(θ + hδ) - L(θ - hδ)) / 2h) along random directions δ of unit length."""
    parameters = list(phase.parameters.values())
    phase.backward(0)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]

    def moved(directions, size):
        for p, d in zip(parameters, directions, strict=True):
            p.data.add_(d, alpha=size)

    def value(directions, size):
        moved(directions, size)
        constants.replay()
        loss = float(phase.backward(0))
        assert next(constants.again, None) is None
        moved(directions, -size)
        return loss

    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        directions = unit([torch.randn(p.shape, generator=draw) for p in parameters])
        # Half of it along the gradient: a slope that is large enough to be compared.
        pairs = zip(directions, unit(gradients), strict=True)
        directions = unit([d + g for d, g in pairs])
        analytic = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        numeric = (value(directions, STEP) - value(directions, -STEP)) / (2 * STEP)
        yield analytic, numeric


def unit(tensors):
    length = torch.cat([t.flatten() for t in tensors]).norm()
    return [t / length for t in tensors]


def away_from_the_start(phase):
    """Move the parameters a little: adapters begin at zero, where many gradients vanish."""
    draw = torch.Generator().manual_seed(5)
    for p in phase.parameters.values():
        p.data.add_(0.02 * torch.randn(p.shape, generator=draw))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_that_of_the_loss(brief, erasure, monkeypatch, name):
    method = small(find("unlearner", name), **ONE_LOSS.get(name, {}))
    seen = []

    def probe(erasure, settings, phase):
        away_from_the_start(phase)
        constants = Constants()
        attack = workers.erasure.adversary.attack
        handle = torch.nn.modules.module.register_module_forward_hook(constants.hook)
        with monkeypatch.context() as patch:
            found = lambda *args, **kwargs: constants.of(lambda: attack(*args, **kwargs))  # noqa: E731
            patch.setattr(workers.erasure.adversary, "attack", found)
            try:
                seen.extend((phase.name, *pair) for pair in slopes(phase, constants))
            finally:
                handle.remove()
        for p in phase.parameters.values():
            p.grad = None
        return 0.0

    monkeypatch.setattr(workers.training.optimise, "optimise", probe)
    method.unlearn(erasure(method))
    assert seen
    for phase, analytic, numeric in seen:
        assert analytic != 0
        assert numeric == pytest.approx(analytic, rel=1e-5), phase
