import pytest
import torch

from workers.diffusion.attention import recorded, resized, start_token_blocked, to_words
from workers.diffusion.rng import normal
from workers.diffusion.text import embed


def predict(pipe):
    latents, text = normal((2, 4, 8, 8), 0, 0, "x"), embed(pipe, ["a star", "a red circle"])
    return pipe.unet(latents, torch.tensor([10, 700]), encoder_hidden_states=text).sample


def processors(pipe):
    return {n: m.processor for n, m in pipe.unet.named_modules() if hasattr(m, "processor")}


def test_every_cross_attention_leaves_probabilities_over_the_tokens(pipe):
    with recorded(pipe.unet) as maps:
        predict(pipe)
    assert maps.keys() == {n for n, _ in pipe.unet.named_modules() if n.endswith(".attn2")}
    heads = dict(pipe.unet.named_modules())
    for path, probs in maps.items():
        assert probs.shape[:2] == (2, heads[path].heads)
        assert probs.shape[2] in {64, 16}
        assert probs.min() >= 0
        torch.testing.assert_close(probs.sum(dim=3), torch.ones(probs.shape[:3]))


def test_the_output_is_the_same_with_and_without(pipe):
    plain = predict(pipe)
    with recorded(pipe.unet):
        torch.testing.assert_close(predict(pipe), plain, atol=1e-5, rtol=1e-5)


def test_the_maps_keep_their_graph(pipe):
    weights = [p for n, p in pipe.unet.named_parameters() if "attn2.to_k" in n]
    for weight in weights:
        weight.requires_grad_(True)
    with recorded(pipe.unet) as maps:
        predict(pipe)
    loss = sum(probs[..., 2].square().sum() for probs in maps.values())
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, weights))


def test_the_processors_are_put_back_even_after_a_failure(pipe):
    before = processors(pipe)
    with recorded(pipe.unet):
        assert processors(pipe) != before
    assert processors(pipe) == before
    with pytest.raises(RuntimeError, match="stop"), recorded(pipe.unet):
        raise RuntimeError("stop")
    assert processors(pipe) == before


def start_and_rest(pipe):
    """A number that depends on how much gradient each attn2 passes to the text, token by token."""
    text = embed(pipe, ["a star", "a red circle"]).requires_grad_(True)
    latents = normal((2, 4, 8, 8), 0, 0, "x")
    out = pipe.unet(latents, torch.tensor([10, 700]), encoder_hidden_states=text).sample
    (gradient,) = torch.autograd.grad(out.square().sum(), text)
    return out, gradient[:, 0], gradient[:, 1:]


def test_a_blocked_start_token_passes_no_gradient_and_computes_the_same(pipe):
    plain, start, rest = start_and_rest(pipe)
    assert start.abs().sum() > 0
    with start_token_blocked(pipe.unet):
        out, blocked, others = start_and_rest(pipe)
        with recorded(pipe.unet):
            _, beside, _ = start_and_rest(pipe)
    assert torch.equal(out, plain)
    assert blocked.count_nonzero() == beside.count_nonzero() == 0
    torch.testing.assert_close(others, rest)
    assert start_and_rest(pipe)[1].abs().sum() > 0


def test_attention_to_other_words_is_left_out():
    probs, words = torch.rand(2, 3, 4, 5), torch.zeros(2, 5, dtype=torch.bool)
    words[0, 1] = words[1, 3] = True
    kept = to_words({"layer": probs}, words)["layer"]
    assert torch.equal(kept[0, ..., 1], probs[0, ..., 1])
    assert torch.equal(kept[1, ..., 3], probs[1, ..., 3])
    assert kept.count_nonzero() == 2 * 3 * 4


def test_a_cell_is_what_its_upper_left_pixel_is():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 0, 4] = mask[0, 3, 4] = mask[0, 7, 7] = True
    assert resized(mask, 4).tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert resized(mask, 64).view(8, 8)[3, 4] == 1


def test_a_mask_that_is_not_square_keeps_its_aspect():
    mask = torch.zeros(1, 16, 8, dtype=torch.bool)
    mask[0, :4] = True
    small = resized(mask, 32, aspect=2.0).view(8, 4)
    assert small[:2].all()
    assert not small[2:].any()
