"""Ring-A-Bell: prompts found in the text encoder alone, without looking at the unlearned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from workers.interfaces.metric import Subject
from workers.judging.attack import Attack, AttackSettings

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


class RingABellSettings(AttackSettings):
    """The search's budget. Published: 16 tokens, strength 3, 200 candidates, 3000 generations."""

    tokens: int = Field(8, ge=1, description="length of the prompts that are looked for")
    strength: float = Field(3.0, ge=0, description="η: how much of the concept is added")
    candidates: int = Field(64, ge=4, description="prompts in a generation")
    generations: int = Field(60, ge=1, description="generations of the genetic search")
    mutation: float = Field(0.1, ge=0, le=1, description="chance that a token is replaced")


class RingABell(Attack):
    """A genetic search for tokens whose embedding is a harmless prompt's plus the concept.

    Ring-A-Bell (Tsai et al., ICLR 2024): ĉ = mean of E(with the concept) - E(without it) over
    pairs of prompts; then the tokens that minimise ‖E(tokens) - (E(P) + η ĉ)‖² for every harmless
    prompt P. The pairs are the concept's prompts and the same without its words. Nothing of the
    UNet is used, so an edit that leaves the text encoder alone faces the same prompts before and
    after.
    """

    name = "ring_a_bell"
    version = 2
    Settings = RingABellSettings
    settings: RingABellSettings

    def find(self, pipe: Pipeline, subject: Subject, prompts: Sequence[str]) -> Tensor:
        """One search a prompt."""
        import torch

        from workers.diffusion.text import embed

        whole = embed(pipe, subject.prompts)
        without = embed(pipe, [without_words(p, subject.concept) for p in subject.prompts])
        concept = (whole - without).mean(dim=0)
        targets = without[: len(prompts)] + self.settings.strength * concept
        found = []
        for row, target in enumerate(targets):
            found.append(self._search(pipe, target, row))
            subject.progress(row + 1, len(targets), {})
        return torch.cat(found)

    def _search(self, pipe: Pipeline, target: Tensor, row: int) -> Tensor:
        """The best prompt's embedding (1, tokens, width)."""
        import torch

        from workers.diffusion.soft_prompt import encode

        s, length = self.settings, pipe.tokenizer.model_max_length
        empty = pipe.tokenizer("", padding="max_length", max_length=length).input_ids
        population = torch.tensor([empty] * s.candidates, device=pipe.device)
        population[:, 1 + s.tokens :] = population[:, 1 : length - s.tokens]
        words = self._words(pipe, (s.candidates, s.tokens), row, "first")
        population[:, 1 : 1 + s.tokens] = words
        with torch.no_grad():
            for generation in range(s.generations):
                order = (encode(pipe, population) - target).square().mean(dim=(1, 2)).argsort()
                elite = population[order[: len(population) // 2]]
                population = torch.cat([elite, self._children(pipe, elite, row, generation)])
            errors = (encode(pipe, population) - target).square().mean(dim=(1, 2))
            return encode(pipe, population[errors.argmin()][None])

    def _children(self, pipe: Pipeline, elite: Tensor, row: int, generation: int) -> Tensor:
        """As many as there are parents: one cut between two of them, then mutations."""
        import torch

        from workers.diffusion.rng import generator

        s, n = self.settings, len(elite)
        draw = generator(s.seed, generation, f"children {row}")
        mothers, fathers = (torch.randint(n, (n,), generator=draw) for _ in range(2))
        cut = torch.randint(1, s.tokens + 1, (n, 1), generator=draw)
        mutates = torch.rand(n, s.tokens, generator=draw) < s.mutation
        from_mother = torch.arange(s.tokens)[None] < cut
        place = slice(1, 1 + s.tokens)
        words = elite[:, place].cpu()
        mixed = torch.where(from_mother, words[mothers], words[fathers])
        fresh = self._words(pipe, mixed.shape, row, f"mutations {generation}").cpu()
        children = elite.clone()
        children[:, place] = torch.where(mutates, fresh, mixed).to(children.device)
        return children

    def _words(self, pipe: Pipeline, shape: Sequence[int], row: int, stream: str) -> Tensor:
        """Random ids of words, no special tokens."""
        import torch

        from workers.diffusion.rng import generator

        special = set(pipe.tokenizer.all_special_ids)
        words = torch.tensor([i for i in range(len(pipe.tokenizer)) if i not in special])
        draw = generator(self.settings.seed, row, f"words {stream}")
        return words[torch.randint(len(words), tuple(shape), generator=draw)].to(pipe.device)


def without_words(prompt: str, concept: str) -> str:
    """The prompt without the concept's words."""
    return " ".join(prompt.replace(concept, " ").split())
