"""Passes of a UNet and an autoencoder alone: launched a kernel at a time, and as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.models import size_px
from benchmarks.sides import rate

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


def decoded(pipe: Pipeline, count: int, dtype: torch.dtype) -> float:
    """Pictures a second that the autoencoder decodes in a precision, which it keeps."""
    vae, side = pipe.vae.to(dtype), size_px(pipe) // pipe.vae_scale_factor
    latents = torch.randn(count, 4, side, side, device="cuda", dtype=dtype)
    with torch.inference_mode():
        vae.decode(latents)
        return rate(count, lambda: vae.decode(latents))


def inputs(pipe: Pipeline, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, time steps and text for a pass."""
    config = pipe.unet.config
    side = config.sample_size
    latents = torch.randn(count, config.in_channels, side, side, device="cuda")
    tokens = pipe.tokenizer.model_max_length
    text = torch.randn(count, tokens, config.cross_attention_dim, device="cuda")
    return latents, torch.full((count,), 500, device="cuda"), text


class Passes(nn.Module):
    """A UNet's tensors in, a tensor out, under autocast."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, when: Tensor, text: Tensor) -> Tensor:
        """What it predicts."""
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            found: Tensor = self.unet(latents, when, encoder_hidden_states=text).sample
        return found


def graphed_pass(pipe: Pipeline, count: int, times: int) -> tuple[float, float]:
    """Passes a second without gradients, and of their graph."""
    unet, given = Passes(pipe.unet), inputs(pipe, count)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                unet(*given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            unet(*given)
        plain = rate(times, lambda: [unet(*given) for _ in range(times)])
        return plain, rate(times, lambda: [graph.replay() for _ in range(times)])


def graphed_step(pipe: Pipeline, count: int, times: int) -> tuple[float, float]:
    """Forward and backward passes a second, and of their graphs."""
    pipe.unet.requires_grad_(True)
    unet, given = Passes(pipe.unet), inputs(pipe, count)

    def steps(module: Callable[..., Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                module(*given).float().square().mean().backward()
                pipe.unet.zero_grad(set_to_none=True)

        return run

    steps(unet)()
    plain = rate(times, steps(unet))
    graphed = torch.cuda.make_graphed_callables(unet, given)
    steps(graphed)()
    found = rate(times, steps(graphed))
    return plain, found
