"""How far a prompt opens an edit that is about a concept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.diffusion.denoise import at_least_fp32, drawn_text
from workers.diffusion.rng import normal
from workers.diffusion.text import end_index

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from workers.interfaces.pipeline import Pipeline

FINGERPRINT_WIDTH = 64


class PromptGates:
    """SPM's gate of every prompt that the text encoder has seen ("Facilitated Transport").

    γ(p) = max(cos(E(p), E(c)), |T(p) ∩ T(c)| / |T(c)|): E all of the text encoder's output,
    flattened over the tokens, padding included; T the set of a text's word tokens. A prompt is
    recognised in the UNet by a fingerprint of its embedding, on the device.
    """

    def __init__(self, pipe: Pipeline, concept: str) -> None:
        self._end = pipe.tokenizer.eos_token_id
        self._start = pipe.tokenizer.bos_token_id
        self._text_encoder = pipe.text_encoder
        length = pipe.tokenizer.model_max_length
        encoded = pipe.tokenizer(concept, padding="max_length", truncation=True, max_length=length)
        self._ids = torch.tensor([encoded.input_ids], device=pipe.device)
        self._words = self._words_of(encoded.input_ids)
        shape = (length * pipe.text_encoder.config.hidden_size, FINGERPRINT_WIDTH)
        self._projection = normal(shape, 0, 0, "fingerprint", pipe.device) / math.sqrt(shape[0])
        self._prints: dict[tuple[int, ...], Tensor] = {}
        self._overlaps: dict[tuple[int, ...], float] = {}
        self._known: tuple[Tensor, Tensor] | None = None
        self._wanted: Tensor | None = None
        self.now = torch.ones(1, device=pipe.device)
        """The gates (n,) of the UNet's pass that is under way."""

    def watch(self, pipe: Pipeline) -> list[RemovableHandle]:
        """Hooks that note what is encoded, and find the gates of each pass of the UNet.

        They are functions: a copy of a network has them too, and tells these same gates.
        """

        def encoded(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            self.note(args[0], output[0])

        def asked(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            self.look_up(kwargs["encoder_hidden_states"] if len(args) < 3 else args[2])

        return [
            pipe.text_encoder.register_forward_hook(encoded),
            pipe.unet.register_forward_pre_hook(asked, with_kwargs=True),
        ]

    def look_up(self, text: Tensor) -> None:
        """Find the gates of a pass with `text` (n, tokens, width): those of the pictures' prompts
        where guidance draws some, since a picture has one gate in both halves.
        """
        drawn = drawn_text()
        gates = self.gates(text if drawn is None else drawn)
        self.now = gates.repeat(len(text) // len(gates))

    def note(self, ids: Tensor, states: Tensor) -> None:
        """Remember prompts: token ids (n, tokens), and embeddings (n, tokens, width) of them."""
        for row, print_ in zip(ids.tolist(), self._print(states.detach()), strict=True):
            self._prints[tuple(row)] = print_  # the newest: the encoder may be in training
            shared = self._words_of(row) & self._words
            self._overlaps[tuple(row)] = len(shared) / max(1, len(self._words))
        self._known = None

    @torch.no_grad()
    def gates(self, text: Tensor) -> Tensor:
        """The gates (n,) of embeddings (n, tokens, width); 1 for text that was never encoded."""
        if not self._prints:
            return torch.ones(len(text), device=text.device)
        near = functional.cosine_similarity(_flat(text), self._concept(), dim=1)
        prints, overlaps = self._table()
        distances, place = torch.cdist(self._print(text), prints).min(dim=1)
        is_known = distances < 1e-2 * prints[place].norm(dim=1)
        return torch.where(is_known, near.maximum(overlaps[place]), torch.ones_like(near))

    def _concept(self) -> Tensor:
        """E(c), (1, tokens · width), by the text encoder as it is when a gate is first asked for:
        edits that are made after this one may have changed it.
        """
        if self._wanted is None:
            with torch.autocast(self._ids.device.type, enabled=False):
                self._wanted = _flat(self._text_encoder(self._ids)[0])
        return self._wanted

    def _table(self) -> tuple[Tensor, Tensor]:
        """All fingerprints (prompts, width) and overlaps (prompts,)."""
        if self._known is None:
            prints = torch.stack(list(self._prints.values()))
            overlaps = torch.tensor(list(self._overlaps.values()), device=prints.device)
            self._known = prints, overlaps
        return self._known

    def _print(self, text: Tensor) -> Tensor:
        return _flat(text).to(self._projection.dtype) @ self._projection

    def _words_of(self, ids: Sequence[int]) -> set[int]:
        return set(ids[: end_index(ids, self._end)]) - {self._start}


def _flat(text: Tensor) -> Tensor:
    return at_least_fp32(text.flatten(1))
