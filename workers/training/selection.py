"""Which of a UNet's parameters an unlearning method trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from orchestrator.core.errors import ResurgeError

if TYPE_CHECKING:
    from workers.interfaces.pipeline import UNet


Group = Literal["full", "xattn", "xattn_kv", "attention", "outside_xattn_layers", "noxattn"]


def select(unet: nn.Module, group: Group) -> dict[str, nn.Parameter]:
    """The parameters of a group, by name ("attn2" names the cross-attention modules).

    - `full`: everything.
    - `xattn`: everything in attn2.
    - `xattn_kv`: attn2's to_k and to_v.
    - `attention`: the projections q, k, v and out of every attention, attn1 and attn2.
    - `outside_xattn_layers`: every Linear and Conv2d outside attn2, conv_in, conv_out and the time
      embedding included, but no norms.
    - `noxattn`: everything outside attn2, norms and conv_in included, but neither the output
      layers nor the time embedding.
    """
    if group == "outside_xattn_layers":
        return {
            f"{path}.{name}": value
            for path, module in unet.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and "attn2." not in f"{path}."
            for name, value in module.named_parameters(recurse=False)
        }
    output = ("conv_norm_out.", "conv_out.", "time_embedding.")
    belongs: dict[str, Callable[[str], bool]] = {
        "full": lambda name: True,
        "xattn": lambda name: "attn2." in name,
        "xattn_kv": lambda name: "attn2.to_k." in name or "attn2.to_v." in name,
        "attention": lambda name: "attn1." in name or "attn2." in name,
        "noxattn": lambda name: "attn2." not in name and not name.startswith(output),
    }
    return {name: value for name, value in unet.named_parameters() if belongs[group](name)}


def refuse_half_precision(parameters: Mapping[str, Tensor]) -> None:
    """Raise unless all of them can be trained.

    Raises:
        ResurgeError: some are in half precision, in which small steps vanish.
    """
    half = {str(p.dtype) for p in parameters.values()} & {"torch.float16", "torch.bfloat16"}
    if half:
        raise ResurgeError(
            f"training needs float32 weights but the base was loaded in {', '.join(sorted(half))}; "
            "leave the base's torch_dtype at float32 and set precision to bf16"
        )


def frozen_copy(unet: UNet, trained: Mapping[str, nn.Parameter]) -> Any:
    """The UNet as it is now, to be a teacher: what is not trained is shared, not copied."""
    chosen = {id(value) for value in trained.values()}
    shared = {id(v): v for v in (*unet.parameters(), *unet.buffers()) if id(v) not in chosen}
    frozen = copy.deepcopy(unet, shared)
    return frozen.eval().requires_grad_(False)
