"""What a sweep means beside what it says is told before it runs."""

from __future__ import annotations

import pytest

from orchestrator.plan.doubts import doubts
from orchestrator.plan.plan import make_plan
from orchestrator.sweepfile.load import parse

SWEEP = """
name: doubtful
concept: star
edits:
  - unlearn: {unlearn}
  - finetune: {{dataset: related, learning_rate: 1e-3, {finetune}}}
evaluate: {{metrics: [concept_accuracy], controls: {controls}, prompts: [{prompts}]}}
"""
OWN = '"my {concept}"'


def told(
    finetune: str = "steps: 5", unlearn: str = "uce", controls: str = "true", prompts: str = OWN
) -> list[str]:
    text = SWEEP.format(finetune=finetune, unlearn=unlearn, controls=controls, prompts=prompts)
    sweep = parse(text)
    return list(doubts(make_plan(sweep).trials, sweep.base))


@pytest.mark.parametrize(
    "finetune",
    [
        "steps: [0, 10, 20]",
        "adapter: lora, lora_rank: [4, 16, 64]",
        "adapter: lora, lora_rank: 16, lora_alpha: 4",
        "adapter: [full, lora], lora_rank: [4, 16], lora_alpha: [4, 16]",
        "steps: [0, 10], warmup_steps: 9",
        "steps: [0, 10], schedule: cosine",
        "adapter: full, lora_rank: [4, 16], lora_alpha: 4",
        "steps: 20, ema_decay: 0.9999",
    ],
)
def test_what_means_what_it_says_is_not_doubted(finetune: str) -> None:
    assert told(finetune, "[uce, {sdd: {preset: sd}}, sdd]") == []


@pytest.mark.parametrize(
    ("finetune", "said"),
    [
        (
            "adapter: lora, lora_rank: [4, 16, 64], lora_alpha: 4",
            "finetune: lora_rank varies while lora_alpha stays 4, so the scale (alpha / rank)",
        ),
        (
            "steps: [0, 10, 20], schedule: linear",
            "finetune: with schedule linear each of the 2 step counts decays over its own steps",
        ),
        (
            "steps: [0, 5, 10, 50], warmup_steps: 10",
            "finetune: up to 10 steps all are warm-up (warmup_steps 10): the learning rate is not",
        ),
    ],
)
@pytest.mark.parametrize("controls", ["true", "false"])
def test_axes_that_move_more_than_they_say(finetune: str, said: str, controls: str) -> None:
    (doubt,) = told(finetune, controls=controls)
    assert doubt.startswith(said)


def test_a_moving_average_that_is_mostly_the_model_before() -> None:
    (doubt,) = told("steps: 10", "[{sdd: {ema_decay: 0.999, iterations: [100, 1500]}}]")
    assert "sdd's result is a moving average, of which 90% is still the model before" in doubt
    assert "after 100 iterations at ema_decay 0.999" in doubt


@pytest.mark.parametrize(
    ("unlearn", "prompts", "said"),
    [
        (
            "esd",
            '"A {concept} ", "my {concept}"',
            "1 of the 2 scored as erased are trained on by esd",
        ),
        ("[{esd: {prompts: [['{concept}'], ['a {concept}']]}}]", '"a {concept}"', "1 of the 1"),
        (
            "uce",
            '"a {concept}"',
            "1 of the 1 scored as erased are trained on by uce (see `prompts`); "
            "6 of the 7 scored as retained are preserved by uce (see `preserve`); "
            "`evaluate.set: held_out` asks in others",
        ),
        ("[{uce: {prompts: [['{concept}']], preserve: [[circle]]}}]", '"{concept}"', "1 of the 7"),
        ("[esd, uce, sdd, mace, spm]", '"a {concept}"', "by esd, mace, sdd and 2 more"),
    ],
)
def test_prompts_that_are_both_trained_on_and_scored(unlearn: str, prompts: str, said: str) -> None:
    (doubt,) = told(unlearn=unlearn, prompts=prompts)
    assert doubt.startswith("unlearn: of the prompts, ") and said in doubt


def test_the_bare_concept_and_concepts_of_ones_own_to_preserve_are_apart_from_the_score() -> None:
    own = "prompts: [['{concept}']]"
    apart = f"[{{uce: {{{own}, preserve: [[red, blue]]}}}}, {{esd: {{{own}}}}}]"
    assert told(unlearn=apart, prompts='"a {concept}"') == []
