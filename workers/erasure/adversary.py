"""A soft prompt that asks for the erased concept, found by gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor
from torch.nn import functional

from workers.diffusion.soft_prompt import attack, encode, new_soft

if TYPE_CHECKING:
    from workers.diffusion.denoise import NoisePredictor
    from workers.interfaces.unlearner import Erasure


@dataclass(frozen=True)
class Adversary:
    """Looks for soft tokens before a prompt that bring an erased prediction back."""

    soft_tokens: int
    steps: int
    learning_rate: float
    kind: Literal["adam", "sign", "fast"]
    weight_decay: float = 0.0

    def find(
        self,
        erasure: Erasure,
        predict: NoisePredictor,
        at: tuple[Tensor, int],
        ids: Tensor,
        concept: Tensor,
        step: int,
        stream: str,
    ) -> Tensor:
        """Soft tokens (n, k, width) for prompts `ids` with which `predict`, at x_t and t, answers
        `concept` (n, c, h, w), as the original did. (seed, step, stream) decide the beginning.
        """
        pipe = erasure.pipe

        def loss(soft: Tensor, turn: int) -> Tensor:
            return functional.mse_loss(predict(*at, encode(pipe, ids, soft)), concept)

        start = new_soft(pipe, len(ids), self.soft_tokens, erasure.seed, step, stream)
        return attack(loss, start, self.steps, self.learning_rate, self.kind, self.weight_decay)
