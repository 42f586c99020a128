import pytest
import torch

from workers.diffusion.rng import integers, normal
from workers.diffusion.text import embed
from workers.erasure.materials import Pictures, pack, unpack
from workers.interfaces.material import Work
from workers.materials.saliency import Saliency

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
@pytest.mark.parametrize("score", ["gradient", "snip"])
def test_the_share_of_weights_is_exact(pipe, pictures, score, share):
    masks, numbers = make(pipe, pictures, score=score, share=share)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(share * total)
    assert numbers["weights"] == round(share * total)


@pytest.mark.parametrize("score", ["gradient", "snip"])
def test_the_chosen_weights_have_the_largest_summed_gradients(pipe, pictures, score):
    masks, numbers = make(pipe, pictures, score=score, share=0.2)
    text = embed(pipe, PROMPTS)
    weights = dict(pipe.unet.named_parameters())
    pipe.unet.requires_grad_(True)
    total = 0
    for step in range(2):
        rows = integers(3, 2, 0, step, "saliency rows")
        noise = normal((2, 4, 8, 8), 0, step, "noise saliency")
        t = integers(1000, 2, 0, step, "timesteps saliency")
        kept = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        x = kept.sqrt() * pictures.latents[rows] + (1 - kept).sqrt() * noise
        found = pipe.unet(x, t, encoder_hidden_states=text[rows]).sample
        total = total + (found - noise).square().mean()
    gradients = dict(zip(weights, torch.autograd.grad(total, weights.values()), strict=True))
    for name, gradient in gradients.items():
        expected = gradient.abs() * (weights[name].abs() if score == "snip" else 1)
        chosen, rest = expected[masks[name]], expected[~masks[name]]
        near = 1e-3 * numbers["threshold"]
        assert chosen.numel() == 0 or chosen.min() >= numbers["threshold"] - near
        assert rest.numel() == 0 or rest.max() <= numbers["threshold"] + near


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
