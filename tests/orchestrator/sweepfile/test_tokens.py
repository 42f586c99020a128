"""A token that is learned must be asked for by a prompt, or read by a later edit."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import SweepError
from orchestrator.sweepfile.load import parse

SWEEP = """
name: inversion
concept: star
edits:
  - unlearn: uce
  - finetune:
      {{dataset: related, adapter: {adapter}, placeholder: <mug>, initializer: circle,
       caption: a <mug>}}
{later}evaluate: {{metrics: [concept_accuracy], prompts: ["a {{concept}}", "{prompt}"]}}
"""
SEARCH = """
search:
  maximize: resurgence
  trials: 2
  space: {finetune.adapter: {choices: [full, textual_inversion]}}
"""


def sweep(prompt: str = "my {concept}", later: str = "", adapter: str = "textual_inversion") -> str:
    line = f"  - finetune: {{dataset: related, {later}}}\n" if later else ""
    return SWEEP.format(prompt=prompt, later=line, adapter=adapter)


@pytest.mark.parametrize(
    "text",
    [
        sweep("a {concept} <mug>"),
        sweep("A {concept} <MUG>"),  # the model reads no capitals
        sweep(later="steps: 5"),  # its data's own captions may name it
        sweep(later="caption: my <mug>"),
        sweep(adapter="lora"),
    ],
)
def test_it_is_asked_for_or_may_be_read(text: str) -> None:
    assert parse(text).trials


@pytest.mark.parametrize(
    "text",
    [
        sweep(),
        sweep(later="caption: my circle"),
        sweep(adapter="[full, textual_inversion]"),
        sweep().replace("adapter: textual_inversion, ", "") + SEARCH,
    ],
)
def test_what_nobody_asks_for_is_refused(text: str) -> None:
    with pytest.raises(SweepError, match="resurgence would be 0 by construction"):
        parse(text)
