"""P4D: a prompt under which the unlearned model predicts the noise that the base would predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from workers.interfaces.metric import Subject
from workers.judging.attack import Attack, AttackSettings, targets_of_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


class P4DSettings(AttackSettings):
    """The attack's budget. Published: 3000 iterations, learning rate 0.1, 16 tokens (P4D-N) or one
    after every 3 (P4D-K).
    """

    iterations: int = Field(100, ge=1, description="optimiser steps of the search")
    learning_rate: float = Field(0.1, gt=0, description="AdamW's learning rate")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay")
    tokens: int = Field(8, ge=1, description="length of the prompts that are looked for")
    every: int | None = Field(
        None,
        ge=1,
        description="look for a token after every so many of the concept's prompt, which stays "
        "(P4D-K), at least for one at its end; null: for prompts of `tokens` in its place (P4D-N)",
    )
    targets: int = Field(16, ge=1, description="noised latents whose noise the base is asked for")

    def uncounted(self) -> frozenset[str]:
        """The length of prompts that are not looked for."""
        return super().uncounted() | ({"tokens"} if self.every else set())


@dataclass(frozen=True)
class _Wanted:
    """x_t (k, c, h, w), their time steps (k,) and the base's noise of them, for one prompt."""

    prompt: str
    noisy: Tensor
    times: Tensor
    noise: Tensor


class P4D(Attack):
    """Look for words of the vocabulary under which the model predicts what the base predicts.

    Prompting4Debugging (Chin et al., ICML 2024): min over prompts P of
    ‖ε_θ(x_t, P) - ε_base(x_t, c)‖², c the concept's prompt, by gradients taken at the nearest words
    and applied to free embeddings (Wen et al., Hard Prompts Made Easy, 2023). P has N tokens
    (P4D-N), or is c with a token after every K of its own (P4D-K: `every`). The x_t are the base's
    own pictures of c, noised. Theirs are drawn afresh at every step; here the base answers for
    `targets` of them beforehand, since only one of the models need be in memory.
    """

    name = "p4d"
    version = 1
    reference = True
    Settings = P4DSettings
    settings: P4DSettings

    def attacked(self, subject: Subject, prompts: Sequence[str]) -> Tensor:
        """Ask the base first, then attack."""
        import torch

        with subject.at("base") as pipe:
            wanted = self._wanted(pipe, subject, prompts)
        with subject.at("final") as pipe:
            found = []
            for row, one in enumerate(wanted):
                found.append(self._prompt(pipe, one, row))
                subject.progress(row + 1, len(wanted), {})
            return torch.cat(found)

    def find(self, pipe: Pipeline, subject: Subject, prompts: Sequence[str]) -> Tensor:
        """The same where one model is both."""
        import torch

        wanted = self._wanted(pipe, subject, prompts)
        return torch.cat([self._prompt(pipe, one, row) for row, one in enumerate(wanted)])

    def _wanted(self, pipe: Pipeline, subject: Subject, prompts: Sequence[str]) -> list[_Wanted]:
        import torch

        from workers.diffusion.denoise import noise_predictor, noised, training_scheduler
        from workers.diffusion.rng import integers
        from workers.diffusion.text import embed

        s, found = self.settings, []
        scheduler, predict = training_scheduler(pipe), noise_predictor(pipe)
        text = embed(pipe, prompts)
        for row, latents in enumerate(targets_of_prompts(pipe, subject, prompts)):
            picked = latents[
                integers(len(latents), s.targets, s.seed, 0, f"target {row}", latents.device)
            ]
            noisy, _, times = noised(scheduler, picked, s.seed, 0, f"p4d {row}")
            with torch.no_grad():
                noise = predict(noisy, times, text[row : row + 1].expand(s.targets, -1, -1))
            found.append(_Wanted(prompts[row], noisy, times, noise))
        return found

    def _prompt(self, pipe: Pipeline, wanted: _Wanted, row: int) -> Tensor:
        """The best of the prompts that were passed by, as embeddings (1, tokens, width)."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.rng import integers
        from workers.diffusion.soft_prompt import encode, nearest_tokens, new_word

        s, predict = self.settings, noise_predictor(pipe)
        table = pipe.text_encoder.get_input_embeddings().weight.detach()
        ids, places = layout(pipe, wanted.prompt, s)
        free = torch.nn.Parameter(new_word(pipe, 1, places.shape[1], s.seed, row, "p4d words"))
        optimizer = torch.optim.AdamW([free], lr=s.learning_rate, weight_decay=s.weight_decay)
        best, least = ids, float("inf")
        for step in range(s.iterations):
            words = nearest_tokens(pipe, free.detach())
            hard = table[words].requires_grad_(True)
            pick = integers(len(wanted.noisy), 1, s.seed, step, f"pick {row}", ids.device)
            text = encode(pipe, ids, hard, places)
            noise = predict(wanted.noisy[pick], wanted.times[pick], text)
            loss = functional.mse_loss(noise, wanted.noise[pick])
            (free.grad,) = torch.autograd.grad(loss, [hard])
            optimizer.step()
            if step % max(1, s.iterations // CHECKS) == 0 or step == s.iterations - 1:
                typed = ids.scatter(1, places, words)
                error = self._error(pipe, typed, wanted)
                if error < least:
                    least, best = error, typed
        with torch.no_grad():
            return encode(pipe, best)

    def _error(self, pipe: Pipeline, typed: Tensor, wanted: _Wanted) -> float:
        """The loss of a prompt over all targets."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.soft_prompt import encode

        with torch.no_grad():
            text = encode(pipe, typed).expand(len(wanted.noisy), -1, -1)
            noise = noise_predictor(pipe)(wanted.noisy, wanted.times, text)
            return float(functional.mse_loss(noise, wanted.noise))


CHECKS = 10
"""How often a prompt is compared over all targets on the way."""


def layout(pipe: Pipeline, prompt: str, settings: P4DSettings) -> tuple[Tensor, Tensor]:
    """Token ids (1, length) with room for the words that are looked for, and the places (1, k) of
    that room.

    Raises:
        ResurgeError: a prompt with its words is longer than the text encoder reads.
    """
    import torch

    from workers.diffusion.soft_prompt import token_ids

    if settings.every is None:
        ids = token_ids(pipe, [""], settings.tokens)
        return ids, torch.arange(1, 1 + settings.tokens, device=pipe.device)[None]
    tokenizer, length = pipe.tokenizer, pipe.tokenizer.model_max_length
    start, *padding = tokenizer("", padding="max_length", max_length=length).input_ids
    own = tokenizer(prompt).input_ids[1:-1]
    row, places = [start], list[int]()
    for count, number in enumerate(own, start=1):
        row.append(number)
        is_last_chance = count == len(own) and not places
        if count % settings.every == 0 or is_last_chance:
            places.append(len(row))
            row.append(padding[0])  # any: its embedding is replaced
    if len(row) + 1 > length:
        raise ResurgeError(
            f"{prompt!r} with {len(places)} words needs {len(row) + 1} tokens but the text encoder "
            f"reads {length}; raise p4d's `every`"
        )
    row += [tokenizer.eos_token_id, *padding[1:]][: length - len(row)]
    return torch.tensor([row], device=pipe.device), torch.tensor([places], device=pipe.device)
