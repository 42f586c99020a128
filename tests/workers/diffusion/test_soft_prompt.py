import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.diffusion.soft_prompt import attack, encode, new_soft, new_word, token_ids
from workers.diffusion.text import embed

PROMPTS = ["a star", "a red circle", ""]


def own_embeddings(pipe, ids, count):
    """What stands in the first `count` places after the start token."""
    return pipe.text_encoder.get_input_embeddings()(ids[:, 1 : 1 + count])


def test_without_soft_tokens_it_is_the_plain_encoding(pipe):
    text = encode(pipe, token_ids(pipe, PROMPTS, 0))
    torch.testing.assert_close(text, embed(pipe, PROMPTS))


def test_soft_tokens_that_are_the_prompts_own_change_nothing(pipe):
    ids = token_ids(pipe, PROMPTS, 0)
    text = encode(pipe, ids, own_embeddings(pipe, ids, 2))
    torch.testing.assert_close(text, embed(pipe, PROMPTS))


def test_soft_tokens_stand_between_the_start_token_and_the_prompt(pipe):
    """With a word's own embedding for soft token, the prompt begins with that word."""
    word = token_ids(pipe, ["red"], 0)[:, 1]
    soft = pipe.text_encoder.get_input_embeddings()(word)[None]
    text = encode(pipe, token_ids(pipe, ["star"], 1), soft)
    torch.testing.assert_close(text, embed(pipe, ["red star"]))


def test_the_embeddings_get_gradients_and_the_hook_goes(pipe):
    ids = token_ids(pipe, PROMPTS, 2)
    soft = new_soft(pipe, 3, 2, 0, 0, "soft").requires_grad_(True)
    encode(pipe, ids, soft).square().sum().backward()
    assert soft.grad.abs().sum() > 0
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_a_prompt_that_leaves_no_room_is_refused(pipe):
    words = "a red star and a red star and a"
    fits = pipe.tokenizer.model_max_length - len(pipe.tokenizer(words).input_ids)
    assert token_ids(pipe, [words], fits).shape == (1, 16)
    with pytest.raises(ResurgeError, match=r"need 17 tokens .* reads 16; lower soft_tokens"):
        token_ids(pipe, [words], fits + 1)


def test_new_soft_tokens_have_the_vocabularys_spread(pipe):
    table = pipe.text_encoder.get_input_embeddings().weight
    soft = new_soft(pipe, 20, 20, 0, 0, "soft")
    assert soft.shape == (20, 20, 64)
    assert soft.std().item() == pytest.approx(table.std().item(), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("adam", 0.05),
        ("sign", 0.02),
        ("fast", 0.02),
        ("accumulated", 0.02),
        ("accumulated_sign", 0.02),
    ],
)
def test_an_attack_lowers_its_loss(pipe, kind, rate):
    ids, goal = token_ids(pipe, ["star"], 1), embed(pipe, ["red star"])
    start = new_soft(pipe, 1, 1, 0, 0, "soft")

    def loss(soft, step=0):
        return (encode(pipe, ids, soft) - goal).square().mean()

    found = attack(loss, start, 5, rate, kind)
    assert not found.requires_grad
    assert loss(found) < loss(start)


def test_the_fast_attack_is_one_signed_step():
    start, slope = torch.zeros(1, 2, 3), torch.tensor([1.0, -2.0, 0.5])
    found = attack(lambda soft, step: (soft * slope).sum(), start, 9, 0.1, "fast")
    torch.testing.assert_close(found, -0.1 * slope.sign().expand(1, 2, 3))
    assert start.count_nonzero() == 0


def test_the_signed_attack_takes_every_step():
    steps = []

    def loss(soft, step):
        steps.append(step)
        return soft.sum()

    found = attack(loss, torch.zeros(1, 1, 2), 3, 0.1, "sign")
    assert steps == [0, 1, 2]
    torch.testing.assert_close(found, torch.full((1, 1, 2), -0.3))


@pytest.mark.parametrize("kind", ["adam", "accumulated"])
def test_an_attack_of_no_steps_returns_its_start(kind):
    start = torch.randn(1, 1, 2)
    assert torch.equal(attack(lambda soft, step: soft.sum(), start, 0, 0.1, kind), start)


def test_an_accumulated_attack_returns_what_stood_before_its_last_update():
    """Its gradients add up, so that the second step still goes down where the slope has turned."""

    def loss(soft, step):
        return (soft * (1.0, -0.5, 0.0)[step]).sum()

    ends = [attack(loss, torch.zeros(1, 1, 2), steps, 0.1, "accumulated") for steps in (1, 2, 3)]
    assert ends[0].count_nonzero() == 0
    assert (ends[1] < 0).all()
    assert (ends[2] < ends[1]).all()


def test_new_words_are_rows_of_the_vocabulary(pipe):
    table = pipe.text_encoder.get_input_embeddings().weight
    words = new_word(pipe, 3, 2, 0, 0, "word")
    assert words.shape == (3, 2, 64)
    assert all((table == word).all(1).any() for word in words.view(6, 64))
