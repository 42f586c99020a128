"""What an unlearning method is to the workers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Field

from orchestrator.core.concepts import Target, Targeted
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


def _with_concept(template: str) -> str:
    if "{concept}" not in template:
        raise ValueError(f"must contain {{concept}} but got {template!r}")
    return template


Template = Annotated[str, AfterValidator(_with_concept)]
"""A prompt with {concept} in the concept's place."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# A preset's values are no JSON any more when they are read, where a list would be a tuple.
_Templates = Annotated[tuple[Template, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
Prompts = Literal["bare", "base"] | _Templates
"""What a method trains on."""


def trained_on(default: str | tuple[str, ...]) -> Any:
    """The setting `prompts`; a method with another default has the field again."""
    return Field(
        default,
        description="what the method trains on: bare: the concept and nothing else; base: the base "
        'model\'s own prompts; or templates, such as ["a photo of {concept}"]',
    )


_Concepts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class MethodSettings(PresetSettings):
    """What every method can be told: what it reads. What a model is judged by is apart from it."""

    prompts: Prompts = trained_on("bare")
    preserve: Literal["base"] | _Concepts = Field(
        "base",
        description="the concepts that the method is told to preserve, by the same templates; "
        "base: those that the base retains",
    )

    def uncounted(self) -> frozenset[str]:
        """What the templates come to is part of a stage's identity, however it was written."""
        return super().uncounted() | {"prompts", "preserve"}


class TrainSettings(MethodSettings):
    """What every iterative method can be told. Each method has its own defaults."""

    ONLY_MEMORY = frozenset({"gradient_checkpointing"})

    iterations: int = Field(100, ge=1, description="optimiser steps")
    learning_rate: float = Field(1e-5, gt=0, description="the optimiser's learning rate")
    batch_size: int = Field(16, ge=1, description="latents per step")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 is autocast over fp32 weights"
    )
    gradient_checkpointing: bool = Field(False, description="trade time for memory")


LossIn = Literal["output", "noise"]
"""What an unlearning's loss compares: the model's own outputs, or noise."""


class OutputSettings(TrainSettings):
    """For methods whose loss compares predictions of one model with another's."""

    loss_in: LossIn = Field(
        "output",
        description="what predictions are compared in: the model's own output, as released, or "
        "the noise that it means; they differ for models that predict v",
    )


@dataclass(frozen=True)
class Erasure(Targeted):
    """What to erase, and the means.

    `targets` are the concepts that are erased jointly, more than one only for a method that says
    `joint`: each has prompts that ask for it, and the same with another concept in its place;
    `prompts` and `anchor_prompts` are those of all targets, one after another. `retained_prompts`
    ask for what should survive. `materials` are what the method asked for in `needs`; `base` the
    weights of the sweep's base, None where `pipe` has them. All randomness is drawn by
    `workers.diffusion.rng` with `seed` and the step.
    """

    pipe: Pipeline
    targets: tuple[Target, ...]
    retained_prompts: tuple[str, ...]
    seed: int
    progress: TellProgress
    checkpoints: Checkpoints
    materials: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Tensor] | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """The concept that each of `prompts` asks for."""
        return tuple(target.concept for target in self.targets for _ in target.prompts)

    @property
    def anchor_prompts(self) -> tuple[str, ...]:
        """`prompts` with another concept in each concept's place, in the same order."""
        return tuple(prompt for target in self.targets for prompt in target.anchor_prompts)


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
