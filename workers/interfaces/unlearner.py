"""What an unlearning method is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from orchestrator.core.plugin import UnlearnerPlugin
from orchestrator.core.settings import PresetSettings
from workers.runtime.progress import TellProgress

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.edit import ModelEdit
    from workers.interfaces.pipeline import Pipeline


class Checkpoints(Protocol):
    """Where an unlearning's phases keep their state; a phase is one optimisation, by name."""

    def load(self, phase: str) -> tuple[int, dict[str, Tensor]] | None:
        """The last state of a phase and the steps behind it; None if there is none."""

    def is_due(self) -> bool:
        """Whether it is time to save."""

    def save(self, phase: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a phase's state, in place of an earlier one; then leave, if that was asked for."""


class TrainSettings(PresetSettings):
    """What every iterative method can be told. Each method has its own defaults."""

    ONLY_MEMORY = frozenset({"gradient_checkpointing"})

    iterations: int = Field(100, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-5, gt=0, description="the optimiser's learning rate")
    batch_size: int = Field(16, ge=1, description="latents per step")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 is autocast over fp32 weights"
    )
    gradient_checkpointing: bool = Field(False, description="trade time for memory")


@dataclass(frozen=True)
class Erasure:
    """What to erase, and the means.

    `prompts` ask for the concept, `retained_prompts` for what should survive, `anchor_prompts` are
    `prompts` with another concept in its place, in the same order. `materials` are what the method
    asked for in `needs`. All randomness is drawn by `workers.diffusion.rng` with `seed` and the
    step.
    """

    pipe: Pipeline
    concept: str
    prompts: tuple[str, ...]
    retained_prompts: tuple[str, ...]
    anchor_prompts: tuple[str, ...]
    seed: int
    progress: TellProgress
    checkpoints: Checkpoints
    materials: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unlearned:
    """What a method changed, as edits in order, and numbers worth keeping (the last loss)."""

    edits: Sequence[ModelEdit]
    numbers: Mapping[str, float] = field(default_factory=dict)


class Unlearner(UnlearnerPlugin):
    """A method that makes a pipeline no longer draw a concept.

    The instance is made for one erasure and is not shared between threads. It owns the pipeline
    while `unlearn` runs and may leave it in any state: what counts is the edits that it returns,
    which the caller then makes to the pipeline as it was before.
    """

    @abstractmethod
    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Work out the edits that erase the concept.

        Raises:
            ResurgeError: the settings do not fit this model.
            FloatingPointError: the loss is not finite.
        """
