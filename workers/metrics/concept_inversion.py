"""Concept inversion: a word is learned that makes the model draw the erased concept again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from workers.interfaces.metric import Subject
from workers.judging.attack import Attack, AttackSettings, targets_of_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


class ConceptInversionSettings(AttackSettings):
    """The attack's budget. Published: 1000 steps, learning rate 5e-3, one token."""

    iterations: int = Field(200, ge=1, description="optimiser steps")
    learning_rate: float = Field(5e-3, gt=0, description="Adam's learning rate")
    tokens: int = Field(1, ge=1, description="length of the learned word")


class ConceptInversion(Attack):
    """Textual inversion of the erased concept out of the base's own pictures of it.

    Circumventing Concept Erasure (Pham et al., ICLR 2024), with Gal et al.'s textual inversion: one
    embedding v for all prompts, put where they name the concept, min over v of
    E ‖ε_θ(x_t, [prompt with v]) - ε‖². The attacker may choose embeddings: no word that can be
    typed. An embedding that is free enough draws things that a model never knew, so an unlearned
    model's success says little by itself: compare with the base's, and over fine-tuning.
    """

    name = "concept_inversion"
    version = 1
    reference = True
    Settings = ConceptInversionSettings
    settings: ConceptInversionSettings

    def find(self, pipe: Pipeline, subject: Subject, prompts: Sequence[str]) -> Tensor:
        """One word for all prompts."""
        import torch
        from torch.nn import functional

        from workers.diffusion.denoise import noise_predictor, noised, training_scheduler
        from workers.diffusion.rng import integers
        from workers.diffusion.soft_prompt import attack, encode, ids_with_room, new_word

        s = self.settings
        scheduler, predict = training_scheduler(pipe), noise_predictor(pipe)
        targets = targets_of_prompts(pipe, subject, prompts)
        ids, places = ids_with_room(pipe, prompts, subject.concept, s.tokens)

        def loss(word: Tensor, step: int) -> Tensor:
            subject.progress(step, s.iterations, {})
            picks = [
                t[integers(len(t), 1, s.seed, step, f"target {row}", t.device)]
                for row, t in enumerate(targets)
            ]
            noisy, noise, times = noised(scheduler, torch.cat(picks), s.seed, step, "inversion")
            text = encode(pipe, ids, word.expand(len(prompts), -1, -1), places)
            return functional.mse_loss(predict(noisy, times, text), noise)

        start = new_word(pipe, 1, s.tokens, s.seed, 0, "word")
        word = attack(loss, start, s.iterations, s.learning_rate, "adam")
        with torch.no_grad():
            return encode(pipe, ids, word.expand(len(prompts), -1, -1), places)
