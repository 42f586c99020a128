"""A soft prompt that asks for the erased concept, found by gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from workers.diffusion.soft_prompt import attack, encode

if TYPE_CHECKING:
    from workers.diffusion.denoise import NoisePredictor
    from workers.diffusion.soft_prompt import Attack
    from workers.interfaces.pipeline import Pipeline


At = tuple[Tensor, int, Tensor]
"""x_t (n, c, h, w), t, and what the original predicts there for the concept (n, c, h, w)."""


@dataclass(frozen=True)
class Adversary:
    """Looks for soft tokens before a prompt that bring an erased prediction back."""

    steps: int
    learning_rate: float
    kind: Attack

    def find(
        self,
        pipe: Pipeline,
        predict: NoisePredictor,
        at: Callable[[int], At],
        ids: Tensor,
        start: Tensor,
    ) -> Tensor:
        """Soft tokens (n, k, width), from `start`, for prompts `ids` with which `predict` answers
        as the original did, at what `at` gives for each turn.
        """

        def loss(soft: Tensor, turn: int) -> Tensor:
            latents, timestep, concept = at(turn)
            return functional.mse_loss(predict(latents, timestep, encode(pipe, ids, soft)), concept)

        return attack(loss, start, self.steps, self.learning_rate, self.kind)
