"""A LoRA file adds the same to a model, whichever of the usual layouts it is in."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.core.errors import ResurgeError
from tests.workers.conftest import TinyShapes
from tests.workers.released.lora_files import (
    ALPHA,
    RANK,
    add_lora,
    merged_by_peft,
    save_as_diffusers,
    save_as_kohya,
    save_as_peft,
)
from workers.editing.edits import live_parameters
from workers.released.lora import read_factors
from workers.released.reading import merged_lora


@pytest.fixture(scope="module")
def plain():
    return TinyShapes(TinyShapes.Settings()).load("cpu")


@pytest.fixture(scope="module")
def trained():
    """A pipeline with adapters, and the configurations of peft."""
    pipe = TinyShapes(TinyShapes.Settings()).load("cpu")
    return pipe, *add_lora(pipe)


@pytest.fixture(scope="module")
def kohya(trained, tmp_path_factory):
    return save_as_kohya(trained[0], tmp_path_factory.mktemp("kohya") / "style.safetensors")


@pytest.fixture(scope="module")
def change(plain, kohya):
    return merged_lora(plain, kohya)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_kohyas_file_gives_what_peft_merges(plain, trained, change):
    merged = merged_by_peft(trained[0])
    live = live_parameters(plain)
    assert change.keys() == merged.keys()
    assert {name.partition(".")[0] for name in change} == {"unet", "text_encoder"}
    assert any(delta.dim() == 4 and delta.shape[-1] == 3 for delta in change.values())
    for name, delta in change.items():
        torch.testing.assert_close(live[name] + delta, merged[name], rtol=0, atol=1e-6)


def test_diffusers_layout_with_its_metadata_gives_the_same(plain, trained, change, tmp_path):
    pipe, unet, text = trained
    notes = {
        f"{part}_lora_adapter_metadata": {
            k: v
            for k, v in config.to_dict().items()
            if isinstance(v, str | int | float | dict) and not k.startswith("_")
        }
        for part, config in (("unet", unet), ("text_encoder", text))
    }
    path = save_as_diffusers(pipe, tmp_path, **notes)
    assert same(merged_lora(plain, path), change)


def test_diffusers_layout_without_an_alpha_counts_it_as_the_rank(plain, trained, kohya, tmp_path):
    path = save_as_diffusers(trained[0], tmp_path)
    tensors = load_file(kohya)
    for name in tensors:
        if name.endswith(".alpha"):
            tensors[name] = torch.tensor(float(RANK))
    save_file(tensors, tmp_path / "kohya.safetensors")
    found = merged_lora(plain, path)
    assert same(found, merged_lora(plain, tmp_path / "kohya.safetensors"))


def test_pefts_file_reads_alpha_beside_it(plain, trained, change, tmp_path):
    path = save_as_peft(trained[0].unet, trained[1], tmp_path / "peft")
    own = {name: delta for name, delta in change.items() if name.startswith("unet.")}
    assert same(merged_lora(plain, path), own)
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(ResurgeError, match="adapter_config"):
        merged_lora(plain, path)


def test_names_of_attention_processors_are_read_too(plain, change, tmp_path, kohya):
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    flat = f"lora_unet_{layer.replace('.', '_')}"
    tensors = load_file(kohya)
    old = {
        f"unet.{layer}.processor.{name}_lora.{role}.weight": tensors[
            f"{flat}_{name}{'_0' if name == 'to_out' else ''}.lora_{role}.weight"
        ]
        for name in ("to_q", "to_k", "to_v", "to_out")
        for role in ("down", "up")
    }
    save_file(old, tmp_path / "old.safetensors")
    found = merged_lora(plain, tmp_path / "old.safetensors")
    assert len(found) == 4
    for name, delta in found.items():  # without an alpha the factor is 1
        torch.testing.assert_close(delta * (ALPHA / RANK), change[name])


def test_rslora_and_alpha_of_single_layers_are_heard(trained, plain, tmp_path):
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    config = trained[1].to_dict() | {"use_rslora": True, "alpha_pattern": {"attn1.to_q": 12}}
    path = save_as_peft(trained[0].unet, trained[1], tmp_path / "peft")
    text = json.dumps({k: v for k, v in config.items() if k != "target_modules"}, default=str)
    (tmp_path / "peft" / "adapter_config.json").write_text(text)
    by_path = {one.path: one.factor for one in read_factors(path)}
    assert by_path[layer] == pytest.approx(12 / RANK**0.5)
    assert by_path[layer.replace("to_q", "to_k")] == pytest.approx(ALPHA / RANK**0.5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_x.dora_scale", "DoRA"),
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lora_mid.weight", "Tucker"),
        ("lora_te2_x.lora_down.weight", "SDXL"),
        ("something.else", "no pair"),
    ],
)
def test_other_kinds_are_refused_by_name(kohya, tmp_path, name, said):
    save_file({**load_file(kohya), name: torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ResurgeError, match=said):
        read_factors(tmp_path / "other.safetensors")


def test_half_a_pair_is_refused(kohya, tmp_path):
    tensors = load_file(kohya)
    del tensors[next(name for name in tensors if name.endswith("lora_up.weight"))]
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(ResurgeError, match="no pair of factors"):
        read_factors(tmp_path / "half.safetensors")


def test_layers_of_another_model_are_refused(plain, kohya, tmp_path):
    tensors = load_file(kohya)
    first = next(name for name in tensors if name.endswith("lora_down.weight"))
    wide = {**tensors, first: torch.ones(RANK, 1000)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(ResurgeError, match="made for another base"):
        merged_lora(plain, tmp_path / "wide.safetensors")
    elsewhere = {name.replace("mid_block", "middle_block"): v for name, v in tensors.items()}
    save_file(elsewhere, tmp_path / "elsewhere.safetensors")
    with pytest.raises(ResurgeError, match="middle_block"):
        merged_lora(plain, tmp_path / "elsewhere.safetensors")


def test_a_lora_of_zeros_is_refused(plain, kohya, tmp_path):
    zeros = {
        name: value * 0 if "lora_up" in name else value for name, value in load_file(kohya).items()
    }
    save_file(zeros, tmp_path / "zeros.safetensors")
    with pytest.raises(ResurgeError, match="changes nothing"):
        merged_lora(plain, tmp_path / "zeros.safetensors")
