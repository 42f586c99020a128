import pytest
import torch

from orchestrator.core.concepts import ConceptSet
from tests.workers.unlearners.bundled import BASE
from tests.workers.unlearners.golden.released import Released, erasure, weights
from tests.workers.unlearners.steps import draw, pictures
from workers.diffusion.rng import generator
from workers.erasure.materials import pack, unpack
from workers.interfaces.material import Work
from workers.unlearners.scissorhands import Scissorhands, cut_as_released, initial

INITIAL = {"nsfw": "uniform", "class": "normal"}


@pytest.mark.parametrize("case", INITIAL)
def test_scores_threshold_and_cut(shapes, released, monkeypatch, case):
    with released("scissorhands") as golden:
        asked, before = golden.settings["cases"][case], weights(shapes)
        drawn = {n: golden.input(f"{case}.{n}") for n in ("rows", "t", "noise")}
        draw(monkeypatch, lambda step, stream: {n: v[step] for n, v in drawn.items()})
        method = Scissorhands(
            Scissorhands.Settings(
                variant="released",
                sparsity=asked["sparsity"],
                score_batches=asked["batches"],
                score_guidance=asked["guidance"],
                batch_size=asked["batch_size"],
                initial=INITIAL[case],
            )
        )
        needs = method.needs(BASE, ConceptSet.of(golden.settings["concept"]))
        saliency = needs["cut"].plugin
        source = pictures(golden.input("latents"), golden.settings["prompts"])
        work = Work(shapes, {}, source, lambda *_: None)
        summed = saliency.summed_gradients(work)
        order = golden.names(case)
        for name in golden.tensors:
            prefix = f"{case}.gradient_abs_sum."
            if name.startswith(prefix):
                rows = summed[name.removeprefix(prefix)]
                golden.compare(name, rows[: len(golden.expected(name))])
        totals = torch.stack([summed[n].sum() for n in order])
        golden.compare(f"{case}.gradient_abs_sum_total", totals)

        monkeypatch.setattr(saliency, "summed_gradients", lambda work: summed)
        made = saliency.make(work)
        masks = {n: unpack(made.tensors[n], before[n].shape) for n in order}
        golden.compare(f"{case}.threshold", made.numbers["threshold"])
        golden.compare_exactly(f"{case}.cut_count", torch.stack([masks[n].sum() for n in order]))
        cut = cut_as_released(order)
        assert sorted(cut) == sorted(asked["reinitialised"])
        cut = asked["reinitialised"]
        whole = torch.cat([masks[n].flatten() for n in cut])
        golden.compare_exactly(f"{case}.cut_packed", pack(whole))

        after = cut_by(method, shapes, made.tensors)
        changed = {n: (after[n] != before[n]) for n in order}
        counts = torch.stack([changed[n].sum() for n in cut])
        golden.compare_exactly(f"{case}.reinitialised_count", counts)
        assert all(torch.equal(changed[n], masks[n]) for n in cut)
        assert not any(changed[n].any() for n in order if n not in cut)
        if not golden.disturbed:
            assert {n for n in order if changed[n].any()} == set(asked["changed"])


def cut_by(method, pipe, masks):
    """The weights after the cut, before any repair."""
    what = erasure(pipe, "star", [], materials={"cut": masks})
    method.cut(what, dict(pipe.unet.named_parameters()))
    return weights(pipe)


def test_new_weights_are_distributed_as_released():
    golden = Released("scissorhands")
    for fan_in, bound, std in zip(
        *(golden.expected(f"init.{n}") for n in ("fan_in", "nsfw_bound", "nsfw_std")), strict=True
    ):
        drawn = new_weights("uniform", int(fan_in))
        assert float(bound) * 0.999 < drawn.abs().max() <= float(bound)
        assert drawn.std().item() == pytest.approx(float(std), rel=0.01)
        drawn = new_weights("normal", int(fan_in))
        assert drawn.std().item() == pytest.approx(
            float(golden.expected("init.class_std")), rel=0.01
        )
        assert abs(drawn.mean().item()) < 0.01 * float(std)


def new_weights(kind, fan_in):
    names = {"to_q.weight": torch.empty(2000, fan_in), "to_q.bias": torch.empty(2000)}
    assert not initial(kind, "to_q.bias", names, generator(0, 0, "bias")).any()
    return initial(kind, "to_q.weight", names, generator(0, 0, "weight"))
