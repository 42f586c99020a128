"""Prompts -> text embeddings, and where in a prompt its subject stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orchestrator.core.errors import ResurgeError
from workers.runtime.progress import tell

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline, Tokenizer


PROMPTS_PER_PASS = 64


@torch.no_grad()
def embed(pipe: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Text encoder's last hidden states (n, tokens, width), as the pipeline itself computes them.

    Each different prompt is encoded once. Not inference mode: training reads these tensors.
    """
    unique = list(dict.fromkeys(prompts))
    passes = []
    for start in range(0, len(unique), PROMPTS_PER_PASS):
        if start:
            tell(start, len(unique))
        some = unique[start : start + PROMPTS_PER_PASS]
        passes.append(pipe.encode_prompt(some, pipe.device, 1, False)[0])
    row = {prompt: index for index, prompt in enumerate(unique)}
    order = torch.tensor([row[prompt] for prompt in prompts], device=pipe.device)
    return torch.cat(passes)[order]


def token_ids(pipe: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Padded token ids (n, tokens), cut to what the model reads, as the pipeline makes them."""
    made = pipe.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return made.input_ids.to(pipe.device)


def refuse_cut(tokenizer: Tokenizer, prompts: Iterable[str]) -> None:
    """See that every prompt is read to its end.

    Captions of pictures that are trained on are not asked: they are cut, as everywhere.

    Raises:
        ResurgeError: a prompt is longer than what the model reads.
    """
    most = tokenizer.model_max_length
    for prompt in dict.fromkeys(prompts):
        ids = tokenizer(prompt).input_ids
        if len(ids) > most:
            lost = tokenizer.decode(ids[most - 1 : -1]).strip()
            raise ResurgeError(
                f"the prompt {prompt!r} has {len(ids)} tokens but the model reads {most}: "
                f"{lost!r} would be cut off; shorten it"
            )


def last_subject_index(tokenizer: Tokenizer, prompt: str, concept: str | None = None) -> int:
    """Position of the last token of `concept` in `prompt`, of the prompt's last word if absent.

    Counted from the attention mask: the start and the end token are the two that are no words, so
    the last word stands at `mask.sum() - 2`, and the empty prompt gives the start token. The
    pooler's position and the padding's token would not do, because Stable Diffusion 1 pads with
    the end token and Stable Diffusion 2 with "!".
    """
    ids, words = _tokens(tokenizer, prompt)
    if concept:
        wanted, count = _tokens(tokenizer, concept)
        for start in range(words - count, -1, -1):
            if count and ids[1 + start : 1 + start + count] == wanted[1 : 1 + count]:
                return start + count
    return words


def end_index(ids: Sequence[int], end: int) -> int:
    """Position of the end token: the first one, since Stable Diffusion 1 pads with it too."""
    return ids.index(end) if end in ids else len(ids) - 1


def subject_span(tokenizer: Tokenizer, prompt: str, concept: str) -> tuple[int, int]:
    """[first, last + 1) positions of `concept`'s tokens in `prompt`.

    If the prompt does not have the concept word for word, its last word stands for it.
    """
    last = last_subject_index(tokenizer, prompt, concept)
    ids, _ = _tokens(tokenizer, prompt)
    wanted, count = _tokens(tokenizer, concept)
    first = last + 1 - count
    is_there = count and first >= 1 and ids[first : last + 1] == wanted[1 : 1 + count]
    return (first, last + 1) if is_there else (last, last + 1)


def subject_words(pipe: Pipeline, prompts: Sequence[str], concepts: str | Sequence[str]) -> Tensor:
    """Which tokens of each prompt are the concept's: bool (n, tokens). `concepts` is the one that
    all prompts are of, or each prompt's own.
    """
    words = torch.zeros(len(prompts), pipe.tokenizer.model_max_length, dtype=torch.bool)
    own = [concepts] * len(prompts) if isinstance(concepts, str) else concepts
    for row, prompt, concept in zip(words, prompts, own, strict=True):
        first, last = subject_span(pipe.tokenizer, prompt, concept)
        row[first:last] = True
    return words.to(pipe.device)


def end_tokens(pipe: Pipeline, prompts: Sequence[str]) -> Tensor:
    """Which tokens of each prompt are the end token: bool (n, tokens).

    Stable Diffusion 1 pads with it, so that all the padding is; Stable Diffusion 2 does not.
    """
    ids = torch.tensor([_tokens(pipe.tokenizer, prompt)[0] for prompt in prompts])
    return (ids == pipe.tokenizer.eos_token_id).to(pipe.device)


def _tokens(tokenizer: Tokenizer, text: str) -> tuple[list[int], int]:
    """Padded token ids, and how many of them are words."""
    encoded = tokenizer(
        text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True
    )
    return list(encoded.input_ids), sum(encoded.attention_mask) - 2
