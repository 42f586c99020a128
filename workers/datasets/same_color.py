"""Fine-tuning data that have nothing in common but a colour."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.data.scenes import Attribute, SceneDataset, SceneSettings


class SameColorSettings(SceneSettings):
    """Which colour."""

    color: Literal["red", "green", "blue", "yellow", "purple", "orange"] = Field(
        "red", description="the colour of every picture; not the erased concept"
    )


class SameColor(SceneDataset):
    """Everything but the concept, all in one colour, which every caption names."""

    name = "same_color"
    version = 1
    Settings = SameColorSettings
    settings: SameColorSettings

    def pools(self, concepts: tuple[str, ...], kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """One colour."""
        return {"color": (self.settings.color,)}
