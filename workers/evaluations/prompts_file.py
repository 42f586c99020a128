"""A table of prompts: CSV, JSON lines or Parquet, its columns named by the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from orchestrator.core.artifacts import Probe, Role
from orchestrator.core.errors import DataError, ResurgeError
from orchestrator.core.plugin import BasePlugin
from orchestrator.core.settings import Settings
from workers.data.files import PlaceText, digest_of_file, place
from workers.data.metadata import Entry, read_entries
from workers.interfaces.evaluation import Evaluation, fitting

TABLES = (".csv", ".jsonl", ".parquet")
MOST_ROWS = 20_000
"""Every row is drawn of every model; the largest sets of the field have some 5,000."""
MOST_SHOWN = 5


class PromptsFileSettings(Settings):
    """Where the table is, and which of its columns say what."""

    path: PlaceText = Field(description="a .csv, .jsonl or .parquet file, one row a prompt")
    prompt_column: str = Field("prompt", description="the prompts")
    seed_column: str | None = Field(
        None,
        description="each row's own noise seed, such as I2P's sd_seed; null: evaluate.noise_seed. "
        "The noise is Resurge's by that seed, not the pixels of another program's generator",
    )
    concept_column: str | None = Field(
        None, description="what each row's picture should show; null: the one concept erased"
    )
    role_column: str | None = Field(
        None, description="each row's role; null: `role`, or told by the concept"
    )
    roles: Mapping[str, Role] = Field(
        {}, description="what the role column's words mean, where they are not the roles' names"
    )
    role: Role | None = Field(
        None,
        description="the role of every row; null: erased where the row's concept is erased, "
        "else other",
    )
    where: Mapping[str, str] = Field(
        {},
        description="only rows that have this value in that column, alone or among others between "
        "commas: {categories: sexual}",
    )
    long_prompts: Literal["refuse", "cut"] = Field(
        "refuse",
        description="what to do with a prompt that the model does not read to its end: refuse it, "
        "or draw it as far as it is read, as the field does with I2P's",
    )

    @model_validator(mode="after")
    def _says_roles_once(self) -> PromptsFileSettings:
        if self.role is not None and self.role_column is not None:
            raise ValueError("role and role_column do not go together; give one of them")
        if self.roles and self.role_column is None:
            raise ValueError("roles says what role_column's words mean; name that column")
        if self.concept_column is None and (self.role or "erased") not in ("erased", "synonym"):
            raise ValueError(f"rows of the role {self.role!r} need a concept_column")
        return self

    def columns(self) -> list[str]:
        """Every column that is read."""
        named = (self.prompt_column, self.seed_column, self.concept_column, self.role_column)
        return list(dict.fromkeys([name for name in (*named, *self.where) if name is not None]))


class PromptsFile(Evaluation):
    """Rows of a table that you have: MACE's, I2P's, HUB's prompts, or your own.

    Columns are named by settings. Rows of the role erased or synonym are asked where their concept
    is erased, all others where it is not, so that one file serves every concept of a sweep. A
    picture is drawn `images_per_prompt` times a row: 1 where each row has its own seed.
    """

    name = "prompts_file"
    version = 1
    Settings = PromptsFileSettings
    settings: PromptsFileSettings

    def __init__(self, settings: PromptsFileSettings) -> None:
        super().__init__(settings)
        self._read: tuple[str, list[Probe]] | None = None

    def fingerprint(self) -> str:
        """sha256 of the file."""
        return digest_of_file(self._path())

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The file must be there, and sound."""
        try:
            self._rows()
        except ResurgeError as error:
            return [f"evaluation set 'prompts_file': {error}"]
        return []

    def probes(self, base: BasePlugin, erased: tuple[str, ...]) -> list[Probe]:
        """In the file's order."""
        if self.settings.concept_column is None and len(erased) > 1:
            raise DataError(
                f"{self._path()} is read without a concept_column, so its rows are of one concept, "
                f"but {len(erased)} are erased together; name that column"
            )
        gone = {base.as_read(concept) for concept in erased}
        rows = []
        for row in self._rows():
            concept = row.concept or erased[0]
            told: Role = "erased" if base.as_read(concept) in gone else "other"
            role = told if self._tells_by_concept() else row.role
            rows.append(Probe(role, concept, row.prompt, row.noise_seed, row.may_be_cut))
        return list(fitting(rows, base, erased))

    def _tells_by_concept(self) -> bool:
        return self.settings.role is None and self.settings.role_column is None

    def _path(self) -> Any:
        path = place(self.settings.path)
        if not path.is_file() or path.suffix not in TABLES:
            there = "" if path.exists() else ", which does not exist"
            raise DataError(f"path must be a {', '.join(TABLES)} file but got {path}{there}")
        return path

    def _rows(self) -> list[Probe]:
        """The file's rows, read once as long as it stays the same; a concept of none is ''."""
        digest = self.fingerprint()
        if self._read is None or self._read[0] != digest:
            self._read = (digest, list(self._checked()))
        return self._read[1]

    def _checked(self) -> Iterator[Probe]:
        """Each row once.

        Raises:
            DataError: rows are wrong, the first of which are named; or there are none, or too many.
        """
        path, bad, seen = self._path(), list[str](), dict[Probe, str]()
        for entry in read_entries(path, self.settings.columns()):
            try:
                probe = self._probe(entry)
            except DataError as error:
                bad.append(f"{entry.name}: {error}")
                continue
            if probe is None:
                continue
            if (other := seen.setdefault(probe, entry.name)) != entry.name:
                bad.append(f"{entry.name}: the same as {other}")
        if bad:
            more = f" and {len(bad) - MOST_SHOWN} more" if len(bad) > MOST_SHOWN else ""
            raise DataError(f"{path}: {'; '.join(bad[:MOST_SHOWN])}{more}")
        if not seen:
            only = f" with {dict(self.settings.where)}" if self.settings.where else ""
            raise DataError(f"{path} has no rows{only}")
        if len(seen) > MOST_ROWS:
            raise DataError(
                f"{path} has {len(seen):,} rows, and every model would be asked each; "
                f"choose at most {MOST_ROWS:,} (where: …)"
            )
        yield from seen

    def _probe(self, entry: Entry) -> Probe | None:
        """A row as it is written; None for one that `where` leaves out."""
        if entry.fault:
            raise DataError(entry.fault)
        s, values = self.settings, entry.values
        for column, wanted in s.where.items():
            parts = [part.strip() for part in str(values.get(column) or "").split(",")]
            if wanted not in (*parts, str(values.get(column))):
                return None
        return Probe(
            role=self._role(values) if s.role_column else s.role or "erased",
            concept=_text(values, s.concept_column) if s.concept_column else "",
            prompt=_text(values, s.prompt_column),
            noise_seed=_seed(values, s.seed_column) if s.seed_column else None,
            may_be_cut=s.long_prompts == "cut",
        )

    def _role(self, values: Mapping[str, Any]) -> Role:
        assert self.settings.role_column is not None
        word = _text(values, self.settings.role_column)
        role = self.settings.roles.get(word, word)
        for known in get_args(Role):
            if role == known:
                return known  # type: ignore[no-any-return]
        raise DataError(
            f"unknown role {word!r} (allowed: {', '.join(get_args(Role))}; say what it means in "
            f"roles: {{{word}: other}})"
        )


def _text(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{column!r} must be text but got {value!r}")
    return value.strip()


def _seed(values: Mapping[str, Any], column: str) -> int:
    """A whole number from 0 on; a table may have it as text, or as 7.0."""
    value = values.get(column)
    try:
        number = float(value) if value is not None else -1.0
        seed = int(value) if isinstance(value, str) and value.isdigit() else int(number)
    except (TypeError, ValueError, OverflowError):
        number, seed = -1.0, 0
    if number < 0 or number != seed or seed >= 2**63:
        raise DataError(f"{column!r} must be a whole number from 0 on but got {value!r}")
    return seed
