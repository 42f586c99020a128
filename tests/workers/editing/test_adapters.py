import copy

import pytest
import torch
from torch import nn

from orchestrator.core.errors import ResurgeError
from workers.diffusion.denoise import guided
from workers.diffusion.rng import normal
from workers.diffusion.text import embed
from workers.editing.adapters import Bottlenecks, GatedLora
from workers.editing.edit_file import load_edits, save_edits
from workers.editing.edits import Weights, live_parameters
from workers.editing.gates import PromptGates
from workers.runtime.parts import in_parts

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
        adapters = adapters.gated("released")
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


PATH = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"


def at_one_layer(pipe, seed, concept="star", variant="paper", is_gated=True, rank=1):
    """Adapters of one layer that do something."""
    layer = dict(pipe.unet.named_modules())[PATH]
    outputs, inputs = layer.weight.shape
    values = {
        f"{PATH}.down": normal((rank, inputs), seed, 0, "down"),
        f"{PATH}.up": normal((outputs, rank), seed, 0, "up"),
    }
    return GatedLora(values, concept, 0.5, variant, is_gated)


@pytest.fixture
def output(pipe):
    """What the layer gives in a pass over `text`, or in whatever `asked` does, with edits made."""
    layer = dict(pipe.unet.named_modules())[PATH]

    def of(edits, prompts, asked=predict):
        undo, seen = [edit.apply(pipe) for edit in edits], []
        handle = layer.register_forward_hook(lambda _module, _args, out: seen.append(out))
        asked(pipe, embed(pipe, prompts))
        handle.remove()
        for back in undo:
            back()
        return seen[-1]

    return of


def gates_of(pipe, concept, prompts):
    memory = PromptGates(pipe, concept)
    handles = memory.watch(pipe)
    found = memory.gates(embed(pipe, prompts))
    for handle in handles:
        handle.remove()
    return found[:, None, None]


@pytest.mark.parametrize(("variant", "power"), [("paper", 1), ("released", 2)])
def test_a_gated_lora_acts_on_each_row_by_its_gate(pipe, output, variant, power):
    """A row's change is the gate times the ungated change, the gate's square as released."""
    prompts = ["a star", "a blue circle"]
    plain = output([], prompts)
    full = output([at_one_layer(pipe, 1, is_gated=False)], prompts) - plain
    gated = output([at_one_layer(pipe, 1, variant=variant)], prompts) - plain
    gamma = gates_of(pipe, "star", prompts)
    torch.testing.assert_close(gated, gamma**power * full, atol=1e-5, rtol=1e-3)


def test_under_guidance_a_picture_has_one_gate_in_both_halves(pipe, output):
    prompts = ["a blue circle", "a star", "a red circle"]
    x_t = normal((3, 4, 8, 8), 0, 0, "x")

    def draw(pipe, text):
        empty = embed(pipe, [""]).expand_as(text)
        with torch.no_grad():
            guided(pipe.unet, text, empty, 3.0)(x_t, 500)

    plain = output([], prompts, draw)
    full = output([at_one_layer(pipe, 1, is_gated=False)], prompts, draw) - plain
    gated = output([at_one_layer(pipe, 1)], prompts, draw) - plain
    gamma = gates_of(pipe, "star", prompts)
    torch.testing.assert_close(gated, torch.cat([gamma, gamma]) * full, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_guided_batch_of_different_prompts_draws_what_each_does_alone(pipe, parts):
    adapters = perturbed(pipe, "gated_lora").gated("released")
    adapters.apply(pipe)
    text, empty = embed(pipe, ["a blue circle", "a star", "a red circle"]), embed(pipe, [""])
    x_t = normal((3, 4, 8, 8), 0, 0, "x")

    def drawn(rows):
        with torch.no_grad(), in_parts(parts):
            return guided(pipe.unet, text[rows], empty.expand_as(text[rows]), 3.0)(x_t[rows], 500)

    alone = [drawn(slice(i, i + 1)) for i in range(3)]
    torch.testing.assert_close(drawn(slice(3)), torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_several_edits_are_summed_factor_by_factor_as_released(pipe, output):
    prompts = ["a star", "a blue circle"]
    concepts = ("star", "blue")
    plain = output([], prompts)
    first, second = (gates_of(pipe, concept, prompts) for concept in concepts)
    text = embed(pipe, prompts)

    def both(variant):
        edits = [at_one_layer(pipe, i, c, variant) for i, c in enumerate(concepts)]
        return output(edits, prompts) - plain, [edit.tensors() for edit in edits]

    added, (a, b) = both("released")
    down, up = f"{PATH}.down", f"{PATH}.up"
    low = first * (text @ a[down].T) + second * (text @ b[down].T)
    expected = 0.5 * (first * (low @ a[up].T) + second * (low @ b[up].T))
    torch.testing.assert_close(added, expected, atol=1e-4, rtol=1e-3)

    added, _ = both("paper")
    expected = 0.5 * (first * (text @ a[down].T @ a[up].T) + second * (text @ b[down].T @ b[up].T))
    torch.testing.assert_close(added, expected, atol=1e-4, rtol=1e-3)


def test_the_rest_of_several_edits_stays_when_one_is_off_or_undone(pipe, output):
    prompts = ["a star", "a blue circle"]
    first, second = (at_one_layer(pipe, i, c, "released") for i, c in enumerate(("star", "blue")))
    alone = output([second], prompts)
    with first.off():
        assert torch.equal(output([first, second], prompts), alone)
    first.apply(pipe)()
    assert torch.equal(output([second], prompts), alone)


def test_released_factors_of_several_ranks_are_refused(pipe):
    at_one_layer(pipe, 1, variant="released").apply(pipe)
    at_one_layer(pipe, 2, variant="paper", rank=2).apply(pipe)
    with pytest.raises(ResurgeError, match="are 1 and 2; use one rank, or variant: paper"):
        at_one_layer(pipe, 3, variant="released", rank=2).apply(pipe)


def test_a_copy_of_the_unet_is_opened_by_its_own_prompts(pipe):
    """Methods copy the UNet to keep their teacher; its pass must not read another's gates."""
    perturbed(pipe, "gated_lora").gated("paper").apply(pipe)
    one, two = embed(pipe, ["a star"]), embed(pipe, ["a blue circle", "a red circle"])
    expected = predict(pipe, two)
    twin = copy.deepcopy(pipe.unet)
    predict(pipe, one)
    x_t = normal((1, 4, 8, 8), 0, 0, "x").expand(2, -1, -1, -1)
    with torch.no_grad():
        found = twin(x_t, 500, encoder_hidden_states=two).sample
    assert torch.equal(found, expected)


def test_the_gate_is_the_finished_models_whatever_the_order_of_its_edits(warm):
    """A concept's embedding is that of the text encoder as all edits leave it."""
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    moved = Weights({name: live_parameters(warm.pipe)[name].detach() + 0.3})
    lora = perturbed(warm.pipe, "gated_lora").gated("paper")
    found = []
    for edits in ([lora, moved], [moved, lora]):
        warm.put(edits)
        found.append(predict(warm.pipe, embed(warm.pipe, ["a star", "a blue circle"])))
    assert torch.equal(*found)


def test_adapters_that_were_stored_with_another_gate_are_refused(pipe, tmp_path):
    lora = perturbed(pipe, "gated_lora").gated("paper")
    lora.config = lambda: {"concept": "star", "scale": 0.5}
    save_edits(tmp_path / "edits", [lora])
    with pytest.raises(ResurgeError, match="run their unlearning again"):
        load_edits(tmp_path / "edits")
