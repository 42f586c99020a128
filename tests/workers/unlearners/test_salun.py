import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    ANCHOR,
    FORGET,
    RETAIN,
    assert_same,
    eps,
    fixed,
    minimise,
    mse,
    noise_pictures,
    noised,
    trainable,
)
from workers.diffusion.rng import normal
from workers.diffusion.text import embed
from workers.erasure.materials import pack, unpack
from workers.unlearners.salun import SalUn


def random_masks(unet):
    return {n: normal(v.shape, 0, 0, n) > 0 for n, v in unet.named_parameters()}


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_published_equation(pipe, brief):
    """MSE(ε_θ(x_t, c_f), sg[ε_θ(x_t, c')]) + α · MSE on retained pictures, gradients times mask."""
    twin, alpha, masks = copy.deepcopy(pipe), 0.3, random_masks(pipe.unet)
    packed = {name: pack(mask) for name, mask in masks.items()}
    unlearned = small(SalUn, retain_weight=alpha, learning_rate=1e-4).unlearn(
        brief({"mask": packed})
    )

    unet = twin.unet
    concept, other, retained = (embed(twin, prompts) for prompts in (FORGET, ANCHOR, RETAIN))
    trained = trainable(unet, lambda name: True)
    for name, value in trained.items():
        value.register_hook(lambda gradient, mask=masks[name]: gradient * mask)

    def loss(step):
        rows, x, _, t = noised(twin, noise_pictures(FORGET), 2, step, "forget")
        gone = mse(eps(unet, x, t, concept[rows]), fixed(unet, x, t, other[rows]))
        rows, x, noise, t = noised(twin, noise_pictures(RETAIN), 2, step, "retain")
        return gone + alpha * mse(eps(unet, x, t, retained[rows]), noise)

    mean = minimise(torch.optim.Adam(trained.values(), lr=1e-4), loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def test_masked_weights_stay_bit_identical_and_others_move(warm, erasure):
    method = small(SalUn)
    what = erasure(method)
    warm.put(method.unlearn(what).edits)
    moved = salient = 0
    base = warm.base_state()
    for name, value in warm.pipe.unet.named_parameters():
        mask = unpack(what.materials["mask"][name], value.shape)
        assert torch.equal(value[~mask], base[f"unet.{name}"][~mask])
        moved += int((value != base[f"unet.{name}"]).sum())
        salient += int(mask.sum())
    assert moved > 0.9 * salient
