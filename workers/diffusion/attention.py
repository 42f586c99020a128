"""Cross-attention, made visible: which picture regions look at which words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.runtime.parts import in_parts

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

    from workers.interfaces.pipeline import UNet


@contextmanager
def recorded(unet: UNet) -> Iterator[dict[str, Tensor]]:
    """Inside, each forward pass leaves every attn2's probabilities, by the module's path.

    Each is (n, heads, height · width, tokens) and keeps its graph. The attention is computed
    openly instead of in one fused kernel; the numbers are the same but for rounding. The
    processors that were there before are put back. Batches are not computed in parts: the maps
    would be the last part's.
    """
    maps: dict[str, Tensor] = {}
    before = {p: m.processor for p, m in unet.named_modules() if p.endswith(".attn2")}
    modules = dict(unet.named_modules())
    for path in before:
        modules[path].processor = _Recorder(path, maps)
    try:
        with in_parts(1):
            yield maps
    finally:
        for path, processor in before.items():
            modules[path].processor = processor


class _Recorder:
    """An attention processor that writes down its probabilities."""

    def __init__(self, path: str, maps: dict[str, Tensor]) -> None:
        self.path, self.maps = path, maps

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        query, key, value = (attn.head_to_batch_dim(t) for t in (query, key, value))
        weights = attn.get_attention_scores(query, key, attention_mask)
        self.maps[self.path] = weights.view(len(hidden_states), attn.heads, *weights.shape[1:])
        mixed = attn.batch_to_head_dim(torch.bmm(weights, value))
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out


@contextmanager
def start_token_blocked(unet: nn.Module) -> Iterator[None]:
    """Inside, no gradient goes through the first token's key and value in attn2.

    What is computed forwards is the same. Hooks on to_k and to_v: whatever computes the attention
    itself is left as it is and sees nothing of it.
    """

    def block(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

    handles = [
        module.register_forward_hook(block)
        for path, module in unet.named_modules()
        if path.endswith((".attn2.to_k", ".attn2.to_v"))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def to_words(maps: Mapping[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """Attention to chosen tokens: maps (n, heads, pixels, tokens) and words, bool (n, tokens),
    to (n, heads, pixels, tokens) that is 0 at every other token.
    """
    return {path: probs * words[:, None, None, :] for path, probs in maps.items()}


def resized(masks: Tensor, pixels: int, aspect: float = 1.0) -> Tensor:
    """Masks (n, height, width) at an attention map's resolution: fp32 (n, pixels) in {0, 1}.

    By nearest neighbour: a cell is what its upper left pixel is. `aspect` is height over width.
    """
    height = round((pixels * aspect) ** 0.5)
    sized = functional.interpolate(masks.float()[:, None], (height, pixels // height))
    return sized.flatten(1)
