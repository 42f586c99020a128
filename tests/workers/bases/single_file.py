"""A pipeline's weights under the names of Stable Diffusion 1's original checkpoints."""

from __future__ import annotations

import re

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def original_names(pipe):
    """{name in an original checkpoint: tensor} of the whole pipeline."""
    weights = {}
    per_block = pipe.unet.config.layers_per_block + 1
    for name, value in pipe.unet.state_dict().items():
        weights[f"model.diffusion_model.{_unet(name, per_block)}"] = value
    levels = len(pipe.vae.config.block_out_channels)
    for name, value in pipe.vae.state_dict().items():
        is_projection = "attentions" in name and "norm" not in name and name.endswith("weight")
        stored = value[:, :, None, None] if is_projection else value
        weights[f"first_stage_model.{_vae(name, levels)}"] = stored
    for name, value in pipe.text_encoder.state_dict().items():
        key = f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"
        weights[key] = value
    return {name: value.contiguous() for name, value in weights.items()}


def _unet(name, per_block):
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return _resnet(theirs + name.removeprefix(ours), "resnets" in ours)
    side, i, kind, j, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name
    ).groups()
    start = int(i) * per_block
    if kind == "downsamplers":
        return f"input_blocks.{start + per_block}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":  # the tiny model's first up block has no attention before it
        return f"output_blocks.{start + per_block - 1}.1.{rest}"
    number = start + int(j) + (side == "down")
    place = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}"
    return _resnet(f"{place}.{rest}", kind == "resnets")


def _resnet(name, is_resnet):
    for ours, theirs in UNET_RESNET.items() if is_resnet else ():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def _vae(name, levels):
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
        lambda m: f"up.{levels - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name
