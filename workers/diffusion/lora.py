"""LoRA and DoRA on a UNet or a text encoder (Hu et al. 2021, Liu et al. 2024, through peft):
attached, merged for evaluation, removed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from workers.diffusion.rng import generator
from workers.recipes import FinetuneSettings

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as LoraLinear


ADAPTER = "finetune"
TARGETS = {
    "attention": r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
    "cross_attention": r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
}
TEXT_TARGETS = r".*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
"""Those of a text encoder that diffusers' scripts train."""


def projections(part: nn.Module, targets: str = TARGETS["attention"]) -> dict[str, nn.Linear]:
    """The attention projections by path, a UNet's unless `targets` says otherwise: what LoRA
    usually stands beside.
    """
    layer = re.compile(targets)
    return {
        path: module
        for path, module in part.named_modules()
        if layer.fullmatch(path) and isinstance(module, nn.Linear)
    }


class Lora:
    """Low-rank adapters beside the attention projections; the weights under them do not move.

    With DoRA each output's row of W + scale · B A is given a length of its own, which is trained
    too and begins as that of W's.
    """

    def __init__(
        self,
        part: nn.Module,
        settings: FinetuneSettings,
        seed: int,
        name: Literal["unet", "text_encoder"] = "unet",
    ) -> None:
        from peft import LoraConfig

        self._part = cast(Any, part)  # of diffusers or transformers, which can both hold adapters
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
            target_modules=TARGETS[settings.lora_targets] if name == "unet" else TEXT_TARGETS,
            use_dora=settings.adapter == "dora",
        )
        # peft initialises from the global generator: its numbers are replaced, its state kept.
        with torch.random.fork_rng(devices=[]):
            self._part.add_adapter(config, adapter_name=ADAPTER)
        self._initialise(seed, "" if name == "unet" else f"{name}.")

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapters' parameters by their name in the part."""
        return {n: p for n, p in self._part.named_parameters() if ".lora_" in n}

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The part as a plain one with W + scale · B A for weights; the adapters come back after.

        Evaluating the merged weights, not the adapters, gives the same pictures as the finished
        model, because the sums are the same.
        """
        kept = self._merge()
        try:
            yield
        finally:
            self._unmerge(kept)

    def finish(self) -> None:
        """Merge for good; nothing of LoRA is left in the part."""
        self._merge()
        del self._part.peft_config
        self._part._hf_peft_config_loaded = False

    @torch.no_grad()
    def _merge(self) -> list[tuple[str, LoraLinear, Tensor]]:
        from peft.tuners.lora import Linear as LoraLinear

        kept = []
        layers = [(p, m) for p, m in self._part.named_modules() if isinstance(m, LoraLinear)]
        for path, layer in layers:
            linear = _under(layer)
            kept.append((path, layer, linear.weight.detach().clone()))
            linear.weight += layer.get_delta_weight(ADAPTER)
            if ADAPTER in layer.lora_magnitude_vector:
                length = layer.lora_magnitude_vector[ADAPTER].weight
                linear.weight *= (length / linear.weight.norm(dim=1)).unsqueeze(1)
            self._part.set_submodule(path, linear)
        return kept

    @torch.no_grad()
    def _unmerge(self, kept: list[tuple[str, LoraLinear, Tensor]]) -> None:
        for path, layer, weight in kept:
            # The saved weight, not a subtraction: that would leave a rounding error behind.
            _under(layer).weight.copy_(weight)
            self._part.set_submodule(path, layer)

    def _initialise(self, seed: int, prefix: str) -> None:
        """Kaiming-uniform A and zero B, as peft does, from the seed and the parameter's name."""
        for name, value in self.parameters().items():
            if ".lora_A." in name:
                drawn = torch.empty(value.shape)
                nn.init.kaiming_uniform_(
                    drawn, a=math.sqrt(5), generator=generator(seed, 0, f"lora {prefix}{name}")
                )
                value.data.copy_(drawn)
            elif ".lora_B." in name:
                nn.init.zeros_(value)


def _under(layer: LoraLinear) -> nn.Linear:
    """The model's own layer, whose place the LoRA has taken."""
    return cast(nn.Linear, layer.get_base_layer())
