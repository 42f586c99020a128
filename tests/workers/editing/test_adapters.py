import pytest
import torch
from torch import nn

from workers.diffusion.rng import normal
from workers.diffusion.text import embed
from workers.editing.adapters import Bottlenecks, GatedLora, PromptGates
from workers.editing.edit_file import load_edits, save_edits

KINDS = ["bottlenecks", "gated_lora"]


def identity(pipe, kind):
    if kind == "bottlenecks":
        return Bottlenecks.new(pipe.unet, 3, 0)
    return GatedLora.new(pipe.unet, "star", 1, 0.5, 0)


def perturbed(pipe, kind):
    """Adapters that do something."""
    adapters = identity(pipe, kind)
    for name, value in adapters.parameters().items():
        value.data = 0.1 * normal(value.shape, 0, 0, name)
    return adapters


def predict(pipe, text):
    latents = normal((1, 4, 8, 8), 0, 0, "x").expand(len(text), -1, -1, -1)
    with torch.no_grad():
        return pipe.unet(latents, 500, encoder_hidden_states=text).sample


@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_are_exactly_the_identity(pipe, kind):
    text = embed(pipe, ["a star", "a circle"])
    plain = predict(pipe, text)
    identity(pipe, kind).apply(pipe)
    assert torch.equal(predict(pipe, text), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_off_and_undone_adapters_change_nothing(pipe, kind):
    text = embed(pipe, ["a star", "a circle"])
    plain = predict(pipe, text)
    adapters = perturbed(pipe, kind)
    undo = adapters.apply(pipe)
    assert not torch.allclose(predict(pipe, text), plain, atol=1e-3)
    with adapters.off():
        assert torch.equal(predict(pipe, text), plain)
    assert not torch.allclose(predict(pipe, text), plain, atol=1e-3)
    undo()
    assert torch.equal(predict(pipe, text), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_adapters_do_the_same(pipe, tmp_path, kind):
    text = embed(pipe, ["a star"])
    adapters = perturbed(pipe, kind)
    if kind == "gated_lora":
        adapters = adapters.gated()
    undo = adapters.apply(pipe)
    embed(pipe, ["a star"])
    before = predict(pipe, text)
    undo()
    save_edits(tmp_path / "edits", [adapters])
    (again,) = load_edits(tmp_path / "edits")
    again.apply(pipe)
    embed(pipe, ["a star"])
    assert torch.equal(predict(pipe, text), before)


def test_bottlenecks_stand_after_every_cross_attention(pipe):
    paths = Bottlenecks.new(pipe.unet, 3, 0).paths()
    assert set(paths) == {n for n, _ in pipe.unet.named_modules() if n.endswith(".attn2")}


def test_what_bottlenecks_added_can_be_read(pipe):
    erasers = perturbed(pipe, "bottlenecks")
    erasers.apply(pipe)
    with erasers.recorded() as added:
        predict(pipe, embed(pipe, ["a star"]))
    assert added.keys() == set(erasers.paths())
    assert all(values.abs().sum() > 0 for values in added.values())
    before = dict(added)
    predict(pipe, embed(pipe, ["a star"]))
    assert all(added[path] is before[path] for path in before)


def test_a_gated_lora_stands_on_every_layer_inside_transformer_blocks(pipe):
    expected = {
        n
        for n, m in pipe.unet.named_modules()
        if ".attentions." in n and isinstance(m, nn.Linear | nn.Conv2d)
    }
    assert set(GatedLora.new(pipe.unet, "star", 1, 1.0, 0).paths()) == expected
    only = GatedLora.new(pipe.unet, "star", 1, 1.0, 0, only=("attn2.to_k",)).paths()
    assert set(only) == {n for n in expected if n.endswith("attn2.to_k")}


def test_an_ungated_lora_is_a_low_rank_sum_of_weights(warm):
    text = embed(warm.pipe, ["a star", "a circle"])
    adapters = perturbed(warm.pipe, "gated_lora")
    undo = adapters.apply(warm.pipe)
    beside = predict(warm.pipe, text)
    undo()
    layers = dict(warm.pipe.unet.named_modules())
    values = adapters.tensors()
    with torch.no_grad():
        for path in adapters.paths():
            delta = values[f"{path}.up"].flatten(1) @ values[f"{path}.down"].flatten(1)
            layers[path].weight += 0.5 * delta.view_as(layers[path].weight)
    torch.testing.assert_close(predict(warm.pipe, text), beside, atol=1e-4, rtol=1e-4)


@pytest.fixture
def gates(pipe):
    """Gates of prompts about a red star, as the text encoder's hook gathers them."""
    memory = PromptGates(pipe, "red star")
    pipe.text_encoder.register_forward_hook(memory.note)

    def of(prompts):
        return memory.gates(embed(pipe, prompts))

    return of


def test_the_concepts_own_prompt_opens_the_gate(gates):
    assert gates(["red star"]).item() == pytest.approx(1, abs=1e-5)


def test_a_prompt_with_all_of_the_concepts_words_opens_the_gate(gates):
    assert gates(["a star that is red"]).item() == pytest.approx(1)


def test_elsewhere_the_gate_is_the_larger_of_cosine_and_overlap(pipe, gates):
    prompts = ["a red circle", "a blue circle"]
    ends = [4, 4]
    text, concept = embed(pipe, prompts), embed(pipe, ["red star"])[0, 3]
    cosines = [
        torch.cosine_similarity(states[end], concept, dim=0).item()
        for states, end in zip(text, ends, strict=True)
    ]
    expected = [max(cosines[0], 0.5), max(cosines[1], 0.0)]
    assert gates(prompts).tolist() == pytest.approx(expected, abs=1e-5)


def test_text_that_was_never_encoded_is_not_held_back(pipe):
    memory, unknown = PromptGates(pipe, "star"), normal((2, 16, 64), 0, 0, "unknown")
    assert memory.gates(unknown).tolist() == [1.0, 1.0]
    pipe.text_encoder.register_forward_hook(memory.note)
    known = embed(pipe, ["a blue circle"])
    assert memory.gates(torch.cat([unknown, known]))[:2].tolist() == [1.0, 1.0]
    assert memory.gates(known).item() < 1


def test_every_row_of_a_batch_has_its_own_gate(gates):
    alone = [gates([prompt]).item() for prompt in ("red star", "a blue circle", "")]
    together = gates(["", "red star", "a blue circle", "red star"])
    star, circle, empty = alone
    assert together.tolist() == pytest.approx([empty, star, circle, star], abs=1e-5)
    assert circle < star


def test_a_gated_lora_acts_on_each_row_by_its_gate(pipe):
    """A row's change is the gate times the ungated change, in the layer where it is added."""
    full = perturbed(pipe, "gated_lora")
    path = next(p for p in full.paths() if p.endswith("attn2.to_v"))
    only = {name: v for name, v in full.tensors().items() if name.startswith(f"{path}.")}
    layer, seen = dict(pipe.unet.named_modules())[path], []
    prompts = ["a star", "a blue circle"]

    def output(adapters):
        undo = adapters.apply(pipe)
        handle = layer.register_forward_hook(lambda _module, _args, out: seen.append(out))
        predict(pipe, embed(pipe, prompts))
        handle.remove()
        undo()
        return seen.pop()

    plain = output(GatedLora({k: torch.zeros_like(v) for k, v in only.items()}, "star", 0.5, False))
    open_ = output(GatedLora(only, "star", 0.5, is_gated=False)) - plain
    gated = output(GatedLora(only, "star", 0.5)) - plain
    memory = PromptGates(pipe, "star")
    pipe.text_encoder.register_forward_hook(memory.note)
    gamma = memory.gates(embed(pipe, prompts))
    torch.testing.assert_close(gated, gamma[:, None, None] * open_, atol=1e-5, rtol=1e-3)
