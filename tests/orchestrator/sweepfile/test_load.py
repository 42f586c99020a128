"""The sweep file as values."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.errors import SweepError
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweepfile.load import load, parse

QUICKSTART = """
name: quickstart
base: shapes
concept: [star]
edits:
  - unlearn:
      - esd: {group: x}
      - uce
  - finetune:
      dataset: [related, unrelated]
      adapter: [full, lora]
      learning_rate: [3.0e-4, 1.0e-3]
      steps: [0, 50, 100, 200]
evaluate: {metrics: [concept_accuracy], images_per_prompt: 8}
seeds: 2
"""

PLUGINS = '''
from pathlib import Path
from pydantic import Field
from orchestrator.core.settings import Settings
from workers.interfaces.base import Base
from workers.interfaces.dataset import Dataset
from workers.interfaces.metric import Metric
from workers.interfaces.unlearner import Unlearner

class Words(Base):
    """Knows every word."""
    name = "words"
    def concepts(self): return None
    def prompts(self, concept): return (f"a {concept}",)
    def retained(self, concept): return ("tree",)
    def never_known(self): return None
    def load(self, device): ...

class EraserSettings(Settings):
    layers: tuple[int, ...] = (1,)
    weights: dict[str, float] = {}
    where: Path
    strength: float | None = Field(1.0, gt=0)
    exact: bool = False

class Eraser(Unlearner):
    """Erases layers."""
    name = "eraser"
    Settings = EraserSettings
    def unlearn(self, erasure): ...

class Notes(Dataset):
    """Fits no cat."""
    name = "notes"
    def examples(self, concept, size_px): ...
    def problems(self, base, concept):
        return [f"has no room for {concept}"] if concept == "cat" else []

class Count(Metric):
    """Counts."""
    name = "count"
    def problems_with(self, asked):
        return [f"cannot count {asked.pictures}"] if "bird" in asked.retained else []
'''

WORDS = """
name: words
base: words
concept: {concept}
edits:
  - unlearn: {{eraser: {{where: here, {eraser}}}}}
  - finetune: {{dataset: notes}}
evaluate: {{metrics: count}}
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.py").write_text(PLUGINS)
    monkeypatch.setenv("RESURGE_PLUGINS", str(tmp_path))


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        parse(text, "f.yaml", overrides)
    return [str(problem) for problem in caught.value.problems]


def eraser(settings: str) -> Sweep:
    return parse(WORDS.format(concept="dog", eraser=settings))


def test_reads_a_sweep() -> None:
    sweep = parse(QUICKSTART)
    assert sweep.name == "quickstart"
    assert sweep.base.name == "shapes"
    assert sweep.concepts == ("star",)
    assert [edit.key for edit in sweep.edits] == ["unlearn", "finetune"]
    assert [choice.label for choice in sweep.edits[0].choices] == ["esd", "uce"]
    assert [metric.name for metric in sweep.evaluate.metrics] == ["concept_accuracy"]
    assert sweep.evaluate.sample.settings.images_per_prompt == 8
    assert sweep.evaluate.controls
    assert sweep.seeds == (0, 1)
    assert sweep.keep == ("unlearned",)
    assert sweep.resources.executor == "ray"
    assert sweep.source == QUICKSTART


def test_base_defaults_to_the_bundled_one() -> None:
    assert parse(QUICKSTART.replace("base: shapes", "")).base.name == "shapes"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("owner/model", "needs revision"),
        ("models/my-sd", "needs revision"),
        ("./shapes", "does not exist"),
    ],
)
def test_a_base_that_looks_like_a_place_is_a_diffusers_model(
    source: str, why: str, words: None
) -> None:
    text = WORDS.format(concept="dog", eraser="").replace("base: words", f"base: {source}")
    with pytest.raises(SweepError, match=rf"base\.diffusers: source '{source}' .*{why}"):
        parse(text)


def test_a_folder_is_a_base(tmp_path: Path, words: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    text = WORDS.format(concept="dog", eraser="").replace("base: words", "base: model")
    assert parse(text).base.settings.source == "model"


@pytest.mark.parametrize(
    "extra",
    [
        "",
        "zip: [[finetune.adapter, finetune.learning_rate]]",
        "exclude: [{unlearn.method: uce, finetune.steps: [100, 200]}]",
        "include: [{concept: heart, unlearn.method: esd, finetune.steps: 400, seed: 9}]",
        "keep: []\nstore: runs\nmlflow: http://localhost:5000",
        "resources: {executor: {inline: {}}, workers: 3, gpus: 0.5}",
    ],
)
def test_canonical_form_gives_the_sweep_again(extra: str) -> None:
    sweep = parse(QUICKSTART + extra, overrides=["seeds=3"])
    again = parse(json.dumps(sweep.canonical()))
    assert again == sweep
    assert again.canonical() == sweep.canonical()
    assert [t.params for t in again.trials] == [t.params for t in sweep.trials]


def test_canonical_form_keeps_lists_mappings_and_other_alphabets(words: None) -> None:
    text = WORDS.format(concept="犬 🐕", eraser="layers: [[1, 2], []], weights: {a: 1}")
    sweep = parse(text)
    again = parse(json.dumps(sweep.canonical()))
    assert again == sweep
    assert again.concepts == ("犬 🐕",)


def test_sweeps_that_mean_the_same_are_equal() -> None:
    assert parse(QUICKSTART) == parse(QUICKSTART.replace("seeds: 2", "seeds: [0, 1]"))
    assert parse(QUICKSTART) == parse(QUICKSTART.replace("- uce", "- uce: {}"))
    assert parse(QUICKSTART) != parse(QUICKSTART.replace("seeds: 2", "seeds: 3"))


def test_anchors_stand_for_values() -> None:
    text = QUICKSTART.replace("[star]", "&erased [star, heart]") + "include: [{concept: *erased}]"
    assert parse(text).concepts == ("star", "heart")


@pytest.mark.parametrize("spelling", ["1e-4", "'1e-4'", "0.0001", "1E-4", "'.0001'"])
def test_numbers_may_be_spelt_as_text(spelling: str) -> None:
    text = QUICKSTART.replace("[3.0e-4, 1.0e-3]", spelling)
    assert parse(text).trials[0].params["finetune.learning_rate"] == 1e-4


def test_a_whole_number_may_be_spelt_with_an_exponent() -> None:
    steps = parse(QUICKSTART.replace("[0, 50, 100, 200]", "1e3")).trials[0].params
    assert steps["finetune.steps"] == 1000
    assert type(steps["finetune.steps"]) is int


@pytest.mark.parametrize("word", ["yes", "on", "'true'", "1", "1.0"])
def test_only_true_and_false_are_booleans(word: str, words: None) -> None:
    text = WORDS.format(concept="dog", eraser=f"exact: {word}")
    assert "must be true or false" in problems(text)[0]


def test_a_list_setting_takes_a_list_as_its_one_value(words: None) -> None:
    assert eraser("layers: [1, 2]").edits[0].choices[0].settings["layers"] == ([1, 2],)
    assert len(eraser("layers: [1, 2]").trials) == 1
    assert len(eraser("layers: [[1, 2], [3]]").trials) == 2
    assert eraser("layers: [1, 2]").trials[0].params["unlearn.eraser.layers"] == "[1,2]"


def test_numbers_inside_a_setting_are_located(words: None) -> None:
    text = WORDS.format(concept="dog", eraser="layers: [1, x], weights: {a: '1e-3', b: c}")
    assert problems(text) == [
        "f.yaml:6: edits[0].unlearn.eraser.layers[1]: must be a whole number but got 'x'",
        "f.yaml:6: edits[0].unlearn.eraser.weights.b: must be a number but got 'c'",
    ]


def test_null_is_a_value_where_it_is_allowed(words: None) -> None:
    assert len(eraser("strength: [null, 0.5]").trials) == 2


def test_plugins_say_whether_they_fit(words: None) -> None:
    text = WORDS.format(concept="[dog, cat]", eraser="")
    assert problems(text) == ["f.yaml:7: edits[1].finetune.dataset: has no room for cat"]


def test_metrics_are_told_what_is_retained_and_how_much_is_drawn(words: None) -> None:
    text = WORDS.format(concept="[dog, owl]", eraser="")
    assert parse(text)
    text = text.replace("metrics: count", "metrics: count, retain: [fox, bird]")
    where = "f.yaml:8: evaluate.metrics: cannot count"
    assert problems(text) == [f"{where} {{'erased': 8, 'retained': 16}}"]
    few = problems(
        text, "evaluate.images_per_prompt=1", "evaluate.prompts=['{concept}', 'a {concept}']"
    )
    assert few == [f"{where} {{'erased': 2, 'retained': 2}}"]


def test_metrics_are_not_told_what_is_misspelt() -> None:
    text = QUICKSTART.replace("[concept_accuracy]", "[{clip_accuracy: {classes: [star, red]}}]")
    for wrong in ("retain: [rad]", "retian: [red]", "retain: [red], prompts: [star]"):
        [problem] = problems(text.replace("images_per_prompt: 8", wrong))
        assert "evaluate." in problem and "no class" not in problem
    concept, metric = problems(
        text.replace("[star]", "[stra]").replace("per_prompt: 8", "per_prompt: 8, retain: [red]")
    )
    assert "unknown concept 'stra'" in concept
    assert "no class 'stra'" in metric


def test_problems_of_the_grid_and_of_the_rest_come_together(words: None) -> None:
    text = WORDS.format(concept="[dog, cat]", eraser="").replace("metrics: count", "metrics: cont")
    grids, others = problems(text)
    assert grids == "f.yaml:7: edits[1].finetune.dataset: has no room for cat"
    beginning = "f.yaml:8: evaluate.metrics: unknown metric 'cont'; did you mean 'count'?"
    assert others.startswith(beginning)


def asked(sweep: Sweep, role: str) -> list[tuple[str, str]]:
    probes = sweep.evaluate.probes(sweep.base, ConceptSet.of("dog"))
    return [(probe.concept, probe.prompt) for probe in probes if probe.role == role]


def test_evaluate_falls_back_on_the_base(words: None) -> None:
    sweep = eraser("")
    assert asked(sweep, "retained") == [("tree", "a tree")]
    assert asked(sweep, "erased") == [("dog", "a dog")]


def test_evaluate_takes_its_own_concepts_and_prompts(words: None) -> None:
    text = WORDS.format(concept="dog", eraser="").replace(
        "metrics: count", "metrics: count, retain: [fox], prompts: ['{concept}!'], controls: false"
    )
    sweep = parse(text)
    assert asked(sweep, "retained") == [("fox", "fox!")]
    assert asked(sweep, "erased") == [("dog", "dog!")]
    assert not sweep.evaluate.controls


def test_an_included_concept_cannot_be_retained_too() -> None:
    extra = "include: [{concept: heart}]"
    text = QUICKSTART.replace("images_per_prompt: 8", "retain: [heart]") + extra
    assert "'heart' is erased by this sweep" in problems(text)[0]


def test_short_lists_of_aliases_cannot_mean_a_huge_file() -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    assert "means more than 200,000 values" in problems("a0: &a0 [x]\n" + levels)[0]


def test_a_missing_file_is_named_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(QUICKSTART)
    with pytest.raises(SweepError, match=r"no such file; did you mean 'quickstart.yaml'"):
        load(tmp_path / "quikstart.yaml")
    with pytest.raises(SweepError, match="nor the folder"):
        load(tmp_path / "no" / "quickstart.yaml")


def test_a_folder_is_no_sweep_file(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="is a folder"):
        load(tmp_path)


def test_a_file_must_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(SweepError, match="must be UTF-8 text but byte 9 is not"):
        load(path)


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + QUICKSTART.replace("\n", "\r\n").encode())
    assert load(path) == parse(QUICKSTART)


def test_ruamel_reads_our_canonical_form_too(tmp_path: Path) -> None:
    sweep = parse(QUICKSTART)
    path = tmp_path / "sweep.yaml"
    YAML().dump(sweep.canonical(), path)
    assert load(path) == sweep


def test_reading_a_sweep_loads_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(QUICKSTART)
    code = (
        "import sys; from pathlib import Path; from orchestrator.sweepfile.load import load\n"
        "load(Path(sys.argv[1])).trials\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'ray', 'mlflow', 'optuna', 'numpy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


UNREADABLE = {
    "is a folder": (lambda path: path.mkdir(), "must be a sweep file but is a folder"),
    "has no end": (lambda path: path.symlink_to("/dev/zero"), "is larger than 4.0 MB"),
    "is a link to itself": (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
    "is not UTF-8": (lambda path: path.write_bytes(b"name: caf\xe9"), "byte 9 is not"),
    "is UTF-16": (lambda path: path.write_text("name: x", "utf-16"), "must be UTF-8 text"),
    "is a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0"), "must be UTF-8"),
    "is empty": (lambda path: path.touch(), "the file is empty"),
    "is not there": (lambda path: None, "there is no such file"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_a_file_that_cannot_be_read_says_why(fault: str, tmp_path: Path) -> None:
    make, why = UNREADABLE[fault]
    make(tmp_path / "sweep.yaml")
    with pytest.raises(SweepError, match=why):
        load(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("name", ["x" * 5_000, "x" * 5_000 + "/y", "a\0b"])
def test_a_path_that_is_none_says_so(name: str) -> None:
    with pytest.raises(SweepError, match=r"cannot be read|no such file"):
        load(Path(f"{name}.yaml"))


BAD_PARTS = {
    "base": ("base: shapes", "base: ./no/such/folder", "does not exist here"),
    "base's name": ("base: shapes", "base: shaeps", "unknown base 'shaeps'; did you mean 'shapes'"),
    "concept": ("concept: [star]", "concept: [5]", "must be text but got 5"),
    "a method": ("esd: {group: [x, u]}", "esd: {group: [x, z]}", "must be one of"),
    "its settings": ("batch_size: 4", "batch_size: x", "batch_size: must be a whole number"),
    "a data set's folder": ("path: here", "path: no/such/folder", "no/such/folder"),
    "zip": ("zip: []", "zip: [[finetune.steps, finetune.learning_rate]]", "equally many"),
    "exclude": ("exclude: []", "exclude: [{finetune.stpes: 1}]", "unknown axis 'finetune.stpes'"),
    "include": ("include: []", "include: [{finetune.batch_sise: 1}]", "unknown axis 'finetune.ba"),
    "a metric": ("metrics: [weight", "metrics: [nothing, weight", "unknown metric 'nothing'"),
    "what is drawn": ("images_per_prompt: 1", "images_per_prompt: 0", "must be >= 1"),
    "prompts": ("prompts: ['{concept}']", "prompts: [star]", "must contain {concept}"),
    "seeds": ("seeds: 2", "seeds: 0", "must be a number of seeds"),
    "keep": ("keep: []", "keep: [all]", "must be one of unlearned"),
    "resources": ("workers: 2", "workers: -1", "resources.workers: "),
    "the name": ("name: all", "name: a/b", "becomes a folder's name"),
    "a key": ("# the end", "keap: 3", "unknown key"),
}
ALL_PARTS = """name: all
base: shapes
concept: [star]
edits:
  - unlearn: [esd: {group: [x, u]}, uce]
  - finetune:
      dataset: [related, folder: {path: here}]
      learning_rate: [1e-4, 1e-3, 1e-2]
      steps: [1, 2]
      batch_size: 4
evaluate:
  metrics: [weight_distance, concept_accuracy]
  images_per_prompt: 1
  prompts: ['{concept}']
seeds: 2
keep: []
zip: []
exclude: []
include: []
resources: {workers: 2}
# the end
"""


@pytest.mark.parametrize("one", BAD_PARTS)
def test_a_wrong_part_hides_no_other(
    one: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part wrong beside each other one: both are said."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    hidden = []
    for other in BAD_PARTS:
        text = ALL_PARTS
        for part in {one, other}:
            text = text.replace(*BAD_PARTS[part][:2])
        if {one, other} == {"base", "base's name"}:
            continue
        said = "\n".join(problems(text))
        hidden += [(part, other) for part in (one, other) if BAD_PARTS[part][2] not in said]
    assert not hidden


def test_all_wrong_parts_come_in_one_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = ALL_PARTS
    for part, (right, wrong, _) in BAD_PARTS.items():
        if part != "base's name":
            text = text.replace(right, wrong)
    said = "\n".join(problems(text))
    for part, (_, _, what) in BAD_PARTS.items():
        assert what in said or part == "base's name", part


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("finetune:\n    dataset: related\n    steps: 5", "indent 'dataset', 'steps' to be under"),
        ("unlearn:\n    esd: {group: u}", "indent 'esd' to be under 'unlearn'"),
        ("unlearn: uce\n    finetune: {dataset: related}", "begin each with '-'"),
        ("finetune: {dataset: related}\n    steps: 5", "begin each with '-'"),
        ("fintune: {dataset: related}", "unknown edit 'fintune'; did you mean 'finetune'?"),
    ],
)
def test_an_edit_that_is_laid_out_wrongly(edit: str, said: str) -> None:
    found = problems(f"name: x\nconcept: star\nedits:\n  - {edit}\nevaluate: {{metrics: fid}}\n")
    assert said in found[0]
