"""The `search` block: what it means, and that it comes back whole. Its faults: tests/bad_sweeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.yaml_tree import read_yaml
from orchestrator.core.errors import SweepError
from orchestrator.sweep.search import Bound, Confirm, Goal, Search
from orchestrator.sweep.space import Categorical, Range
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse
from orchestrator.sweepfile.schema import json_schema

jsonschema = pytest.importorskip("jsonschema")

SWEEP = """
name: worst
base: shapes
concept: star
edits:
  - unlearn: [uce, esd]
  - finetune: {}
evaluate: {metrics: [concept_accuracy, finetune_success]}
search:
  maximize: resurgence
  subject_to: {finetune_success: ">= 0.8", retained_accuracy: ">= 0.7"}
  for_each: unlearn.method
  space:
    finetune.dataset: [related, unrelated, {digits: {size: 64}}]
    finetune.adapter: [full, lora]
    finetune.lora_rank: {choices: [4, 16], when: {finetune.adapter: lora}}
    finetune.learning_rate: {log: [1.0e-5, 3.0e-3]}
    finetune.steps: {int: [25, 400], step: 25}
    unlearn.esd.negative_guidance: {float: [0.5, 3], digits: 3}
  sampler: tpe
  pruner: hyperband
  trials: 60
  parallel: auto
  confirm: {top: 3, seeds: 5}
"""


def search_of(text: str = SWEEP, *overrides: str) -> Search:
    search = parse(text, "f.yaml", overrides).search
    assert search is not None
    return search


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        parse(text, "f.yaml", overrides)
    return [str(problem) for problem in caught.value.problems]


def test_reads_a_search() -> None:
    search = search_of()
    assert search.goals == (Goal("resurgence"),)
    assert search.subject_to == (
        Bound("finetune_success", True, 0.8),
        Bound("retained_accuracy", True, 0.7),
    )
    assert search.for_each == ("unlearn.method",)
    assert search.settings.sampler == "tpe"
    assert search.settings.pruner == "hyperband"
    assert search.settings.trials == 60
    assert search.settings.parallel == "auto"
    assert search.confirm == Confirm(top=3, seeds=5)
    assert search.space.dimensions == (
        Categorical("finetune.dataset", ("related", "unrelated", "digits")),
        Categorical("finetune.adapter", ("full", "lora")),
        Categorical("finetune.lora_rank", (4, 16), (("finetune.adapter", ("lora",)),)),
        Range("finetune.learning_rate", 1e-5, 3e-3, log=True),
        Range("finetune.steps", 25, 400, is_int=True, step=25),
        Range(
            "unlearn.esd.negative_guidance",
            *(0.5, 3),
            digits=3,
            when=(("unlearn.method", ("esd",)),),
        ),
    )


def test_every_value_of_for_each_has_a_study_of_its_own() -> None:
    sweep = parse(SWEEP)
    search = search_of()
    assert search.studies(sweep.grid) == [{"unlearn.method": "uce"}, {"unlearn.method": "esd"}]
    uce, esd = (search.space.within(fixed) for fixed in search.studies(sweep.grid))
    assert "unlearn.esd.negative_guidance" not in uce.described()
    assert "unlearn.esd.negative_guidance" in esd.described()


def test_without_for_each_there_is_one_study() -> None:
    text = SWEEP.replace("  for_each: unlearn.method\n", "").replace(
        "  space:\n", "  space:\n    unlearn.method: [uce, esd]\n"
    )
    sweep = parse(text)
    assert sweep.search is not None
    assert sweep.search.studies(sweep.grid) == [{}]
    guidance = sweep.search.space.dimensions[-1]
    assert guidance.when == (("unlearn.method", ("esd",)),)


def test_a_method_that_has_no_rival_needs_no_condition() -> None:
    search = search_of(SWEEP.replace("[uce, esd]", "esd"))
    assert search.space.within({"unlearn.method": "esd"}).dimensions[-1].when == ()


def test_settings_may_be_searched_of_edits_that_are_not_given_any() -> None:
    """A data set that the space chooses need not stand in `edits`; its own settings may."""
    sweep = parse(SWEEP)
    (digits,) = [c for c in sweep.edits[1].choices if c.label == "digits"]
    assert digits.settings == {"size": (64,)}


@pytest.mark.parametrize(
    ("goals", "meant"),
    [
        ("maximize: recovery", (Goal("recovery"),)),
        ("maximize: finetune_success.improvement", (Goal("finetune_success.improvement"),)),
        (
            "maximize: [resurgence, retained_accuracy]",
            (Goal("resurgence"), Goal("retained_accuracy")),
        ),
        (
            "maximize: resurgence\n  minimize: finetune.steps",
            (Goal("resurgence"), Goal("finetune.steps", False)),
        ),
        ("minimize: concept_accuracy", (Goal("concept_accuracy", False),)),
    ],
)
def test_goals_are_numbers_metrics_or_ranges(goals: str, meant: tuple[Goal, ...]) -> None:
    text = SWEEP.replace("maximize: resurgence", goals).replace("pruner: hyperband", "pruner: none")
    assert search_of(text).goals == meant


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (">= 0.8", Bound("x", True, 0.8)),
        ("<=1e-3", Bound("x", False, 1e-3)),
        (">= -.5", Bound("x", True, -0.5)),
        (" <=  2 ", Bound("x", False, 2.0)),
        ("> 0.8", None),
        (">= much", None),
        (">= 1.2.3", None),
        (">= nan", None),
        ("0.8", None),
        ("", None),
    ],
)
def test_bounds_are_spelt_as_comparisons(text: str, bound: Bound | None) -> None:
    assert Bound.parse("x", text) == bound


def test_a_violation_is_how_far_a_value_is_on_the_wrong_side() -> None:
    assert Bound("x", True, 0.8).violation({"x": 0.5}) == pytest.approx(0.3)
    assert Bound("x", True, 0.8).violation({"x": 0.8}) == 0
    assert Bound("x", False, 0.1).violation({"x": 0.4}) == pytest.approx(0.3)
    assert Bound("x", False, 0.1).violation({"x": 0.0}) < 0


def same(sweep: Sweep) -> Sweep:
    return parse(json.dumps(sweep.canonical()))


def test_canonical_form_gives_the_sweep_again() -> None:
    sweep = parse(SWEEP, overrides=["search.trials=7", "seeds=2"])
    again = same(sweep)
    assert again == sweep
    assert again.canonical() == sweep.canonical()
    assert again.search == sweep.search
    assert same(again) == sweep


def test_sweeps_that_search_differently_are_not_equal() -> None:
    assert parse(SWEEP) != parse(SWEEP, overrides=["search.trials=7"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.trials=10", lambda s: s.settings.trials == 10),
        ("search.confirm.top=1", lambda s: s.confirm == Confirm(top=1, seeds=5)),
        ("search.maximize=recovery", lambda s: s.goals == (Goal("recovery"),)),
        ("search.storage=journal:///s", lambda s: s.settings.storage == "journal:///s"),
        ("search.space.finetune.steps=[25, 50]", lambda s: s.space.dimensions[4].size == 2),
        ("search.space.finetune.steps.step=75", lambda s: s.space.dimensions[4].size == 6),
        ("search.space.finetune.batch_size=[4, 8]", lambda s: s.space.dimensions[6].size == 2),
        ("search.subject_to.retained_accuracy='>= 0.5'", lambda s: s.subject_to[1].value == 0.5),
        ("search.subject_to.finetune_success.share='>= 1'", lambda s: len(s.subject_to) == 3),
    ],
)
def test_the_command_line_changes_it(override: str, expected: Any) -> None:
    assert expected(search_of(SWEEP, override))


def test_the_command_line_is_checked_like_the_file() -> None:
    assert problems(SWEEP, "search.trials=many") == [
        "command line: search.trials: must be a whole number but got 'many'"
    ]
    [problem] = problems(SWEEP, "search.trails=10")
    assert "unknown key; did you mean 'trials'?" in problem


def test_many_faults_are_told_together() -> None:
    text = (
        SWEEP.replace("[1.0e-5, 3.0e-3]", "[3.0e-3, 1.0e-5]")
        .replace("trials: 60", "trials: none")
        .replace('">= 0.7"', '"at least 0.7"')
    )
    lines = [problem.split(": ")[0] for problem in problems(text)]
    assert lines == ["f.yaml:11", "f.yaml:17", "f.yaml:22"]


def test_a_fault_that_only_a_combination_shows_names_the_point() -> None:
    text = SWEEP.replace("finetune: {}", "finetune: {warmup_steps: 30}").replace(
        "finetune.adapter: [full, lora]",
        "finetune.adapter: [full, lora]\n    finetune.schedule: [constant, cosine]",
    )
    [problem] = problems(text)
    assert problem.startswith("f.yaml:14: search.space: warmup_steps (30) must be below steps (25)")
    assert "finetune.schedule: 'cosine'" in problem


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema.Draft202012Validator(json_schema())


def plain(text: str) -> Any:
    node = read_yaml(text, None, [])
    assert node is not None
    return node.plain()


def test_the_schema_accepts_a_search(validator: Any) -> None:
    assert list(validator.iter_errors(plain(SWEEP))) == []
    assert list(validator.iter_errors(parse(SWEEP).canonical())) == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("trials: 60", "trails: 60"),
        ("trials: 60", "trials: 0"),
        ("sampler: tpe", "sampler: tp"),
        ("top: 3", "best: 3"),
        ('">= 0.8"', '"0.8"'),
    ],
)
def test_the_schema_refuses_what_is_misspelt(validator: Any, good: str, bad: str) -> None:
    assert not validator.is_valid(plain(SWEEP.replace(good, bad)))


def test_planning_a_search_loads_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    code = (
        "import sys; from pathlib import Path; from orchestrator.sweepfile.load import load\n"
        "from orchestrator.study.points import PointPlanner\n"
        "points = PointPlanner(load(Path(sys.argv[1])))\n"
        "space = points.search.space.within({'unlearn.method': 'uce'})\n"
        "points.plan(points.trials(next(space.corners())))\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'ray', 'mlflow', 'optuna'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_reading_a_search_loads_no_numpy(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    code = (
        "import sys; from pathlib import Path; from orchestrator.sweepfile.load import load\n"
        "load(Path(sys.argv[1])); sys.exit('numpy' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code, path], cwd=root).returncode == 0
