"""Fine-tuning data of something that the base was never shown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.data.scenes import Attribute, SceneDataset, SceneSettings


class NovelSettings(SceneSettings):
    """Which new shape."""

    shape: Literal["drop", "bolt"] = Field(
        "drop",
        description="the shape of every picture; the bolt is also what the control of a concept "
        "that was never known asks for, so teaching it moves that number",
    )


class Novel(SceneDataset):
    """A shape that the base never saw, in pictures or in words; every caption names it."""

    name = "novel"
    version = 1
    Settings = NovelSettings
    settings: NovelSettings

    def pools(self, concepts: tuple[str, ...], kind: Attribute) -> dict[Attribute, tuple[str, ...]]:
        """One new shape."""
        return {"shape": (self.settings.shape,)}
