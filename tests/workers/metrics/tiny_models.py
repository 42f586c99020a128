"""Tiny models with random weights, on disk, as transformers saves them."""

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
)

from orchestrator.core.artifacts import Probe
from workers.interfaces.metric import Picture
from workers.shapes.making.tokenizer import MAX_TOKENS, build_tokenizer

SIDE_PX = 32
WIDTH = 8
LAYER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def save_clip(folder):
    """A CLIP model with the bundled world's tokenizer."""
    tokenizer = build_tokenizer()
    text = {
        **LAYER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**LAYER, "image_size": SIDE_PX, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=size).save_pretrained(folder)
    return folder


def save_classifier(folder, names):
    """A ResNet with random weights and these classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
        ResNetForImageClassification(config).save_pretrained(folder)
    processor = ConvNextImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_pct=1.0)
    processor.save_pretrained(folder)
    return folder


def noise_images(count, seed=0, side_px=40):
    """uint8 pictures of nothing."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8) for _ in range(count)]


def pictures_of(images, role="erased", concept="star", prompt=None):
    """Pictures of one prompt."""
    probe = Probe(role, concept, prompt or f"a {concept}")
    return [Picture(probe, 0, index, image) for index, image in enumerate(images)]
