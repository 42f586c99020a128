"""How much memory each kind of work takes: estimates from a pipeline's own parameter counts.

With b bytes a weight, P the number of parameters and n = 1 image a batch, in bytes:

    weights      b (P_unet + P_text + P_vae)    on the device
    copy         b (P_unet + P_text)            on the host: the pristine weights (WarmPipeline)
    skips        b Σ C h w                      over the maps that the UNet's skips carry
    pass         skips + 12 b C₀ h₀ w₀          the widest block: its feed-forward layer is 8 C₀
    backward     2 skips + 40 b C₀ h₀ w₀        gradient checkpointing: one block is recomputed
    text         b L T (9 d + 3 f + 2 h T)      what L layers of the text encoder keep of T tokens
    autoencoder  4 b C₁ H W                     four maps of a picture's size, C₁ its second width

    sampling     weights + copy + max(2 pass, autoencoder)         2: guidance
    closed form  weights + copy + b P_kv + 3 · 8 d²                fp64 sums, d the text's width
    attn2        weights + copy + (b + 12) P_attn2 + backward    b: the original of what is trained
    full         weights + copy + 8 P_unet + max(4 P_unet + backward, saved)
    LoRA         weights + copy + 12 P_lora + max(4 P_lora + backward, saved)
    inversion    weights + copy + backward + text

With the text encoder trained too, P_unet is P_unet + P_text, P_lora has the factors beside its
projections, and `text` is added to `backward`: its layers are not recomputed. Adam keeps two
moments (8 bytes a parameter) and needs a gradient (4); LoRA's parameters are added to the model's
(4). A training checkpoint, `saved`, is a copy of parameters and moments (12) on the host. What
libraries take for themselves, about 1 GB, comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from workers.diffusion.denoise import latent_shape
from workers.diffusion.lora import TARGETS, TEXT_TARGETS, projections

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

LORA_RANK = 4
GRADIENT, MOMENTS, CHECKPOINT = 4, 8, 12
"""Bytes a trained parameter."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of one kind of work at batch size 1."""

    work: str
    device_bytes: int
    host_bytes: int


def estimates(pipe: Pipeline) -> dict[str, PeakMemory]:
    """By a short name: sampling, closed_form, attn2, full, lora, each of the last two also with the
    text encoder (full_text, lora_text), and inversion. See the module's formulas.
    """
    size, config = pipe.unet.dtype.itemsize, pipe.unet.config
    _, height, width = latent_shape(pipe)
    unet, text, vae = (count(part) for part in (pipe.unet, pipe.text_encoder, pipe.vae))
    weights, copy = size * (unet + text + vae), size * (unet + text)
    skips, widest = _skips(pipe), config.block_out_channels[0] * height * width
    second = pipe.vae.config.block_out_channels[:2][-1]
    autoencoder = 4 * second * height * width * pipe.vae_scale_factor**2
    forward = size * (skips + 12 * widest)
    backward = size * (2 * skips + 40 * widest)
    solver = 3 * 8 * config.cross_attention_dim**2
    attn2 = count(pipe.unet, ".attn2.")
    lora = _lora(pipe.unet, TARGETS["attention"])
    lora_text = lora + _lora(pipe.text_encoder, TEXT_TARGETS)
    kept = size * _kept_of_text(pipe)
    edited = size * count(pipe.unet, "attn2.to_k", "attn2.to_v")

    def trained(work: str, parameters: int, extra: int, text: int = 0) -> PeakMemory:
        """Gradients and the checkpoint's copy are not there at the same time."""
        device = weights + extra + MOMENTS * parameters
        step, saved = GRADIENT * parameters + backward + text, CHECKPOINT * parameters
        if pipe.device.type == "cpu":
            return PeakMemory(work, device + max(step, saved), copy)
        return PeakMemory(work, device + step, copy + saved)

    return {
        "sampling": PeakMemory("sampling", weights + max(2 * forward, size * autoencoder), copy),
        "closed_form": PeakMemory(
            "closed-form edit of attn2 k, v", weights + edited + solver, copy
        ),
        "attn2": PeakMemory(
            "training attn2",
            weights + (size + GRADIENT + MOMENTS) * attn2 + backward,
            copy,
        ),
        "full": trained("full fine-tuning, fp32 Adam", unet, 0),
        "full_text": trained("full fine-tuning with the text encoder", unet + text, 0, kept),
        "lora": trained(f"LoRA fine-tuning, rank {LORA_RANK}", lora, 4 * lora),
        "lora_text": trained(
            f"LoRA with the text encoder, rank {LORA_RANK}", lora_text, 4 * lora_text, kept
        ),
        "inversion": PeakMemory("textual inversion", weights + backward + kept, copy),
    }


def _lora(part: nn.Module, targets: str) -> int:
    """Parameters of the factors beside a part's projections."""
    return sum(LORA_RANK * sum(layer.weight.shape) for layer in projections(part, targets).values())


def _kept_of_text(pipe: Pipeline) -> int:
    """Numbers that the text encoder's layers keep of one prompt for the backward pass."""
    config, tokens = pipe.text_encoder.config, pipe.tokenizer.model_max_length
    width, inner = config.hidden_size, config.intermediate_size
    each = 9 * width + 3 * inner + 2 * config.num_attention_heads * tokens
    return config.num_hidden_layers * tokens * each


def count(module: nn.Module, *names: str) -> int:
    """Parameters, or only those whose name contains one of `names`."""
    return sum(
        value.numel()
        for name, value in module.named_parameters()
        if not names or any(part in name for part in names)
    )


def free_bytes(device: str) -> int:
    """What a new process could take on the device, or of the host's memory for "cpu"."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def _skips(pipe: Pipeline) -> int:
    """Numbers in the maps that the UNet's down blocks hand to its up blocks."""
    widths, layers = pipe.unet.config.block_out_channels, pipe.unet.config.layers_per_block
    _, height, width = latent_shape(pipe)
    total = widths[0] * height * width  # after the first convolution
    for level, channels in enumerate(widths):
        area = (height >> level) * (width >> level)
        total += layers * channels * area
        if level < len(widths) - 1:
            total += channels * area // 4  # after its downsampling
    return total
