"""Rows that stand in the sweep file."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, model_validator

from orchestrator.core.artifacts import ASKS_ERASED, Probe, Role
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.interfaces.evaluation import Evaluation, fitting

PLACE = "{concept}"


class Row(Settings):
    """A prompt, and why it is asked."""

    role: Role = Field(description="erased, synonym, related, other, retained or never_known")
    prompt: str = Field(min_length=1, description="what is asked; {concept} is the row's concept")
    concept: str | None = Field(
        None,
        min_length=1,
        description="what the picture should show; null: each concept that is erased",
    )
    noise_seed: int | None = Field(
        None, ge=0, description="of this row alone; null: evaluate.noise_seed"
    )

    @model_validator(mode="after")
    def _says_of_what(self) -> Row:
        if self.concept is None and self.role not in ASKS_ERASED:
            raise ValueError(f"a row of the role {self.role!r} needs its concept")
        return self


class InlineSettings(Settings):
    """The rows."""

    rows: tuple[Row, ...] = Field(min_length=1, description="role, prompt, concept, noise_seed")

    @model_validator(mode="after")
    def _each_stands_once(self) -> InlineSettings:
        seen: set[tuple[object, ...]] = set()
        for row in self.rows:
            if (key := (row.role, row.concept, row.prompt, row.noise_seed)) in seen:
                raise ValueError(f"the row {row.prompt!r} ({row.role}) stands there twice")
            seen.add(key)
        return self


class Inline(Evaluation):
    """Rows in the sweep file: `{inline: {rows: [{role: synonym, prompt: "…"}]}}`.

    A row without a concept is of each concept that is erased, and `{concept}` in its prompt is that
    one. A row of the role erased or synonym is asked where its concept is erased, any other where
    it is not.
    """

    name = "inline"
    version = 1
    Settings = InlineSettings
    settings: InlineSettings

    def probes(self, base: BasePlugin, erased: tuple[str, ...]) -> list[Probe]:
        """In the file's order; a row without a concept for one erased concept after another."""
        return list(fitting(self._rows(erased), base, erased))

    def _rows(self, erased: tuple[str, ...]) -> Iterator[Probe]:
        for row in self.settings.rows:
            for concept in erased if row.concept is None else (row.concept,):
                prompt = row.prompt.replace(PLACE, concept)
                yield Probe(row.role, concept, prompt, row.noise_seed)
