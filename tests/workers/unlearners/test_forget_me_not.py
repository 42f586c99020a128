import copy

import pytest
import torch

from tests.workers.unlearners.small import small
from tests.workers.unlearners.transcribe import (
    FORGET,
    assert_same,
    attention,
    eps,
    minimise,
    noise_pictures,
    noised,
    trainable,
)
from workers.diffusion.text import embed
from workers.unlearners.forget_me_not import ForgetMeNot, attention_norm


@pytest.mark.usefixtures("double_precision")
def test_two_iterations_are_the_published_equation(pipe, brief):
    """Σ over attn2 layers of ‖attention to the concept's tokens‖₂."""
    twin = copy.deepcopy(pipe)
    unlearned = small(ForgetMeNot, group="xattn", learning_rate=1e-4).unlearn(brief())

    unet, text, pictures = twin.unet, embed(twin, FORGET), noise_pictures(FORGET)
    star = torch.tensor([2, 3])  # in "a star" and "a red star", after the start token
    trained = trainable(unet, lambda name: "attn2." in name)

    def loss(step):
        rows, x, _, t = noised(twin, pictures, 2, step, "forget")
        maps = attention(unet, lambda: eps(unet, x, t, text[rows]))
        at_star = [probs[range(2), :, :, star[rows]] for probs in maps.values()]
        return sum(probs.square().sum().sqrt() for probs in at_star)

    mean = minimise(torch.optim.AdamW(trained.values(), lr=1e-4, weight_decay=1e-2), loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def test_the_norm_on_maps_made_by_hand():
    maps = {"one": torch.zeros(1, 1, 2, 3), "two": torch.zeros(1, 2, 1, 3)}
    maps["one"][0, 0, :, 1] = torch.tensor([3.0, 4.0])
    maps["one"][0, 0, :, 2] = 100.0
    maps["two"][0, :, 0, 1] = torch.tensor([5.0, 12.0])
    words = torch.tensor([[False, True, False]])
    assert attention_norm(maps, words).item() == pytest.approx(5 + 13)
