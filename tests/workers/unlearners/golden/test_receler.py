"""Receler against its released code: erasers, mask, regulariser, and the whole inner loop."""

import pytest
import torch

import workers.erasure.negative_guidance
import workers.unlearners.receler
from tests.workers.unlearners.golden.released import Released, erasure
from workers.diffusion.attention import recorded
from workers.diffusion.denoise import noise_predictor
from workers.diffusion.text import embed, subject_words
from workers.editing.adapters import Bottlenecks
from workers.unlearners.receler import Receler, SoftTokens, object_mask, outside


def given(golden):
    """The file's erasers."""
    names = [n for n in golden.tensors if n.startswith("eraser.")]
    return Bottlenecks({n.removeprefix("eraser."): golden.input(n) for n in names})


def test_erasers_and_soft_tokens_begin_in_the_released_bounds(bundled):
    made = Bottlenecks.new(bundled.unet, 128, 0).tensors()
    modules = dict(bundled.unet.named_modules())
    for path in Released("receler").settings["layers"]:
        root = modules[path].to_out[0].out_features ** 0.5
        for part in ("down", "down_bias"):
            values = made[f"{path}.{part}"] * root
            assert 0.95 < values.abs().max() <= 1
            assert values.std() == pytest.approx(3**-0.5, rel=0.1)
        assert not made[f"{path}.up"].any()
        assert not made[f"{path}.up_bias"].any()
    mean, deviation = Released("receler").expected("start.uniform_mean_std").tolist()
    text, words = torch.zeros(1, 77, 64), torch.zeros(1, 77, dtype=torch.bool)
    rows = SoftTokens.begin(Receler.Settings(soft_tokens=16), text, words, 0).rows.detach()
    assert rows.min() >= 0
    assert rows.max() < 1
    assert (rows.mean(), rows.std()) == pytest.approx((mean, deviation), abs=0.02)


def mask_of(golden, pipe, side):
    """The mask of the original at the concept's prompt."""
    prompts, unet = [golden.settings["prompt"]], pipe.unet
    words = subject_words(pipe, prompts, golden.settings["concept"])
    at = golden.input("x_t"), golden.input("t")
    with torch.no_grad(), recorded(unet) as maps:
        noise_predictor(pipe)(*at, embed(pipe, prompts))
    assert words[0].nonzero().flatten().tolist() == golden.settings["word_positions"]
    mask = object_mask(maps, words, 8, 8, golden.settings["mask_threshold"])
    return torch.nn.functional.interpolate(mask, (side, side), mode="nearest")


def test_the_mask(shapes):
    golden = Released("receler")
    for name, side in (("mask", 4), ("mask.4", 4), ("mask.8", 8)):
        golden.compare_exactly(name, mask_of(golden, shapes, side).to(torch.uint8))
    golden.check()


def test_the_regulariser(shapes, released):
    with released("receler") as golden:
        mask = mask_of(golden, shapes, 4)
        erasers, text = given(golden), embed(shapes, [golden.settings["prompt"]])
        with torch.no_grad(), erasers.on(shapes), erasers.recorded() as added:
            noise_predictor(shapes)(golden.input("x_t"), golden.input("t"), text)
        layers = outside({path: added[path] for path in golden.settings["layers"]}, mask)
        golden.compare("regulariser.each_layer", layers)
        golden.compare("regulariser", layers.mean())


@pytest.mark.parametrize("case", ["released", "inserted"])
def test_the_inner_loop(shapes, released, monkeypatch, case):
    with released("receler") as golden:
        asked = golden.settings
        method = Receler(
            Receler.Settings(
                variant="released" if case == "released" else "paper",
                iterations=1,
                batch_size=1,
                rank=asked["rank"],
                learning_rate=asked["learning_rate"],
                attack_steps=asked["inner_steps"],
                negative_guidance=asked["eta"],
                local_weight=asked["regulariser_weight"],
                mask_threshold=asked["mask_threshold"],
            )
        )
        erasers, seen = given(golden), []
        before = erasers.tensors()
        soft = SoftTokens(golden.input("soft.start"), asked["soft_learning_rate"], asked["soft_l2"])

        def spied(found, target, added, mask):
            (erased, beside), turned = terms(found, target, added, mask), seen[0]
            golden.compare("concept_prediction", turned)
            golden.compare("target", target)
            loss = torch.nn.functional.mse_loss(found, turned)
            golden.compare(f"{case}.adversary_loss_last", loss)
            golden.compare(f"{case}.erase_loss", erased)
            if case == "inserted":
                golden.compare("inserted.regulariser", beside)
            total = erased + asked["regulariser_weight"] * beside
            golden.compare(f"{case}.total_loss", total)
            return erased, beside

        terms = workers.unlearners.receler.terms
        drawn = golden.input("x_t"), int(golden.input("t"))
        monkeypatch.setattr(workers.erasure.negative_guidance, "draw", lambda *_, **__: drawn)
        monkeypatch.setattr(workers.unlearners.receler, "terms", spied)
        monkeypatch.setattr(SoftTokens, "begin", lambda *_: soft)
        monkeypatch.setattr(Bottlenecks, "new", lambda *_: erasers)
        shapes.unet.register_forward_hook(lambda _m, _a, out: seen.append(out.sample))
        made = method.unlearn(erasure(shapes, asked["concept"], [asked["prompt"]]))
        golden.compare(f"{case}.soft.end", soft.rows)
        golden.compare_changes(f"{case}.erasers", before, made.edits[0].tensors())
