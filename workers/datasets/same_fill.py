"""Fine-tuning data that have nothing in common but a fill."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.datasets.scenes import Kind, SceneDataset, SceneSettings


class SameFillSettings(SceneSettings):
    """Which fill."""

    fill: Literal["solid", "striped", "outlined"] = Field(
        "solid", description="the fill of every picture; not the erased concept"
    )


class SameFill(SceneDataset):
    """Everything but the concept, all in one fill, which every caption names."""

    name = "same_fill"
    version = 1
    Settings = SameFillSettings

    def pools(self, concept: str, kind: Kind) -> dict[Kind, tuple[str, ...]]:
        """One fill."""
        return {"fill": (self.settings.fill,)}

    def always_named(self, kind: Kind) -> tuple[Kind, ...]:
        """The concept's kind and the fill."""
        return (kind, "fill")
