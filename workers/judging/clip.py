"""CLIP embeddings of pictures and texts, each model loaded once a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from workers.data.loading import load_model, load_part
from workers.data.pinned import Source
from workers.interfaces.fit import refuse, tokenizer_faults
from workers.runtime.kept import kept

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

T = TypeVar("T")
PER_PASS = 64


@dataclass(frozen=True)
class Clip:
    """A CLIP model with what prepares its inputs."""

    model: Any
    processor: Any
    tokenizer: Any

    def images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embeddings of length 1 (n, width) of pictures, fp32 on the CPU."""

        def embed(some: Sequence[np.ndarray]) -> Tensor:
            pixels = prepare(self.processor, some).to(self.model.device)
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            projected: Tensor = self.model.visual_projection(pooled)
            return projected

        return _unit(images, embed)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of length 1 (n, width) of texts, cut after CLIP's 77 tokens."""
        limit = self.model.config.text_config.max_position_embeddings

        def embed(some: Sequence[str]) -> Tensor:
            tokens = self.tokenizer(
                list(some), padding=True, truncation=True, max_length=limit, return_tensors="pt"
            ).to(self.model.device)
            pooled = self.model.text_model(tokens.input_ids, tokens.attention_mask).pooler_output
            projected: Tensor = self.model.text_projection(pooled)
            return projected

        return _unit(texts, embed)

    @property
    def scale(self) -> float:
        """What the model's cosines are multiplied by before a softmax: 100 as published."""
        return float(self.model.logit_scale.exp())


def _unit(items: Sequence[T], embed: Callable[[Sequence[T]], Tensor]) -> Tensor:
    import torch
    from torch.nn import functional

    from workers.runtime.finite import check_tensors
    from workers.runtime.parts import passes

    with torch.inference_mode():
        found = torch.cat([embed(some) for some in passes(items, PER_PASS)])
        found = functional.normalize(found.float(), dim=-1).cpu()
    # NaN has a largest class too, and means nothing in a mean.
    check_tensors({"an embedding": found}, "CLIP", "take another CLIP model, its weights are bad")
    return found


@kept(2)
def load_clip(source: Source) -> Clip:
    """The model, its processor and its tokenizer."""
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = load_model(CLIPModel, source), load_part(AutoTokenizer, source)
    refuse(tokenizer_faults(len(tokenizer), 0, model.config.text_config.to_dict()), source.name)
    return Clip(model, load_processor(source), tokenizer)


def load_processor(source: Source) -> Any:
    """What scales and crops a model's pictures; Pillow's, whatever else is installed."""
    from transformers import AutoImageProcessor

    return load_part(AutoImageProcessor, source, backend="pil")


def prepare(processor: Any, images: Sequence[np.ndarray]) -> Tensor:
    """A processor's pixels (n, 3, height, width) of uint8 pictures (height, width, 3)."""
    pixels: Tensor = processor(
        images=list(images), input_data_format="channels_last", return_tensors="pt"
    ).pixel_values
    return pixels
