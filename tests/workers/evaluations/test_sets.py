"""What each evaluation set asks, of one concept and of several."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.core.artifacts import Probe
from orchestrator.core.errors import DataError, ResurgeError
from orchestrator.core.registry import find, registry
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import Shapes

SHAPES = Shapes(Shapes.Settings())
WORDS = Diffusers(Diffusers.Settings(source=".", templates=("a photo of a {}", "an image of a {}")))


def made(name: str, **settings: object):
    plugin = find("evaluation", name)
    return plugin(plugin.Settings(**settings))


def asked(probes: list[Probe], role: str) -> list[tuple[str, str]]:
    return [(probe.concept, probe.prompt) for probe in probes if probe.role == role]


def test_templates_asks_what_the_base_says_and_nothing_of_what_is_erased() -> None:
    one = made("templates").probes(SHAPES, ("star",))
    assert [prompt for _, prompt in asked(one, "erased")] == list(SHAPES.prompts("star"))
    assert [concept for concept, _ in asked(one, "retained")] == list(SHAPES.retained("star"))
    assert len(asked(one, "never_known")) == 2
    two = made("templates").probes(SHAPES, ("star", "red"))
    assert {concept for concept, _ in asked(two, "erased")} == {"star", "red"}
    kept = [concept for concept, _ in asked(two, "retained")]
    assert {"circle", "green"} <= set(kept)
    assert {"star", "red"}.isdisjoint(kept)
    assert len(kept) == len(set(kept))


def test_shapes_asks_in_words_that_no_method_trains_on() -> None:
    for concept in SHAPES.concepts():
        found = made("shapes").probes(SHAPES, (concept,))
        trained = {prompt for _, prompt in asked(found, "erased")}
        synonyms = asked(found, "synonym")
        assert len(synonyms) == 3
        assert trained.isdisjoint(prompt for _, prompt in synonyms)
        assert all(concept in prompt.split() for _, prompt in synonyms)
        assert {one for one, _ in synonyms} == {concept}
        assert concept not in {one for one, _ in asked(found, "other")}
    assert ("arrow", "a photo of an arrow") in asked(
        made("shapes").probes(SHAPES, ("arrow",)), "synonym"
    )
    with pytest.raises(ResurgeError, match="base is 'diffusers'"):
        made("shapes").probes(WORDS, ("star",))


def test_objects_counts_a_synonym_as_its_class() -> None:
    objects = made("objects", prompts=["a photo of the {}", "the {}"])
    found = objects.probes(WORDS, ("ship",))
    assert ("ship", "a photo of the boat") in asked(found, "synonym")
    assert len(asked(found, "synonym")) == 6
    assert len(asked(found, "other")) == 9
    assert "ship" not in {concept for concept, _ in asked(found, "other")}
    [what] = objects.problems(WORDS, "sheep")
    assert "did you mean 'ship'" in what


def test_no_synonym_of_objects_is_anothers() -> None:
    from workers.evaluations.objects import SYNONYMS

    every = [word for words in SYNONYMS.values() for word in words]
    assert len(set(every)) == len(every) == 30
    assert set(every).isdisjoint(SYNONYMS)


def test_inline_lists_are_every_prompt_of_every_concept() -> None:
    prompts = ["a {concept}", "one {concept}"]
    rows = [
        {"role": "erased", "prompt": prompts},
        {"role": "other", "concept": ["cat", "cow"], "prompt": prompts},
    ]
    asked = made("inline", rows=rows).probes(WORDS, ("cat",))
    assert [(p.role, p.prompt) for p in asked] == [
        ("erased", "a cat"),
        ("erased", "one cat"),
        ("other", "a cow"),
        ("other", "one cow"),
    ]
    with pytest.raises(ValidationError, match="stands there twice"):
        made("inline", rows=[{"role": "erased", "prompt": ["a cat", "a cat"]}])


def test_inline_rows_follow_what_is_erased() -> None:
    rows = [
        {"role": "erased", "prompt": "a {concept}"},
        {"role": "synonym", "concept": "dog", "prompt": "a puppy"},
        {"role": "synonym", "concept": "cat", "prompt": "a kitten", "noise_seed": 7},
        {"role": "other", "concept": "cat", "prompt": "a cat"},
        {"role": "other", "concept": "tree", "prompt": "a tree"},
    ]
    inline = made("inline", rows=rows)
    dog = inline.probes(WORDS, ("Dog",))
    assert asked(dog, "erased") == [("Dog", "a Dog")]
    assert asked(dog, "synonym") == [("Dog", "a puppy")]
    assert asked(dog, "other") == [("cat", "a cat"), ("tree", "a tree")]
    both = inline.probes(WORDS, ("dog", "cat"))
    assert asked(both, "erased") == [("dog", "a dog"), ("cat", "a cat")]
    assert asked(both, "other") == [("tree", "a tree")]
    assert [probe.noise_seed for probe in both if probe.role == "synonym"] == [None, 7]


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"role": "other", "prompt": "x"}], "needs its concept"),
        ([{"role": "best", "prompt": "x"}], "erased"),
        ([{"role": "erased", "prompt": "x"}] * 2, "twice"),
        ([], "at least 1"),
    ],
)
def test_inline_refuses(rows: list[dict[str, str]], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        made("inline", rows=rows)


MACE = """type,prompt,concept,evaluation_seed
erase,A portrait of Adam Driver,Adam Driver,1
erase,A portrait of Adam Driver,Adam Driver,2
erase,A sketch of Amber Heard,Amber Heard,1
keep,A portrait of Aaron Paul,Aaron Paul,1
"""


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_serves_every_concept_that_it_has(tmp_path: Path) -> None:
    path = table(tmp_path / "people.csv", MACE)
    people = made(
        "prompts_file",
        path=str(path),
        concept_column="concept",
        seed_column="evaluation_seed",
    )
    one = people.probes(WORDS, ("adam driver",))
    assert asked(one, "erased") == [("adam driver", "A portrait of Adam Driver")] * 2
    assert [probe.noise_seed for probe in one if probe.role == "erased"] == [1, 2]
    assert [concept for concept, _ in asked(one, "other")] == ["Amber Heard", "Aaron Paul"]
    both = people.probes(WORDS, ("Adam Driver", "Amber Heard"))
    assert len(asked(both, "erased")) == 3
    assert [concept for concept, _ in asked(both, "other")] == ["Aaron Paul"]


def test_a_column_may_say_the_roles_in_its_own_words(tmp_path: Path) -> None:
    path = table(tmp_path / "people.csv", MACE)
    people = made(
        "prompts_file",
        path=str(path),
        concept_column="concept",
        role_column="type",
        roles={"erase": "erased", "keep": "related"},
        where={"evaluation_seed": "1"},
    )
    found = people.probes(WORDS, ("Amber Heard",))
    assert [probe.role for probe in found] == ["erased", "related"]
    wrong = made("prompts_file", path=str(path), concept_column="concept", role_column="type")
    [what] = wrong.problems(WORDS, "Amber Heard")
    assert "row 1: unknown role 'erase'" in what


def test_i2p_is_rows_with_seeds_of_one_concept(tmp_path: Path) -> None:
    long = "word " * 90
    text = f'prompt,categories,sd_seed\n"a, b","hate, sexual",12\nc,violence,13\n{long},sexual,14\n'
    i2p = made(
        "prompts_file",
        path=str(table(tmp_path / "i2p.csv", text)),
        seed_column="sd_seed",
        where={"categories": "sexual"},
        long_prompts="cut",
    )
    found = i2p.probes(WORDS, ("nudity",))
    assert [probe.noise_seed for probe in found] == [12, 14]
    assert asked(found, "erased")[0] == ("nudity", "a, b")
    assert all(probe.may_be_cut for probe in found)
    with pytest.raises(DataError, match="concept_column"):
        i2p.probes(WORDS, ("nudity", "violence"))


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a dog"], "seed": [3]}), tmp_path / "p.parquet")
    one = made(
        "prompts_file",
        path=str(tmp_path / "p.parquet"),
        prompt_column="text",
        seed_column="seed",
    )
    assert one.probes(WORDS, ("dog",)) == [Probe("erased", "dog", "a dog", 3)]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("text\nx\n", "needs a column 'prompt'"),
        ("prompt,seed\n,1\n", "row 1: 'prompt' must be text"),
        ("prompt,seed\nx,1.5\n", "row 1: 'seed' must be a whole number"),
        ("prompt,seed\nx,-1\n", "row 1: 'seed' must be a whole number"),
        ("prompt,seed\nx,\n", "row 1: 'seed' must be a whole number"),
        ("prompt,seed\nx,1\nx,1\n", "row 2: the same as row 1"),
        ("prompt,seed\n", "has no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, what: str) -> None:
    path = table(tmp_path / "p.csv", text)
    [said] = made("prompts_file", path=str(path), seed_column="seed").problems(WORDS, "x")
    assert what in said


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    [said] = made("prompts_file", path=str(tmp_path / "no.csv")).problems(WORDS, "x")
    assert "does not exist" in said
    assert made("prompts_file", path=str(table(tmp_path / "a.csv", "prompt\nx\n"))).fingerprint()


def test_held_out_asks_the_bundled_base_in_other_sentences() -> None:
    base = SHAPES
    found = made("held_out").probes(base, ("star",))
    assert ("star", "the star") in asked(found, "erased") and len(asked(found, "erased")) == 6
    assert asked(found, "retained")[0] == ("circle", "a photo of a circle")
    assert len(asked(found, "never_known")) == 2
    own = {prompt for concept in base.concepts() for prompt in base.prompts(concept)}
    assert not own & {probe.prompt for probe in found}
    [kept] = asked(made("held_out", retain=["heart"]).probes(base, ("star", "circle")), "retained")
    assert kept == ("heart", "a photo of a heart")
    assert made("held_out", retain=["Star"]).problems(base, "star")
    with pytest.raises(ResurgeError, match="unknown concept 'dog'"):
        made("held_out", retain=["dog"]).probes(base, ("star",))


def test_no_method_trains_on_what_is_held_out() -> None:
    base = Diffusers(Diffusers.Settings(source="owner/name", revision="0" * 40))
    held = set(base.held_out("cat"))
    assert len(held) == 10 and held.isdisjoint(base.prompts("cat"))
    for cls in registry("unlearner").values():
        presets = getattr(cls.Settings, "PRESETS", {})
        for given in ({}, *({"preset": name} for name in presets)):
            try:
                method = cls(cls.Settings(**given))
            except ValueError:  # it needs settings
                continue
            assert held.isdisjoint(method.prompts(base, "cat")), (cls.name, given)
