"""Prompts with learned token embeddings, and the attacks that find them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.errors import ResurgeError
from workers.diffusion.rng import integers, normal

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


def ids_with_room(
    pipe: Pipeline, prompts: Sequence[str], concept: str, soft_tokens: int
) -> tuple[Tensor, Tensor]:
    """Token ids (n, length) with room for `soft_tokens` where each prompt names the concept, right
    after the start where it does not; and the places (n,) at which the room begins.

    Raises:
        ResurgeError: a prompt with that many soft tokens is longer than the text encoder reads.
    """
    tokenizer, length = pipe.tokenizer, pipe.tokenizer.model_max_length
    empty = tokenizer("", padding="max_length", max_length=length).input_ids
    rows, places = [], []
    for prompt in prompts:
        before, named, after = prompt.partition(concept)
        parts = [before, after] if named else ["", prompt]
        first, last = (tokenizer(part).input_ids[1:-1] for part in parts)
        ids = [empty[0], *first, *[empty[1]] * soft_tokens, *last, tokenizer.eos_token_id]
        if len(ids) > length:
            raise ResurgeError(
                f"{prompt!r} with {soft_tokens} learned tokens in the place of {concept!r} needs "
                f"{len(ids)} tokens but the text encoder reads {length}; lower `tokens`"
            )
        rows.append([*ids, *[empty[-1]] * (length - len(ids))])
        places.append(1 + len(first))
    return torch.tensor(rows, device=pipe.device), torch.tensor(places, device=pipe.device)


def encode(
    pipe: Pipeline, ids: Tensor, soft: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """Text embeddings (n, tokens, width) of `ids` (n, tokens), with gradients.

    `soft` (n, k, width) takes the place of the token embeddings right after the start token; with
    `places` (n,) of those that begin there, or with `places` (n, k) of those that stand there.
    """
    if soft is None:
        return pipe.text_encoder(ids)[0]
    layer = pipe.text_encoder.get_input_embeddings()
    count = soft.shape[1]

    def replace(module: nn.Module, args: object, output: Tensor) -> Tensor:
        put = soft.to(output.dtype)
        if places is None:
            return torch.cat([output[:, :1], put, output[:, 1 + count :]], dim=1)
        where = places
        if places.dim() == 1:
            where = places[:, None] + torch.arange(count, device=places.device)
        return output.scatter(1, where[..., None].expand_as(put), put)

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


def new_word(
    pipe: Pipeline, count: int, soft_tokens: int, seed: int, step: int, stream: str
) -> Tensor:
    """Embeddings (count, soft_tokens, width) of random entries of the vocabulary."""
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    drawn = integers(len(table), count * soft_tokens, seed, step, stream, table.device)
    return table[drawn].view(count, soft_tokens, -1)


def nearest_tokens(pipe: Pipeline, soft: Tensor) -> Tensor:
    """Ids (n, k) of the words whose embeddings have the largest cosine to `soft` (n, k, width)."""
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    near = functional.normalize(soft, dim=-1) @ functional.normalize(table, dim=-1).T
    near[..., pipe.tokenizer.all_special_ids] = -torch.inf
    return near.argmax(dim=-1)


Attack = Literal["adam", "sign", "fast", "accumulated", "accumulated_sign"]


def attack(
    loss: SoftLoss,
    start: Tensor,
    steps: int,
    learning_rate: float,
    kind: Attack,
) -> Tensor:
    """Soft embeddings that make `loss` small: `steps` of Adam, or of signed gradients.

    `fast` is one signed step of size `learning_rate` (FGSM, Goodfellow et al. 2015) for all steps
    at once. The `accumulated` ones are AdvUnlearn's released code. Only the embeddings get
    gradients.
    """
    soft = nn.Parameter(start.clone())
    if kind == "fast":
        return _signed(soft, loss, 0, learning_rate)
    if kind == "sign":
        for step in range(steps):
            soft = nn.Parameter(_signed(soft, loss, step, learning_rate))
        return soft.detach()
    if kind != "adam":
        return _accumulated(soft, loss, steps, learning_rate, is_signed=kind == "accumulated_sign")
    optimizer = torch.optim.Adam([soft], lr=learning_rate)
    for step in range(steps):
        (soft.grad,) = torch.autograd.grad(loss(soft, step), [soft])
        optimizer.step()
    return soft.detach()


def _accumulated(
    soft: nn.Parameter, loss: SoftLoss, steps: int, learning_rate: float, is_signed: bool
) -> Tensor:
    """Adam on gradients that are never reset: each step sees the sum of all so far.

    With `is_signed` the sum is replaced by its sign, to which the next gradient is added. What is
    returned is what stood before the last update.
    """
    optimizer, found = torch.optim.Adam([soft], lr=learning_rate), soft.detach().clone()
    soft.grad = torch.zeros_like(soft)
    for step in range(steps):
        soft.grad += torch.autograd.grad(loss(soft, step), [soft])[0]
        if is_signed:
            soft.grad.sign_()
        found = soft.detach().clone()
        optimizer.step()
    return found


def _signed(soft: Tensor, loss: SoftLoss, step: int, size: float) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(soft, step), [soft])
    return (soft - size * gradient.sign()).detach()
