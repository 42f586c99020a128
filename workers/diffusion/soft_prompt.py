"""Prompts with learned token embeddings, and the attacks that find them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from orchestrator.core.errors import ResurgeError
from workers.diffusion.rng import normal

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


SoftLoss = Callable[[Tensor, int], Tensor]
"""(soft embeddings (n, tokens, width), step) -> a scalar with its graph."""


def token_ids(pipe: Pipeline, prompts: Sequence[str], soft_tokens: int) -> Tensor:
    """Token ids (n, length) with room for `soft_tokens` right after the start token.

    Raises:
        ResurgeError: a prompt with that many soft tokens is longer than the text encoder reads.
    """
    tokenizer = pipe.tokenizer
    length = tokenizer.model_max_length
    encoded = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)
    rows = []
    for ids, mask, prompt in zip(encoded.input_ids, encoded.attention_mask, prompts, strict=True):
        if sum(mask) + soft_tokens > length:
            raise ResurgeError(
                f"{soft_tokens} soft tokens and {prompt!r} need {sum(mask) + soft_tokens} tokens "
                f"but the text encoder reads {length}; lower soft_tokens"
            )
        # Their ids do not matter, because their embeddings are replaced.
        rows.append([ids[0], *[ids[1]] * soft_tokens, *ids[1:]][:length])
    return torch.tensor(rows, device=pipe.device)


def encode(pipe: Pipeline, ids: Tensor, soft: Tensor | None = None) -> Tensor:
    """Text embeddings (n, tokens, width) of `ids` (n, tokens), with gradients.

    `soft` (n, k, width) takes the place of the token embeddings right after the start token.
    """
    if soft is None:
        return pipe.text_encoder(ids)[0]
    layer = pipe.text_encoder.get_input_embeddings()
    count = soft.shape[1]

    def replace(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], soft.to(output.dtype), output[:, 1 + count :]], dim=1)

    handle = layer.register_forward_hook(replace)
    try:
        return pipe.text_encoder(ids)[0]
    finally:
        handle.remove()


def new_soft(
    pipe: Pipeline, count: int, soft_tokens: int, seed: int, step: int, stream: str
) -> Tensor:
    """Random embeddings (count, soft_tokens, width) with the vocabulary's own spread."""
    table = pipe.text_encoder.get_input_embeddings().weight
    shape = (count, soft_tokens, table.shape[1])
    return normal(shape, seed, step, stream, table.device) * table.detach().std()


def attack(
    loss: SoftLoss,
    start: Tensor,
    steps: int,
    learning_rate: float,
    kind: Literal["adam", "sign", "fast"],
    weight_decay: float = 0.0,
) -> Tensor:
    """Soft embeddings that make `loss` small: `steps` of AdamW, or of signed gradients.

    `fast` is one signed step of size `learning_rate` (FGSM, Goodfellow et al. 2015) for all steps
    at once. Only the embeddings get gradients.
    """
    soft = nn.Parameter(start.clone())
    if kind == "fast":
        return _signed(soft, loss, 0, learning_rate)
    if kind == "sign":
        for step in range(steps):
            soft = nn.Parameter(_signed(soft, loss, step, learning_rate))
        return soft.detach()
    optimizer = torch.optim.AdamW([soft], lr=learning_rate, weight_decay=weight_decay)
    for step in range(steps):
        (soft.grad,) = torch.autograd.grad(loss(soft, step), [soft])
        optimizer.step()
    return soft.detach()


def _signed(soft: Tensor, loss: SoftLoss, step: int, size: float) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(soft, step), [soft])
    return (soft - size * gradient.sign()).detach()
