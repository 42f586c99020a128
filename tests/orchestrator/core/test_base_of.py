"""The base as methods see it that erase a set."""

from __future__ import annotations

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.plugin import BasePlugin, base_of
from orchestrator.core.registry import find

FROM_OTHERS = {"kind", "retained_prompts"}
"""What every base has alike, or makes of what it answers."""


def test_it_answers_as_the_base_itself_does() -> None:
    shapes = find("base", "shapes")
    base = shapes(shapes.Settings())
    assert isinstance(base, BasePlugin)
    seen = base_of(base, ConceptSet("pair", ("star", "red")))
    asked = {name for name in vars(BasePlugin) if not name.startswith("_")}
    assert asked - FROM_OTHERS - vars(type(seen)).keys() == set(), "left to BasePlugin's own answer"
    assert seen.bare("red") == base.bare("red") == "a red shape"
    assert seen.prompts("star") == base.prompts("star")
    assert (seen.guidance, seen.sampler_steps) == (base.guidance, base.sampler_steps)
    assert seen.evaluation == base.evaluation
