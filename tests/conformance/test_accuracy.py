"""What every unlearning method must do to the bundled model: the concept goes, the others stay.

Dear methods are cut short, so this asks for a clear difference, not for docs/methods.md's numbers.
"""

from __future__ import annotations

import pytest

from orchestrator.core.digest import sha256
from orchestrator.core.registry import find, registry
from tests.workers.unlearners.bundled import BASE, ERASED, accuracy, unlearn
from workers.editing.pipeline import WarmPipeline
from workers.interfaces.material import Work

pytestmark = [pytest.mark.slow]

DEAR = {
    "advunlearn", "concept_ablation", "receler", "resalign", "scissorhands", "sdd", "spm", "stereo",
}  # fmt: skip
"""Half a minute to a minute and a half each, even so."""
METHODS = [
    pytest.param(name, marks=pytest.mark.long) if name in DEAR else name
    for name, cls in registry("unlearner").items()
    if cls.changes and cls.is_method
]
PASSES = 8_000
"""What a method may cost; more, and its iterations are cut in proportion."""
LONGER = {"receler": 14_000, "sdd": 20_000, "stereo": 20_000}
"""The methods that show nothing clear after so few."""


@pytest.fixture(scope="module")
def warm():
    return WarmPipeline(BASE, "cpu")


@pytest.fixture(scope="module")
def material(warm):
    """Make a material, or find it made: methods share most of them."""
    made = {}

    def get(need):
        key = sha256(described(need))
        if key not in made:
            source = get(need.of) if need.of else None
            warm.reset()
            made[key] = need.plugin.make(Work(warm.pipe, need.asked, source, lambda *_: None))
        return need.plugin.read(made[key].tensors, need.asked)

    return get


def described(need):
    source = described(need.of) if need.of else None
    return [need.plugin.name, need.plugin.settings.full(), dict(need.asked), source]


def affordable(name):
    """The method with its defaults, cut short if it is dear."""
    cls = find("unlearner", name)
    method = cls(cls.Settings())
    passes = LONGER.get(name, PASSES)
    if method.passes() <= passes:
        return method
    iterations = method.settings.iterations * passes // method.passes()
    return cls(cls.Settings(iterations=iterations))


@pytest.fixture(scope="module")
def before(warm):
    warm.reset()
    return accuracy(warm.pipe)


@pytest.mark.parametrize("name", METHODS)
def test_the_concept_goes_and_the_others_stay(warm, material, before, name):
    method = affordable(name)
    needs = method.needs(BASE, ERASED)
    unlearn(warm, method, {key: material(need) for key, need in needs.items()})
    erased, retained = accuracy(warm.pipe)
    assert before[0] >= 0.9
    assert before[0] - erased >= 0.3, f"erased {before[0]:.2f} -> {erased:.2f}"
    lost = before[1] - retained
    assert before[0] - erased >= 2 * lost, f"retained {before[1]:.2f} -> {retained:.2f}"


@pytest.mark.long
def test_recelers_published_preset_erases(warm, before):
    """As published but for the rate, the number of iterations and the sentences, which are shapes':
    its regulariser, mask, adversary and erasers are what is asked about.
    """
    cls = find("unlearner", "receler")
    own = {"prompts": "base", "iterations": 200, "learning_rate": 1e-3}
    unlearn(warm, cls(cls.Settings.model_validate({"preset": "sd", **own})), {})
    erased, retained = accuracy(warm.pipe)
    assert before[0] >= 0.9 and retained >= 0.75
    assert before[0] - erased >= 0.6, f"erased {before[0]:.2f} -> {erased:.2f}"
