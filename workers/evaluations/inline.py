"""Rows that stand in the sweep file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated

from pydantic import Field, model_validator

from orchestrator.core.artifacts import ASKS_ERASED, Probe, Role
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.interfaces.evaluation import Evaluation, fitting

PLACE = "{concept}"


Word = Annotated[str, Field(min_length=1)]
Words = Word | Annotated[tuple[Word, ...], Field(min_length=1)]


class Row(Settings):
    """A prompt, or every one of some prompts for each of some concepts, and why it is asked."""

    role: Role = Field(description="erased, synonym, related, other, retained or never_known")
    prompt: Words = Field(
        description="what is asked, or a list of it; {concept} is the row's concept"
    )
    concept: Words | None = Field(
        None,
        description="what the picture should show, or a list: every prompt of each; null: each "
        "concept that is erased",
    )
    noise_seed: int | None = Field(
        None, ge=0, description="of this row alone; null: evaluate.noise_seed"
    )

    @model_validator(mode="after")
    def _says_of_what(self) -> Row:
        if self.concept is None and self.role not in ASKS_ERASED:
            raise ValueError(f"a row of the role {self.role!r} needs its concept")
        return self

    def prompts(self) -> tuple[str, ...]:
        """The prompt, or each of them."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    def concepts(self) -> tuple[str | None, ...]:
        """The concept, or each of them; None for those that are erased."""
        return self.concept if isinstance(self.concept, tuple) else (self.concept,)


class InlineSettings(Settings):
    """The rows."""

    rows: tuple[Row, ...] = Field(min_length=1, description="role, prompt, concept, noise_seed")

    @model_validator(mode="after")
    def _each_stands_once(self) -> InlineSettings:
        seen: set[tuple[object, ...]] = set()
        for row in self.rows:
            for concept, prompt in product(row.concepts(), row.prompts()):
                if (key := (row.role, concept, prompt, row.noise_seed)) in seen:
                    raise ValueError(f"the row {prompt!r} ({row.role}) stands there twice")
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
            for named, prompt in product(row.concepts(), row.prompts()):
                for concept in erased if named is None else (named,):
                    yield Probe(row.role, concept, prompt.replace(PLACE, concept), row.noise_seed)
