"""LoRA on a UNet (Hu et al. 2021, through peft): attached, merged for evaluation, removed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from workers.diffusion.rng import generator
from workers.recipes import FinetuneSettings

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear

    from workers.interfaces.pipeline import UNet


ADAPTER = "finetune"
TARGETS = {
    "attention": r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
    "cross_attention": r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
}


def projections(unet: nn.Module) -> dict[str, nn.Linear]:
    """The attention projections by path: what LoRA usually stands beside."""
    layer = re.compile(TARGETS["attention"])
    return {
        path: module
        for path, module in unet.named_modules()
        if layer.fullmatch(path) and isinstance(module, nn.Linear)
    }


class Lora:
    """Low-rank adapters beside the attention projections; the weights under them do not move."""

    def __init__(self, unet: UNet, settings: FinetuneSettings, seed: int) -> None:
        from peft import LoraConfig

        self._unet = unet
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
            target_modules=TARGETS[settings.lora_targets],
        )
        # peft initialises from the global generator: its numbers are replaced, its state kept.
        with torch.random.fork_rng(devices=[]):
            unet.add_adapter(config, adapter_name=ADAPTER)
        self._initialise(seed)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters by their name in the UNet."""
        return {n: p for n, p in self._unet.named_parameters() if ".lora_" in n}

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The UNet as a plain one with W + scale · B A for weights; the adapters come back after.

        Evaluating the merged weights, not the adapters, gives the same pictures as the finished
        model, because the sums are the same.
        """
        kept = self._merge()
        try:
            yield
        finally:
            self._unmerge(kept)

    def finish(self) -> None:
        """Merge for good; nothing of LoRA is left in the UNet."""
        self._merge()
        del self._unet.peft_config
        self._unet._hf_peft_config_loaded = False

    @torch.no_grad()
    def _merge(self) -> list[tuple[str, LoraLinear, Tensor]]:
        from peft.tuners.lora import Linear as LoraLinear

        kept = []
        layers = [(p, m) for p, m in self._unet.named_modules() if isinstance(m, LoraLinear)]
        for path, layer in layers:
            linear = _under(layer)
            kept.append((path, layer, linear.weight.detach().clone()))
            linear.weight += layer.get_delta_weight(ADAPTER)
            self._unet.set_submodule(path, linear)
        return kept

    @torch.no_grad()
    def _unmerge(self, kept: list[tuple[str, LoraLinear, Tensor]]) -> None:
        for path, layer, weight in kept:
            # The saved weight, not a subtraction: that would leave a rounding error behind.
            _under(layer).weight.copy_(weight)
            self._unet.set_submodule(path, layer)

    def _initialise(self, seed: int) -> None:
        """Kaiming-uniform A and zero B, as peft does, from the seed and the parameter's name."""
        for name, value in self.parameters().items():
            if ".lora_A." in name:
                drawn = torch.empty(value.shape)
                nn.init.kaiming_uniform_(
                    drawn, a=math.sqrt(5), generator=generator(seed, 0, f"lora {name}")
                )
                value.data.copy_(drawn)
            else:
                nn.init.zeros_(value)


def _under(layer: LoraLinear) -> nn.Linear:
    """The model's own layer, whose place the LoRA has taken."""
    return cast(nn.Linear, layer.get_base_layer())
