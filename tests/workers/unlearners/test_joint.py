"""Several concepts erased jointly: what each method makes of more than one."""

import copy

import pytest
import torch

from orchestrator.core.concepts import ConceptSet, Target
from orchestrator.core.registry import find, registry
from tests.workers.conftest import TinyShapes
from tests.workers.unlearners.small import NoCheckpoints, make_materials, small
from workers.diffusion.text import embed, last_subject_index, subject_words
from workers.erasure.relabel import counterparts
from workers.interfaces.unlearner import Erasure
from workers.unlearners.mace import MACE, MACESettings
from workers.unlearners.spm import SPM
from workers.unlearners.uce import UCE

JOINT = [
    name
    for name, cls in registry("unlearner").items()
    if cls.joint and cls.changes and cls.is_method
]
PAIR = ConceptSet("pair", ("star", "red"), {"star": "heart"})


class FewPrompts(TinyShapes):
    """Two prompts a concept, one concept to retain: materials are quickly made."""

    def prompts(self, concept):
        return super().prompts(concept)[:2]

    def retained(self, concept):
        return tuple(word for word in ("circle", "blue") if word != concept)


@pytest.fixture
def few():
    return FewPrompts(FewPrompts.Settings())


@pytest.fixture
def run(pipe, few):
    """Erase a set from the tiny pipeline with a method; gives what it made."""

    def unlearn(method, erased):
        return method.unlearn(
            Erasure(
                pipe=pipe,
                targets=method.targets(few, erased),
                retained_prompts=method.kept_prompts(few, erased),
                seed=0,
                progress=lambda *_: None,
                checkpoints=NoCheckpoints(),
                materials=make_materials(pipe, method, few, erased),
            )
        )

    return unlearn


@pytest.mark.parametrize("name", JOINT)
def test_every_method_that_says_so_erases_a_set(name, run, few):
    method = small(find("unlearner", name))
    assert method.problems_of(few, PAIR) == []
    made = run(method, PAIR)
    assert made.edits
    tensors = [value for edit in made.edits for value in edit.tensors().values()]
    assert all(torch.isfinite(value).all() for value in tensors)


@pytest.mark.parametrize("name", JOINT)
def test_a_method_says_how_it_erases_several(name):
    assert find("unlearner", name).jointly


def test_the_anchors_are_the_sets_own_then_the_bases_that_survive(few):
    method = small(find("unlearner", "salun"), prompts="base")
    star, red = method.targets(few, PAIR)
    assert star.anchor_prompts == few.prompts("heart")
    assert red.anchor_prompts == few.prompts("circle")  # few's first retained one
    both = ConceptSet("both", ("star", "circle"))
    star, circle = method.targets(few, both)
    assert star.anchor_prompts == circle.anchor_prompts == few.prompts("blue")
    assert method.preserved_prompts(few, "star") == few.prompts("circle") + few.prompts("blue")
    assert method.kept_prompts(few, both) == few.prompts("blue")


def test_an_anchor_that_is_erased_or_said_twice_is_refused(few):
    bad = ConceptSet("bad", ("star", "circle"), {"star": "circle"})
    [found] = small(find("unlearner", "concept_ablation")).problems_of(few, bad)
    assert "needs an anchor" not in found
    assert "'circle', is erased too" in found
    method = small(find("unlearner", "salun"), anchor="blue", prompts=("a {concept}",))
    pair = ConceptSet("pair", ("star", "arrow"), {"star": "heart"})
    [found] = method.problems_of(few, pair)
    assert "maps 'star' to 'blue' by its settings but 'pair' maps it to 'heart'" in found


def test_what_is_erased_cannot_be_preserved(few):
    method = small(UCE, preserve=("blue", "circle"))
    [found] = method.problems_of(few, ConceptSet("both", ("star", "circle")))
    assert "is told to preserve 'circle', which 'both' erases" in found


def test_uce_moves_every_concept_towards_its_anchor_or_else_the_target(pipe, run, few):
    method = small(UCE, prompts="bare", tokens="last", lam=1e-8, preserve_scale=0.0)
    layer = next(m for n, m in pipe.unet.named_modules() if n.endswith("attn2.to_k"))

    def read(text):
        return layer(embed(pipe, [text]))[0, last_subject_index(pipe.tokenizer, text)].clone()

    assert [target.prompts for target in method.targets(few, PAIR)] == [
        ("a star",),
        ("a red shape",),
    ]
    goals = {"star": read(few.bare("heart")), "red": read("")}
    before = {concept: read(few.bare(concept)) for concept in goals}
    run(method, PAIR)
    for concept, goal in goals.items():
        way = (read(few.bare(concept)) - goal).norm()
        assert way < 0.1 * (before[concept] - goal).norm()


@pytest.mark.parametrize("name", ["uce", "rece", "speed"])
def test_what_maps_to_a_text_reads_the_anchors_that_a_set_gives(name, run):
    method = small(find("unlearner", name))
    plain = ConceptSet(PAIR.name, PAIR.concepts)
    [mapped], [without] = run(method, PAIR).edits, run(method, plain).edits
    assert all(
        not torch.equal(value, without.tensors()[name]) for name, value in mapped.tensors().items()
    )


def test_a_single_concepts_anchor_is_read_by_what_maps_to_a_text(few):
    said = ConceptSet("star", ("star",), {"star": "heart"})
    uce, esd = (find("unlearner", name) for name in ("uce", "esd"))
    [target] = small(uce, prompts="base").targets(few, said)
    assert target.anchor_prompts == few.prompts("heart")
    assert small(uce).targets(few, ConceptSet.of("star"))[0].anchor_prompts == ()
    assert small(esd).targets(few, said)[0].anchor_prompts == ()
    [found] = small(uce, target="a thing").problems_of(few, said)
    assert "maps 'star' to 'a thing' by its settings but 'star' maps it to 'heart'" in found
    itself = ConceptSet("star", ("star",), {"star": "star"})
    [found] = small(uce).problems_of(few, itself)
    assert "'star', is erased too" in found


def test_spm_stacks_what_it_makes_of_each_alone(pipe, run):
    method = small(SPM, prompts="base")  # one prompt alone is embedded with other rounding
    both = [edit.tensors() for edit in run(method, PAIR).edits]
    alone = [run(method, ConceptSet.of(c)).edits[0].tensors() for c in PAIR.concepts]
    assert [edit.concept for edit in run(method, PAIR).edits] == ["star", "red"]
    for one, other in zip(both, alone, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_mace_fuses_a_lora_a_concept_with_the_sums_over_all(pipe, run, monkeypatch):
    """(λ W + Σ (W + ΔWᵢ) Eᵢ + s W⁰ P)(λ I + Σ Eᵢ + s P)⁻¹, W being part 1's result."""
    method, seen = small(MACE, prompts="base", lam=0.5, prior_scale=0.1), []
    mute = MACE._mute

    def muted(self, erasure, **phase):
        factors, loss = mute(self, erasure, **phase)
        seen.append((erasure, factors, phase["name"]))
        return factors, loss

    def weights():
        unet = copy.deepcopy(pipe.unet)
        return {n: p.double() for n, p in unet.named_parameters() if ".attn2.to_k" in n}

    original, refined = weights(), {}
    fuse = MACE._fuse
    monkeypatch.setattr(MACE, "_mute", muted)
    monkeypatch.setattr(MACE, "_fuse", lambda *given: (refined.update(weights()), fuse(*given))[1])
    run(method, PAIR)
    assert [name for *_, name in seen] == ["lora 0", "lora 1"]
    assert [erasure.concept for erasure, *_ in seen] == ["star", "red"]
    assert seen[0][0].seed != seen[1][0].seed
    kept = embed(pipe, ["a blue shape", "a blue circle"]).flatten(0, 1).double()
    kept = torch.cat([kept, embed(pipe, ["a circle", "a red circle"]).flatten(0, 1).double()])
    prior = kept.T @ kept
    grams = []
    for erasure, *_ in seen:
        tokens = embed(pipe, erasure.prompts).flatten(0, 1).double()
        grams.append(tokens.T @ tokens)
    system = 0.5 * torch.eye(64).double() + sum(grams) + 0.1 * prior
    for name, now in weights().items():
        path = name.removesuffix(".weight")
        wanted = 0.5 * refined[name] + 0.1 * original[name] @ prior
        for gram, (_, factors, _) in zip(grams, seen, strict=True):
            down, up = factors[path]
            wanted = wanted + (refined[name] + up.double() @ down.double()) @ gram
        wanted = wanted @ torch.linalg.inv(system)
        assert torch.allclose(now, wanted, atol=1e-5)


@pytest.mark.parametrize("preset", ["sd-celebrity-5", "sd-celebrity-10", "sd-art-100"])
def test_a_preset_of_mace_for_a_set_refuses_others(few, preset):
    method = MACE(MACESettings(preset=preset))
    wanted = int(preset.rpartition("-")[2])
    [found] = method.problems_of(few, ConceptSet("pair", ("star", "arrow")))
    assert f"the preset {preset} is for {wanted} concepts erased jointly but 'pair' has 2" in found
    assert any("has 1" in found for found in method.problems_of(few, ConceptSet.of("star")))


def test_pictures_of_prompts_that_two_concepts_share_keep_their_own_counterparts():
    prompts = ("a star", "a red star", "a red star", "a red shape")
    others = ("a heart", "a red heart", "a blue star", "a blue shape")
    pictures = [prompt for prompt in prompts for _ in range(2)]
    assert counterparts(pictures, prompts, others) == [o for o in others for _ in range(2)]


def test_each_prompt_has_its_own_concepts_words(pipe):
    words = subject_words(pipe, ["a red star", "a red star"], ["star", "red"])
    assert words.nonzero().tolist() == [[0, 3], [1, 2]]


def test_prompts_and_subjects_are_those_of_all_targets_in_order(pipe):
    targets = (Target("star", ("a star", "star"), ("a heart", "heart")), Target("red", ("red",)))
    erasure = Erasure(pipe, targets, (), 0, lambda *_: None, NoCheckpoints())
    assert erasure.prompts == ("a star", "star", "red")
    assert erasure.subjects == ("star", "star", "red")
    assert erasure.anchor_prompts == ("a heart", "heart")
