"""A UNet under the names of original checkpoints is the same UNet."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import save_file

from orchestrator.core.errors import ResurgeError
from workers.released.reading import released_weights
from workers.released.source import find_released


class Bare:
    """A pipeline with nothing but the two parts."""

    def __init__(self, unet, text_encoder, scheduler):
        self.unet, self.text_encoder, self.scheduler = unet, text_encoder, scheduler


@pytest.fixture
def four_blocks(pipe):
    """Of Stable Diffusion's form, which the original names are of: four blocks of two layers."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        cross_attention_dim=pipe.text_encoder.config.hidden_size,
        attention_head_dim=2,
    )
    return Bare(unet, pipe.text_encoder, pipe.scheduler)


def original_names(unet):
    """The weights by the names of original checkpoints, from the places of the layers."""
    layers = {v: k for k, v in DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"].items()}
    back = {v: k for k, v in layers.items()}
    resnet = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    found = {}
    for name, value in unet.state_dict().items():
        top, *rest = name.split(".")
        if name in back:
            found[back[name]] = value
            continue
        if top == "mid_block":
            kind, index, *inner = rest
            start = f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}"
        else:
            block, kind, index, *inner = rest
            block, index = int(block), int(index)
            if top == "down_blocks":
                place = 1 + 3 * block + (2 if kind == "downsamplers" else index)
                start = f"input_blocks.{place}.{1 if kind == 'attentions' else 0}"
            else:
                place = 3 * block + (2 if kind == "upsamplers" else index)
                last = (
                    2 if any("attentions" in n for n in unet.up_blocks[block].state_dict()) else 1
                )
                inside = {"resnets": 0, "attentions": 1, "upsamplers": last}[kind]
                start = f"output_blocks.{place}.{inside}"
        if kind == "resnets":
            inner = [resnet[inner[0]], *inner[1:]]
        elif kind == "downsamplers":
            inner = ["op", *inner[1:]]
        found[".".join([start, *inner])] = value
    return {f"model.diffusion_model.{name}": value for name, value in found.items()}


@pytest.mark.parametrize("whole", [True, False])
def test_it_is_read_by_diffusers_converter(four_blocks, tmp_path, whole):
    tensors = original_names(four_blocks.unet)
    if not whole:
        tensors = {n.removeprefix("model.diffusion_model."): v for n, v in tensors.items()}
    save_file(tensors, tmp_path / "esd.safetensors")
    found = released_weights(four_blocks, find_released(tmp_path / "esd.safetensors"))
    expected = four_blocks.unet.state_dict()
    assert found.keys() == {f"unet.{name}" for name in expected}
    assert all(torch.equal(found[f"unet.{name}"], value) for name, value in expected.items())


def test_a_part_of_one_is_refused(four_blocks, tmp_path):
    tensors = original_names(four_blocks.unet)
    tensors.pop("model.diffusion_model.middle_block.1.proj_in.weight")
    tensors["model.diffusion_model.unknown.weight"] = torch.ones(1)
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(ResurgeError):
        released_weights(four_blocks, find_released(tmp_path / "part.safetensors"))
