"""Fine-tuning data that have nothing in common but a fill."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.data.scenes import Attribute, SceneDataset, SceneSettings


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
    settings: SameFillSettings

    def pools(self, concepts: tuple[str, ...], kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """One fill."""
        return {"fill": (self.settings.fill,)}
