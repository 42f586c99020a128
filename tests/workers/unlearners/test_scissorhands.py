import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.test_salun import random_masks
from tests.workers.unlearners.transcribe import (
    ANCHOR,
    FORGET,
    RETAIN,
    assert_same,
    eps,
    fixed,
    mse,
    noise_pictures,
    noised,
    trainable,
)
from workers.diffusion.rng import generator
from workers.diffusion.text import embed
from workers.erasure.materials import pack, unpack
from workers.unlearners.scissorhands import Scissorhands, cut_as_released, project


def cut(unet, masks):
    """Chosen weights get torch's U(-1, 1)/√fan_in, a norm's 1 and 0."""
    modules = dict(unet.named_modules())
    for name, value in unet.named_parameters():
        weight = modules[name.rpartition(".")[0]].weight
        if weight.dim() > 1:
            draw = generator(0, 0, f"initial {name}")
            bound = weight[0].numel() ** -0.5
            fresh = torch.empty(value.shape).uniform_(-bound, bound, generator=draw)
        else:
            fresh = torch.ones(value.shape) if weight is value else torch.zeros(value.shape)
        value.data = torch.where(masks[name], fresh, value.data)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("forget_loss", ["relabel", "ascent"])
def test_two_iterations_are_the_published_equations(pipe, brief, forget_loss):
    """Cut; then g of L_r + λ L_f, without its component along the concept's own gradient."""
    twin, lam, masks = copy.deepcopy(pipe), 0.4, random_masks(pipe.unet)
    packed = {name: pack(mask) for name, mask in masks.items()}
    method = small(Scissorhands, forget_weight=lam, forget_loss=forget_loss, learning_rate=1e-4)
    unlearned = method.unlearn(brief({"cut": packed}))

    unet = twin.unet
    concept, other, retained = (embed(twin, prompts) for prompts in (FORGET, ANCHOR, RETAIN))
    cut(unet, masks)
    trained = trainable(unet, lambda name: True)
    values, losses = list(trained.values()), []
    optimizer = torch.optim.Adam(values, lr=1e-4)
    for step in range(2):
        rows, x, noise, t = noised(twin, noise_pictures(FORGET), 2, step, "forget")
        own = mse(eps(unet, x, t, concept[rows]), noise)
        relabelled = mse(eps(unet, x, t, concept[rows]), fixed(unet, x, t, other[rows]))
        o = torch.cat([g.flatten() for g in torch.autograd.grad(own, values, retain_graph=True)])
        rows, x, noise, t = noised(twin, noise_pictures(RETAIN), 2, step, "retain")
        kept = mse(eps(unet, x, t, retained[rows]), noise)
        loss = kept + lam * (relabelled if forget_loss == "relabel" else -own)
        g = torch.cat([g.flatten() for g in torch.autograd.grad(loss, values)])
        if g @ o > 0:
            g = g - (g @ o) / (o @ o) * o
        parts = g.split([value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.grad = part.view_as(value)
        optimizer.step()
        losses.append(loss.item())
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], sum(losses) / 2)


@pytest.mark.parametrize("sparsity", [0.9, 0.99])
def test_the_share_that_is_cut_is_one_minus_the_sparsity(warm, erasure, sparsity):
    method = small(Scissorhands, sparsity=sparsity, iterations=1)
    unlearned = method.unlearn(erasure(method))
    one = 1 / sum(p.numel() for p in warm.pipe.unet.parameters())
    assert unlearned.numbers["cut"] == pytest.approx(1 - sparsity, abs=one)


def test_the_released_variant_cuts_in_two_self_attentions_only():
    names = [
        f"{block}.attentions.{index}.transformer_blocks.0.{attention}.to_q.weight"
        for block in ("down_blocks.0", "up_blocks.1", "up_blocks.2", "up_blocks.3")
        for index in range(3)
        for attention in ("attn1", "attn2")
    ]
    assert cut_as_released(["up_blocks.0.resnets.1.conv1.weight", *names]) == [
        f"up_blocks.{n}.attentions.1.transformer_blocks.0.attn1.to_q.weight" for n in (1, 2)
    ]


def test_the_released_variant_leaves_what_is_cut_elsewhere(pipe, brief):
    before = copy.deepcopy(pipe.unet).state_dict()
    everywhere = {n: pack(torch.ones_like(v) > 0) for n, v in pipe.unet.named_parameters()}
    method = small(Scissorhands, variant="released", iterations=1, learning_rate=1e-9)
    made = method.unlearn(brief({"cut": everywhere}))
    moved = {
        name
        for name, value in pipe.unet.named_parameters()
        if not torch.allclose(value, before[name], rtol=0, atol=1e-6)
    }
    assert moved == set(cut_as_released(list(before)))
    assert {name.partition(".transformer_blocks")[0] for name in moved} == {
        "up_blocks.1.attentions.1"
    }
    share = sum(before[n].numel() for n in moved) / sum(v.numel() for v in before.values())
    assert made.numbers["cut"] == pytest.approx(share)


def test_weights_outside_the_mask_survive_the_cut(pipe, brief):
    before = copy.deepcopy(pipe.unet).state_dict()
    packed = {name: pack(mask) for name, mask in random_masks(pipe.unet).items()}
    small(Scissorhands, iterations=1, learning_rate=1e-9).unlearn(brief({"cut": packed}))
    for name, value in pipe.unet.named_parameters():
        outside = ~unpack(packed[name], value.shape)
        torch.testing.assert_close(value[outside], before[name][outside], rtol=0, atol=1e-7)


def test_projection_leaves_no_component_that_lowers_the_concepts_loss():
    own = (torch.tensor([1.0, 0.0]), torch.tensor([1.0]))
    gradients = [torch.tensor([3.0, 5.0]), torch.tensor([1.0])]
    project(gradients, own)
    assert sum((g * o).sum() for g, o in zip(gradients, own, strict=True)).item() == 0
    assert [g.tolist() for g in gradients] == [[1.0, 5.0], [-1.0]]


def test_a_gradient_that_raises_the_concepts_loss_is_left_alone():
    gradients = [torch.tensor([-1.0, 2.0])]
    project(gradients, (torch.tensor([1.0, 0.0]),))
    assert gradients[0].tolist() == [-1.0, 2.0]
