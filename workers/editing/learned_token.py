"""A word of its own beside a model's vocabulary, as textual inversion learns one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator.core.errors import ResurgeError
from workers.editing.edits import snapshot
from workers.interfaces.edit import ModelEdit, Undo

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


class LearnedToken(ModelEdit):
    """A token that the tokenizer does not have, and its embedding (width,) (Gal et al., ICLR 2023).

    No weight is changed and no table grows: the tokenizer is a copy with one token more, and where
    its number stands in a prompt a hook puts `value` in the place of an entry of the table.
    """

    kind = "learned_token"

    def __init__(self, token: str, value: Tensor) -> None:
        self.token, self.value = token, value

    @classmethod
    def beginning(cls, pipe: Pipeline, token: str, initializer: str) -> LearnedToken:
        """The token with the embedding of a word that the model knows.

        Raises:
            ResurgeError: what it begins as is not one token.
        """
        ids = pipe.tokenizer(initializer).input_ids[1:-1]
        if len(ids) != 1:
            read = " ".join(pipe.tokenizer.decode([number]).strip() for number in ids)
            raise ResurgeError(
                f"{token} begins as {initializer!r}, which the model reads as {len(ids)} tokens "
                f"({read}); choose an initializer that is one"
            )
        layer = pipe.text_encoder.get_input_embeddings()
        with torch.no_grad():
            return cls(token, layer(torch.tensor(ids, device=pipe.device))[0].clone())

    def apply(self, pipe: Pipeline) -> Undo:
        before, layer = pipe.tokenizer, pipe.text_encoder.get_input_embeddings()
        if self.value.shape != layer.weight.shape[1:]:
            raise ResurgeError(
                f"the embedding of {self.token} has {len(self.value)} numbers but the model's have "
                f"{layer.weight.shape[1]}; was it learned with another base?"
            )
        if knows(pipe, self.token):
            raise ResurgeError(f"the model knows {self.token} already; choose another token")
        self.value = self.value.to(layer.weight.device)  # the same tensor where it is there already
        tokenizer = copy.deepcopy(before)
        tokenizer.add_tokens([self.token])
        own = tokenizer.convert_tokens_to_ids(self.token)
        places = torch.empty(0, dtype=torch.bool)

        def instead(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            nonlocal places
            places = args[0] == own
            return (args[0].masked_fill(places, 0),)

        def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return torch.where(places[..., None], self.value.to(output.dtype), output)

        handles = [layer.register_forward_pre_hook(instead), layer.register_forward_hook(put)]
        pipe.tokenizer = tokenizer

        def undo() -> None:
            pipe.tokenizer = before
            for handle in handles:
                handle.remove()

        return undo

    def kept(self) -> LearnedToken:
        """As it is now: training does not reach it."""
        return LearnedToken(self.token, snapshot(self.value))

    def tensors(self) -> dict[str, Tensor]:
        return {"embedding": self.value}

    def config(self) -> dict[str, Any]:
        return {"token": self.token}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> LearnedToken:
        return cls(str(config["token"]), tensors["embedding"])


def knows(pipe: Pipeline, token: str) -> bool:
    """Whether a token is one of the tokenizer's own, or was learned."""
    return token in pipe.tokenizer.get_vocab()


@contextmanager
def reading(pipe: Pipeline, tokens: Mapping[str, str]) -> Iterator[None]:
    """Inside, a token that the model has not learned is read as the word beside it.

    So all models of a trial are asked the same, from the same noise: before textual inversion what
    the token begins as.
    """
    missing = {token: word for token, word in tokens.items() if not knows(pipe, token)}
    undo = [LearnedToken.beginning(pipe, *pair).apply(pipe) for pair in missing.items()]
    try:
        yield
    finally:
        for one in reversed(undo):
            one()
