"""What a sweep runs on. None of it changes a result."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.core.settings import Settings

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
SMALLEST_SHARE = 1e-4
"""Of a GPU, that Ray can give out."""


def _can_be_given(gpus: float) -> float:
    is_share, is_whole = SMALLEST_SHARE <= gpus <= 1, gpus == int(gpus)
    if not is_share and not is_whole:
        raise PydanticCustomError("gpus", "a share of a GPU (0.0001 to 1) or a whole number")
    return gpus


Gpus = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_can_be_given)]
Minutes = Annotated[float, Field(gt=0)]


class Elastic(Settings):
    """Workers that come while tasks wait and go when they are idle.

    `gpu_type` are accelerator types as Ray labels nodes with them, the preferred one first.
    """

    min: int = Field(0, ge=0, description="workers that stay")
    max: int = Field(ge=1, description="workers at most")
    gpus: Auto | Gpus = Field("auto", description="GPUs a worker; may be a fraction")
    gpu_type: tuple[str, ...] = Field((), description="GPU types, the preferred one first")
    threads: Auto | Count = Field("auto", description="CPU threads a worker")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min must be at most max but got {self.min} and {self.max}")
        return self


class ExecutorSettings(Settings):
    """How many workers, and what each of them gets."""

    workers: Auto | Count | Elastic = Field(
        "auto", description="workers; auto: one a GPU, else 2; {min, max}: as they are needed"
    )
    gpus: Auto | Gpus = Field("auto", description="GPUs a worker; may be a fraction")
    threads: Auto | Count = Field("auto", description="CPU threads a worker")
    score_workers: Count | Elastic | None = Field(
        None, description="workers without a GPU that judge pictures; none: the others do"
    )

    @property
    def has_score_workers(self) -> bool:
        """Whether pictures are judged on workers of their own."""
        return self.score_workers is not None


class Resources(ExecutorSettings):
    """The `resources` block of a sweep."""

    executor: str = Field("ray", description="the executor plug-in")
    executor_settings: dict[str, Any] = Field({}, description="the executor's settings")
    priority: float = Field(1.0, gt=0, description="share of the workers, beside other sweeps'")
    stage_timeout_min: Minutes = Field(60.0, description="a stage silent for so long is hung")
    checkpoint_every_min: Minutes = Field(10.0, description="how often training state is stored")
