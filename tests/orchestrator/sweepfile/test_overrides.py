"""Overrides on the command line."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import SweepError
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import parse

TEXT = """
name: overridden
base: shapes
concept: star
edits:
  - unlearn:
      - esd: {group: x}
      - uce
  - finetune: {dataset: [related, folder: {path: .}], steps: [0, 100]}
  - finetune: {dataset: related}
evaluate: {metrics: [concept_accuracy]}
"""
PLAIN = TEXT.replace(", folder: {path: .}", "")


def override(*overrides: str) -> Sweep:
    return parse(PLAIN, "f.yaml", overrides)


def problems(*overrides: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        parse(PLAIN, "f.yaml", overrides)
    return [str(problem) for problem in caught.value.problems]


def values(sweep: Sweep, name: str) -> set[object]:
    return {trial.params.get(name) for trial in sweep.trials}


@pytest.mark.parametrize(
    ("text", "axis", "expected"),
    [
        ("finetune.learning_rate=[1e-4,3e-4]", "finetune.learning_rate", {1e-4, 3e-4}),
        ("finetune.steps=7", "finetune.steps", {7}),
        ("finetune_2.steps=[1, 2]", "finetune_2.steps", {1, 2}),
        ("finetune.dataset=unrelated", "finetune.dataset", {"unrelated"}),
        ("unlearn=[uce]", "unlearn.method", {"uce"}),
        ("unlearn.method=uce", "unlearn.method", {"uce"}),
        ("unlearn.esd.group=u", "unlearn.esd.group", {"u", None}),
        ("unlearn.esd.iterations=[5, 6]", "unlearn.esd.iterations", {5, 6, None}),
        ("unlearn.order=[continual, independent]", "unlearn.order", {"continual", "independent"}),
        ("unlearn.concepts=star", "unlearn.concepts", {"star"}),
        ("concept=[star,heart]", "concept", {"star", "heart"}),
        ("concept=[[star,heart]]", "concept", {"star+heart"}),
        ("seeds=3", "seed", {0, 1, 2}),
        ("seeds=[5]", "seed", {5}),
        ("edits=[finetune: {dataset: digits}]", "finetune.dataset", {"digits"}),
    ],
)
def test_sets_axes(text: str, axis: str, expected: set[object]) -> None:
    assert values(override(text), axis) == expected


def test_sets_what_the_file_has_not() -> None:
    sweep = override(
        "name=foo",
        "evaluate.images_per_prompt=4",
        "resources.workers=1",
        "resources.executor=inline",
        "keep=[]",
        "store=s3://bucket/runs",
    )
    assert sweep.name == "foo"
    assert sweep.evaluate.sample.settings.images_per_prompt == 4
    assert (sweep.resources.workers, sweep.resources.executor) == (1, "inline")
    assert sweep.keep == ()
    assert sweep.store == "s3://bucket/runs"


def test_reaches_a_method_beside_what_its_unlearning_is_told() -> None:
    order = "unlearn.order=continual"
    sweep = override(order, "unlearn.esd.iterations=5", "unlearn.uce.lam=0.5")
    assert values(sweep, "unlearn.esd.iterations") == {5, None}
    assert values(sweep, "unlearn.order") == {"continual"}
    assert values(override(order, "unlearn.method=uce"), "unlearn.method") == {"uce"}


def test_the_last_of_two_wins() -> None:
    assert override("seeds=3", "seeds=4").seeds == (0, 1, 2, 3)


def test_reaches_a_plugin_written_as_its_name_only() -> None:
    text = PLAIN.replace("esd: {group: x}", "esd")
    sweep = parse(text, overrides=["unlearn.esd.group=u"])
    assert values(sweep, "unlearn.esd.group") == {"u", None}


def test_reaches_a_data_sets_settings() -> None:
    with pytest.raises(SweepError) as caught:
        parse(TEXT, overrides=["finetune.folder.path=no/such/folder"])
    assert "no/such/folder, which does not exist" in str(caught.value)


def test_reaches_the_settings_of_the_base() -> None:
    text = TEXT.replace("base: shapes", "base: {diffusers: {source: a/b}}")
    with pytest.raises(SweepError) as caught:
        parse(text, overrides=["base.diffusers.source=5"])
    assert "command line: base.diffusers.source: must be text but got 5" in str(caught.value)


def test_does_not_change_the_source() -> None:
    assert override("seeds=3").source == PLAIN


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("seed=3", "seed: unknown path; did you mean 'seeds'?"),
        ("finetun.steps=3", "finetun.steps: unknown path; did you mean 'finetune.steps'?"),
        ("learning_rate=1", "learning_rate: unknown path; did you mean 'finetune.learning_rate'?"),
        ("finetune_3.steps=1", "finetune_3.steps: unknown path; did you mean 'finetune_2.steps'?"),
        ("finetune.stpes=3", "finetune.stpes: unknown key; did you mean 'steps'?"),
        ("finetune.steps=[0,-1]", "finetune.steps[1]: must be >= 0 but got -1"),
        (
            "unlearn.edsd.group=x",
            "unlearn.edsd.group: unknown path: 'edsd' is not in the sweep",
        ),
        ("unlearn.esd.grou=x", "unlearn.esd.grou: unknown key; did you mean 'group'?"),
        ("evaluate.metric=x", "evaluate.metric: unknown key; did you mean 'metrics'?"),
        ("name.x=1", "name.x: 'x' cannot be set inside 'overridden'"),
        ("seeds", "seeds: must look like finetune.steps=[0,100] but got 'seeds'"),
        ("seeds=", "seeds: must look like finetune.steps=[0,100] but got 'seeds='"),
        ("=3", "=3: must look like finetune.steps=[0,100] but got '=3'"),
        ("seeds=[1", "seeds: not valid YAML"),
        ("seeds=[1, x]", "seeds[1]: a seed must be a whole number >= 0 but got 'x'"),
        ("seeds=!!int 3", "seeds: tags such as"),
    ],
)
def test_says_what_is_wrong_on_the_command_line(text: str, beginning: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(f"command line: {beginning}")


def test_every_wrong_override_is_reported_beside_the_files_problems() -> None:
    with pytest.raises(SweepError) as caught:
        parse(PLAIN.replace("star", "stra"), "f.yaml", ["sed=1", "finetune.steps=x"])
    assert [str(problem).partition(": ")[0] for problem in caught.value.problems] == [
        "command line", "command line", "f.yaml:4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        "finetune.learning_rate=1e-4,3e-4",
        "finetune.steps=0, 100",
        "finetune.adapter=full,lora",
        "unlearn=esd,uce",
        "unlearn.esd.group=x,u",
        "finetune.dataset=related,unrelated",
        "concept=star,heart",
        "seeds=1,2",
        "evaluate.metrics=concept_accuracy,fid",
    ],
)
def test_values_without_brackets_are_shown_with_them(given: str) -> None:
    _, _, values = given.partition("=")
    [problem] = problems(given)
    assert f"a list of values is written [{values}]" in problem


@pytest.mark.parametrize("path", ["edits.finetune.steps", "edits.finetune"])
def test_an_edit_of_several_is_named_by_its_number(path: str) -> None:
    value = "5" if path.endswith("steps") else "{dataset: related}"
    [problem] = problems(f"{path}={value}")
    assert f"'{path}' means several edits; name one: finetune, finetune_2" in problem


def test_the_only_edit_of_its_kind_needs_no_number() -> None:
    assert values(override("edits.unlearn=uce"), "unlearn.method") == {"uce"}
