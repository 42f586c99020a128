"""The plan says what a sweep may not be meant to mean, and goes on."""

from __future__ import annotations

from pathlib import Path

from tests.orchestrator.cli.conftest import Command

HOW = ("finetune.adapter=lora", "finetune.lora_rank=[2, 4]", "finetune.lora_alpha=2")
BRIEF = ("unlearn=nudge", "seeds=1", "finetune.learning_rate=1e-3", "finetune.steps=[0]")


def test_a_confounded_axis_is_a_warning(resurge: Command, small: str, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(small)
    said = resurge("plan", "small.yaml", *BRIEF, "evaluate.controls=false", *HOW)
    assert said.count("warning: finetune: lora_rank varies while lora_alpha stays 2") == 1


def test_a_search_says_at_once_which_scored_prompts_are_trained_on(
    resurge: Command, small: str, tmp_path: Path
) -> None:
    search = "{maximize: resurgence, space: {finetune.learning_rate: {log: [1e-4, 1e-2]}}}"
    (tmp_path / "small.yaml").write_text(small)
    said = resurge("plan", "small.yaml", *BRIEF, "unlearn=uce", f"search={search}")
    assert "scored as erased are trained on by uce" in said
