"""How far captioned pictures are from a concept: 1 − the cosine of two embeddings.

Everything is on the CPU and in a fixed batch size, and rounded, so that the order of examples does
not depend on where it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.core.errors import ResurgeError
from workers.data.loading import load_part, load_weights
from workers.data.pinned import Source
from workers.data.scenes import kind_of
from workers.runtime.progress import tell
from workers.shapes.judge import WEIGHTS, Judge
from workers.shapes.vocabulary import caption

if TYPE_CHECKING:
    import numpy as np

    from workers.interfaces.dataset import Examples

Distances = tuple[float, ...]
PER_PASS = 64
DIGITS = 6


@torch.inference_mode()
def by_captions(examples: Examples, concept: str) -> Distances:
    """Between what the UNet's cross-attention gets of the caption and of the concept's own.

    The bundled model's text encoder, its last hidden states of all tokens together.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer")
    encoder = load_weights(CLIPTextModel, str(WEIGHTS / "pipeline"), part="text_encoder")
    encoder.float().eval()

    def encode(captions: Sequence[str]) -> Tensor:
        hidden: Tensor = encoder(**_tokens(tokenizer, captions)).last_hidden_state
        return hidden.flatten(1)

    unique = list(dict.fromkeys(examples.captions))
    kind = kind_of(concept)
    assert kind is not None  # `problems` refuses other concepts
    states = _in_passes([caption(**{kind: concept}), *unique], encode)
    found = dict(zip(unique, _to(states[:1], states[1:]), strict=True))
    return tuple(found[text] for text in examples.captions)


def _tokens(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    length = tokenizer.model_max_length
    found = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return {"input_ids": found.input_ids}


def by_pictures(examples: Examples, own: Examples) -> Distances:
    """Between the judge's features of each picture and their mean over the concept's `own`."""
    judge = Judge.load()

    def encode(images: np.ndarray) -> Tensor:
        return judge.features(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)

    with torch.inference_mode():
        center = _in_passes(own.images, encode).mean(0, keepdim=True)
        return _to(center, _in_passes(examples.images, encode))


@torch.inference_mode()
def by_clip(examples: Examples, concept: str, source: Source) -> Distances:
    """Between CLIP's embeddings of each picture and of the concept's name."""
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = load_weights(CLIPModel, source.where, source.revision, use_safetensors=True)
        processor = load_part(CLIPProcessor, source)
    except ResurgeError as error:
        raise ResurgeError(f"clip: {error}") from error
    model.float().eval()

    def encode(images: np.ndarray) -> Tensor:
        pixels = processor(images=list(images), return_tensors="pt")
        projected: Tensor = model.visual_projection(model.vision_model(**pixels).pooler_output)
        return projected

    tokens = _tokens(processor.tokenizer, [concept])
    text = model.text_projection(model.text_model(**tokens).pooler_output)
    return _to(text, _in_passes(examples.images, encode))


def _in_passes(items: Any, encode: Callable[[Any], Tensor]) -> Tensor:
    """`encode` of all items, some at a time: (n, width)."""
    found = []
    for start in range(0, len(items), PER_PASS):
        found.append(encode(items[start : start + PER_PASS]))
        tell(min(start + PER_PASS, len(items)), len(items))
    return torch.cat(found)


def _to(point: Tensor, others: Tensor) -> Distances:
    """From one point (1, width) to many (n, width)."""
    cosines = functional.cosine_similarity(point.double(), others.double())
    return tuple(max(0.0, round(float(1 - value), DIGITS)) for value in cosines)
