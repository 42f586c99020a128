import math

import torch

from tests.workers.unlearners.golden.released import erasure, weights
from tests.workers.unlearners.steps import draw, pictures, watch
from workers.erasure.materials import pack, unpack
from workers.interfaces.material import Work
from workers.materials.saliency import Saliency
from workers.unlearners.salun import SalUn


def mask_of(pipe, golden, guidance):
    s = golden.settings
    saliency = Saliency(
        Saliency.Settings(
            share=s["share"], guidance=guidance, batches=s["batches"], batch_size=s["batch_size"]
        )
    )
    work = Work(pipe, {}, pictures(golden.input("mask.latents"), s["prompts"]), lambda *_: None)
    return saliency, work


def bits(made, pipe):
    shapes = {n: p.shape for n, p in pipe.unet.named_parameters()}
    return {n: unpack(made.tensors[n], shape) for n, shape in shapes.items()}


def test_the_mask(shapes, released, monkeypatch):
    with released("salun") as golden:
        drawn = {n: golden.input(f"mask.{n}") for n in ("rows", "t", "noise")}
        draw(monkeypatch, lambda step, stream: {n: v[step] for n, v in drawn.items()})
        saliency, work = mask_of(shapes, golden, golden.settings["guidance"])
        # The released code descends the negative loss, whose gradients have the other sign.
        summed = saliency.summed_gradients(work)
        sums = {n: -g for n, g in summed.items()}
        monkeypatch.setattr(saliency, "summed_gradients", lambda work: summed)
        for name in golden.tensors:
            if name.startswith("mask.gradient_sum."):
                golden.compare(name, sums[name.removeprefix("mask.gradient_sum.")])
        order = golden.names("mask")
        golden.compare("mask.gradient_sum_norm", torch.stack([sums[n].norm() for n in order]))

        masks = bits(saliency.make(work), shapes)
        golden.compare_exactly("mask.ones", torch.stack([masks[n].sum() for n in order]))
        whole = torch.cat([masks[n].flatten() for n in order])
        golden.compare_exactly("mask.packed", pack(whole))
        golden.compare("mask.share", whole.double().mean())
        saliency, work = mask_of(shapes, golden, 0.0)
        plain = bits(saliency.make(work), shapes)
        agreed = whole == torch.cat([plain[n].flatten() for n in order])
        golden.compare("mask.agreement_with_plain_loss", agreed.double().mean())


def test_three_updates_under_the_mask(shapes, released, monkeypatch):
    with released("salun") as golden:
        s, before, steps = golden.settings["update"], weights(shapes), watch(monkeypatch)
        count = s["batch_size"]

        def drawn(step, stream):
            rows = torch.arange(count) + step * count
            given = {n: golden.input(f"update.{stream}_{n}")[step] for n in ("t", "noise")}
            return given | {"rows": rows}

        draw(monkeypatch, drawn)
        latents, parts = golden.input("mask.latents"), before.values()
        packed = golden.expected("mask.packed")
        whole = unpack(packed, [sum(p.numel() for p in parts)])
        order = golden.names("mask")
        split = whole.split([math.prod(before[n].shape) for n in order])
        materials = {
            "mask": {n: pack(part) for n, part in zip(order, split, strict=True)},
            "forget": pictures(latents[:12], s["forget_prompt"]),
            "retain": pictures(latents[12:], s["retain_prompt"]),
        }
        settings = {n: s[n] for n in ("batch_size", "iterations", "learning_rate", "retain_weight")}
        SalUn(SalUn.Settings(**settings)).unlearn(
            erasure(
                shapes,
                golden.settings["concept"],
                [s["forget_prompt"]],
                anchor_prompts=[s["anchor_prompt"]],
                materials=materials,
            )
        )
        golden.compare("update.loss", steps.loss())
        golden.compare_changes("update", before, weights(shapes))
