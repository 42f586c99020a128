import math

import pytest
import torch

from workers.diffusion.rng import integers, normal
from workers.diffusion.text import embed
from workers.erasure.materials import Pictures, pack, unpack
from workers.interfaces.material import Work
from workers.materials.saliency import Saliency, above, largest

PROMPTS = ["a star", "a red star", "a blue star"]


@pytest.fixture
def pictures():
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    return Pictures(normal((3, 4, 8, 8), 0, 0, "pictures"), images, PROMPTS)


def make(pipe, pictures, **settings):
    saliency = Saliency(Saliency.Settings(**({"batches": 2, "batch_size": 2} | settings)))
    made = saliency.make(Work(pipe, {}, pictures, lambda *_: None))
    packed = saliency.read(made.tensors, {})
    masks = {n: unpack(packed[n], v.shape) for n, v in pipe.unet.named_parameters()}
    return masks, made.numbers


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("score", ["gradient", "snip", "snip_by_batch"])
def test_the_share_of_weights_is_exact(pipe, pictures, score, share):
    masks, numbers = make(pipe, pictures, score=score, share=share)
    total = sum(mask.numel() for mask in masks.values())
    chosen = sum(int(mask.sum()) for mask in masks.values())
    # SNIP's are those above the ⌊(1 - share) n⌋-th smallest score.
    wanted = math.floor(share * total) if score == "gradient" else math.ceil(share * total)
    assert chosen == numbers["weights"]
    assert chosen == wanted


@pytest.mark.parametrize("guidance", [0.0, 7.5])
@pytest.mark.parametrize("score", ["gradient", "snip", "snip_by_batch"])
def test_the_chosen_weights_have_the_largest_scores(pipe, pictures, score, guidance):
    masks, numbers = make(pipe, pictures, score=score, share=0.2, guidance=guidance)
    text, (empty,) = embed(pipe, PROMPTS), embed(pipe, [""])
    weights = dict(pipe.unet.named_parameters())
    pipe.unet.requires_grad_(True)
    batches = []
    for step in range(2):
        rows = integers(3, 2, 0, step, "rows saliency")
        noise = normal((2, 4, 8, 8), 0, step, "noise saliency")
        t = integers(1000, 2, 0, step, "timesteps saliency")
        kept = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        x = kept.sqrt() * pictures.latents[rows] + (1 - kept).sqrt() * noise
        c = pipe.unet(x, t, encoder_hidden_states=text[rows]).sample
        u = pipe.unet(x, t, encoder_hidden_states=empty.expand_as(text[rows])).sample
        found = (1 + guidance) * c - guidance * u
        batches.append(torch.autograd.grad((found - noise).square().mean(), weights.values()))
    if score == "snip_by_batch":
        batches = [[g.abs() for g in batch] for batch in batches]
    for name, *each in zip(weights, *batches, strict=True):
        expected = sum(each).abs() * (1 if score == "gradient" else weights[name].abs())
        chosen, rest = expected[masks[name]], expected[~masks[name]]
        near = 1e-3 * numbers["threshold"]
        assert chosen.numel() == 0 or chosen.min() >= numbers["threshold"] - near
        assert rest.numel() == 0 or rest.max() <= numbers["threshold"] + near


def test_without_a_number_of_batches_every_picture_is_seen_once(pipe, pictures):
    seen, told = [], []
    handle = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    saliency = Saliency(Saliency.Settings(batches=None, batch_size=2))
    saliency.make(Work(pipe, {}, pictures, lambda done, of, _: told.append((done, of))))
    handle.remove()
    text = embed(pipe, PROMPTS)
    assert sorted(int((text == one).all((1, 2)).nonzero()) for one in seen) == [0, 1, 2]
    assert told == [(1, 2), (2, 2)]


def test_of_equal_scores_as_many_are_chosen_as_asked_for():
    chosen, threshold = largest(torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0]), 3)
    assert chosen.tolist() == [True, True, False, True, False]
    assert threshold == 1.0


def test_what_equals_the_threshold_is_not_above_it():
    chosen, threshold = above(torch.tensor([1.0, 2.0, 1.0, 3.0]), 2)
    assert chosen.tolist() == [False, True, False, True]
    assert threshold == 1.0


def test_no_weight_moves_and_no_gradient_stays(warm, pictures):
    make(warm.pipe, pictures)
    assert warm.changed() == {}
    assert not any(p.requires_grad or p.grad is not None for p in warm.pipe.unet.parameters())


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 3, 3), ()])
def test_packing_is_undone_by_unpacking(shape):
    mask = torch.rand(shape) > 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack(packed, shape), mask)
