"""Build a pipeline with the exact shape of a released Stable Diffusion and random weights.

    python tests/full_size/random_pipeline.py {sd14,sd21} FOLDER

The vocabulary is CLIP's real one, from the package open_clip_torch. It is found without importing
the package, which would want torchvision.
"""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PARAMETERS = {
    "sd14": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sd21": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
}
"""Of the released models."""
VOCABULARY_SIZE = 49_408
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
WORD_END = "</w>"


def build(name: str) -> StableDiffusionPipeline:
    """The pipeline in fp32 on the CPU."""
    torch.manual_seed(0)
    # Each library initialises its weights once, in its own way, which keeps activations finite.
    return StableDiffusionPipeline(
        vae=new_vae(512 if name == "sd14" else 768),
        text_encoder=new_text_encoder(name),
        tokenizer=new_tokenizer(pad="<|endoftext|>" if name == "sd14" else "!"),
        unet=new_unet(name),
        scheduler=new_scheduler(name),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_unet(name: str) -> UNet2DConditionModel:
    """All other settings are diffusers' defaults, which are Stable Diffusion 1's."""
    if name == "sd14":
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return UNet2DConditionModel(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
        upcast_attention=True,
    )


def new_vae(sample_size: int) -> AutoencoderKL:
    """The same in all versions."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=sample_size,
    )


def new_text_encoder(name: str) -> CLIPTextModel:
    """CLIP ViT-L/14's, or OpenCLIP ViT-H/14's without its last layer."""
    if name == "sd14":
        shape = {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "quick_gelu",
            "projection_dim": 768,
        }
    else:
        shape = {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "projection_dim": 512,
        }
    config = CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        **shape,
    )
    return CLIPTextModel(config)


def new_scheduler(name: str) -> SchedulerMixin:
    """PNDM over the noise; DDIM over v."""
    if name == "sd14":
        return PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    return DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False)


def new_tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's tokenizer of 49,408 entries, from its list of merges."""
    merges = read_merges()
    alphabet = byte_symbols()
    tokens = [*alphabet, *(symbol + WORD_END for symbol in alphabet)]
    tokens += ["".join(merge) for merge in merges]
    tokens += SPECIAL
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


def read_merges() -> list[tuple[str, str]]:
    """The first lines of the file: as many as CLIP's vocabulary has room for."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        sys.exit("CLIP's vocabulary is in open_clip_torch, which is missing: see `make test-slow`")
    path = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    count = VOCABULARY_SIZE - 2 * 256 - len(SPECIAL)
    pairs = (line.split() for line in lines[1 : 1 + count])
    return [(left, right) for left, right in pairs]


def byte_symbols() -> list[str]:
    """The 256 characters by which byte-level encoding writes bytes, in CLIP's order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in PARAMETERS:
        sys.exit(__doc__)
    build(sys.argv[1]).save_pretrained(sys.argv[2])
