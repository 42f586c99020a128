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
from workers.unlearners.forget_me_not import ForgetMeNot, attention_norms


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("tokens", ["words", "words_and_end"])
def test_two_iterations_are_the_published_equation(pipe, brief, tokens):
    """‖attention to the concept's tokens, and all the padding, in all attn2 layers together‖₂."""
    twin = copy.deepcopy(pipe)
    unlearned = small(
        ForgetMeNot, group="xattn", learning_rate=1e-4, tokens=tokens, clip_norm=1e6
    ).unlearn(brief())

    unet, text, pictures = twin.unet, embed(twin, FORGET), noise_pictures(FORGET)
    star = torch.zeros(2, 16, dtype=torch.bool)
    star[0, 2] = star[1, 3] = True  # in "a star" and "a red star", after the start token
    if tokens == "words_and_end":
        star[0, 3:] = star[1, 4:] = True
    trained = trainable(unet, lambda name: "attn2." in name)

    def loss(step):
        rows, x, _, t = noised(twin, pictures, 2, step, "forget")
        maps = attention(unet, lambda: eps(unet, x, t, text[rows]))
        at_star = [(probs * star[rows][:, None, None]).square().sum() for probs in maps.values()]
        return sum(at_star).sqrt()

    mean = minimise(torch.optim.AdamW(trained.values(), lr=1e-4, weight_decay=1e-2), loss)
    assert_same(unlearned, twin, [f"unet.{name}" for name in trained], mean)


def test_the_norm_on_maps_made_by_hand():
    maps = {"one": torch.zeros(1, 1, 2, 3), "two": torch.zeros(1, 2, 1, 3)}
    maps["one"][0, 0, :, 1] = torch.tensor([3.0, 4.0])
    maps["one"][0, 0, :, 2] = 100.0
    maps["two"][0, :, 0, 1] = torch.tensor([5.0, 12.0])
    words = torch.tensor([[False, True, False]])
    assert attention_norms(maps, words).tolist() == pytest.approx([5, 13])
