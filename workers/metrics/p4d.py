"""P4D: a prompt under which the unlearned model predicts the noise that the base would predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from workers.interfaces.metric import Subject
from workers.judging.attack import Attack, AttackSettings, targets_of_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


class P4DSettings(AttackSettings):
    """The attack's budget. Published: 3000 iterations, learning rate 0.1, 16 tokens (P4D-N)."""

    iterations: int = Field(100, ge=1, description="optimiser steps of the search")
    learning_rate: float = Field(0.1, gt=0, description="AdamW's learning rate")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay")
    tokens: int = Field(8, ge=1, description="length of the prompts that are looked for")
    targets: int = Field(16, ge=1, description="noised latents whose noise the base is asked for")


@dataclass(frozen=True)
class _Wanted:
    """x_t (k, c, h, w), their time steps (k,) and the base's noise of them, for one prompt."""

    noisy: Tensor
    times: Tensor
    noise: Tensor


class P4D(Attack):
    """Look for words of the vocabulary under which the model predicts what the base predicts.

    Prompting4Debugging (Chin et al., ICML 2024), P4D-N: min over prompts P of N tokens of
    ‖ε_θ(x_t, P) - ε_base(x_t, c)‖², c the concept's prompt, by gradients taken at the nearest words
    and applied to free embeddings (Wen et al., Hard Prompts Made Easy, 2023). The x_t are the
    base's own pictures of c, noised. Theirs are drawn afresh at every step; here the base answers
    for `targets` of them beforehand, since only one of the models need be in memory.
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
            found.append(_Wanted(noisy, times, noise))
        return found

    def _prompt(self, pipe: Pipeline, wanted: _Wanted, row: int) -> Tensor:
        """The best of the prompts that were passed by, as embeddings (1, tokens, width)."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.rng import integers
        from workers.diffusion.soft_prompt import encode, nearest_tokens, new_word, token_ids

        s, predict = self.settings, noise_predictor(pipe)
        table = pipe.text_encoder.get_input_embeddings().weight.detach()
        ids = token_ids(pipe, [""], s.tokens)
        free = torch.nn.Parameter(new_word(pipe, 1, s.tokens, s.seed, row, "p4d words"))
        optimizer = torch.optim.AdamW([free], lr=s.learning_rate, weight_decay=s.weight_decay)
        best, least = ids, float("inf")
        for step in range(s.iterations):
            words = nearest_tokens(pipe, free.detach())
            hard = table[words].requires_grad_(True)
            pick = integers(len(wanted.noisy), 1, s.seed, step, f"pick {row}", ids.device)
            text = encode(pipe, ids, hard)
            noise = predict(wanted.noisy[pick], wanted.times[pick], text)
            loss = functional.mse_loss(noise, wanted.noise[pick])
            (free.grad,) = torch.autograd.grad(loss, [hard])
            optimizer.step()
            if step % max(1, s.iterations // CHECKS) == 0 or step == s.iterations - 1:
                error = self._error(pipe, ids, words, wanted)
                if error < least:
                    least, best = error, _typed(ids, words)
        with torch.no_grad():
            return encode(pipe, best)

    def _error(self, pipe: Pipeline, ids: Tensor, words: Tensor, wanted: _Wanted) -> float:
        """The loss of a prompt over all targets."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor
        from workers.diffusion.soft_prompt import encode

        with torch.no_grad():
            text = encode(pipe, _typed(ids, words)).expand(len(wanted.noisy), -1, -1)
            noise = noise_predictor(pipe)(wanted.noisy, wanted.times, text)
            return float(functional.mse_loss(noise, wanted.noise))


CHECKS = 10
"""How often a prompt is compared over all targets on the way."""


def _typed(ids: Tensor, words: Tensor) -> Tensor:
    """Ids (1, length) with the words (1, k) after the start token."""
    found = ids.clone()
    found[:, 1 : 1 + words.shape[1]] = words
    return found
