"""A sweep as a store keeps it: what it said and what was planned when it was last run.

It is read back without the sweep's plug-ins and without what they point at. In the plan's text
equal values stand once and everything refers to them by number: 10,000 trials are about 1.5 MB. A
trial that is read back has its values and no edits, which are plug-ins.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.core.concepts import ConceptSet
from orchestrator.core.digest import canonical_json
from orchestrator.core.errors import StoreError
from orchestrator.core.registry import find
from orchestrator.core.stage import Stage
from orchestrator.plan.plan import Input, Plan, PlannedTrial, Waypoint
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.trial import Trial

FORMAT = 1


class UnreadablePlan(ValueError):
    """It is no plan, or one that a later Resurge wrote."""


@dataclass(frozen=True)
class StoredSweep:
    """A sweep as it was last run.

    `values` are those that `Sweep.canonical` gives, `source` its file's text, `overridden` what the
    command line made of that, if it did, `plan` its plan's text; None in a store that an earlier
    Resurge wrote. `points` is the text of a search's points.
    """

    name: str
    values: Mapping[str, Any]
    source: str
    plan: str | None
    overridden: str | None = None
    points: str | None = None

    @classmethod
    def of(cls, sweep: Sweep, plan: Plan, points: str | None = None) -> StoredSweep:
        """What is to be kept of a sweep that is about to be run."""
        values = sweep.canonical()
        return cls(sweep.name, values, sweep.source, to_text(plan), sweep.overridden, points)

    @classmethod
    def from_json(cls, name: str, values: Any) -> StoredSweep:
        """The inverse of `to_json`.

        Raises:
            StoreError: it is something else.
        """
        try:
            sweep, source = values["sweep"], values["source"] or ""
            texts = [values.get(part) for part in ("plan", "overridden", "points")]
        except (TypeError, LookupError, AttributeError):
            sweep = source = None
        if not (isinstance(sweep, dict) and isinstance(source, str)):
            raise StoreError(
                f"what the store has of sweep {name!r} is no sweep: run its file again, which "
                "writes it anew"
            )
        return cls(name, sweep, source, *(t if isinstance(t, str) else None for t in texts))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        found = {"sweep": self.values, "source": self.source, "plan": self.plan}
        more = {"overridden": self.overridden, "points": self.points}
        return found | {part: text for part, text in more.items() if text is not None}

    @property
    def recorded(self) -> str:
        """A sweep file that says what was run."""
        return self.source if self.overridden is None else self.overridden

    def read_plan(self) -> Plan | None:
        """What was planned; None if an earlier Resurge ran it.

        Raises:
            UnreadablePlan: it is damaged, or a later Resurge wrote it.
        """
        return from_text(self.plan) if self.plan is not None else None

    @property
    def store(self) -> str | None:
        """The place that it names for its results, if it does."""
        return self.values.get("store")

    @property
    def mlflow(self) -> str | None:
        """The same for MLflow."""
        return self.values.get("mlflow")

    @property
    def storage(self) -> str | None:
        """The same for its search's studies."""
        return (self.search_block or {}).get("storage")

    @property
    def on_command_line(self) -> frozenset[str]:
        """None of its places: who names one on the command line names it again."""
        return frozenset()

    @property
    def search_block(self) -> Mapping[str, Any] | None:
        """What it says under `search`, if it does."""
        return self.values.get("search")


def pack(values: Any) -> str:
    """JSON values, compressed, in letters and digits."""
    data = json.dumps(values, separators=(",", ":")).encode()
    return base64.b85encode(zlib.compress(data, 9)).decode()


def unpack(text: str) -> Any:
    """The inverse of `pack`.

    Raises:
        UnreadablePlan: it is not what `pack` wrote.
    """
    try:
        return json.loads(zlib.decompress(base64.b85decode(text)))
    except (ValueError, TypeError, zlib.error) as error:
        raise UnreadablePlan(f"its plan is damaged ({error})") from error


def to_text(plan: Plan) -> str:
    """The plan in letters and digits."""
    return pack(_packed(plan))


def from_text(text: str) -> Plan:
    """The inverse of `to_text`.

    Raises:
        UnreadablePlan: it is not what `to_text` wrote.
    """
    try:
        packed = unpack(text)
        if packed["format"] != FORMAT:
            raise UnreadablePlan(f"its plan has format {packed['format']}, not {FORMAT}")
        return _unpacked(packed)
    except UnreadablePlan:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UnreadablePlan(f"its plan is damaged ({error})") from error


def changes(plan: Plan) -> Iterator[str]:
    """What of the plan's inputs is not what it was, or cannot be looked at from here."""
    for one in plan.inputs:
        named = next((f" ({k}: {v})" for k, v in one.settings.items() if isinstance(v, str)), "")
        what = f"{one.kind} {one.name!r}{named}"
        try:
            plugin = find(one.kind, one.name)
            now = plugin(plugin.Settings.model_validate(dict(one.settings))).fingerprint()
        except Exception as error:  # a plug-in's own code, which no number here rests on
            why = " ".join(str(error).split())
            yield f"{what} cannot be compared with what it was then: {why}"
        else:
            if now != one.fingerprint:
                yield f"{what} has changed since"


class _Numbered:
    """Values in the order in which they were first seen, each once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[str, int] = {}

    def number(self, value: Any, key: str | None = None) -> int:
        """The value's number; `key` is what equal ones share, by default their JSON."""
        name = canonical_json(value) if key is None else key
        if name not in self._numbers:
            self._numbers[name] = len(self.values)
            self.values.append(value)
        return self._numbers[name]


def _packed(plan: Plan) -> dict[str, Any]:
    values, names, points = _Numbered(), _Numbered(), _Numbered()
    ways = (at for one in plan.trials for at in (one.base, one.unlearned, one.final))
    asked = dict.fromkeys(at.sample for at in ways)  # also those that are not drawn
    every = dict.fromkeys((plan.root, *plan.stages, *asked))
    rows = {stage.digest: number for number, stage in enumerate(_parents_first(every))}

    def point(at: Waypoint) -> int:
        scores = [rows[score.digest] for score in at.scores]
        first = None if at.primary is None else at.scores.index(at.primary)
        return points.number([rows[at.model.digest], rows[at.sample.digest], scores, first])

    trials = [
        [
            names.number(list(one.trial.params)),
            list(one.trial.params.values()),
            one.trial.erased.canonical(),
            one.trial.seed,
            one.is_control,
            [point(at) for at in (one.base, one.unlearned, one.final)],
            rows.get(one.control or "", one.control),
            one.steps_param,
            one.starts_unlearned,
            *([[point(at) for at in one.way]] if one.way else ()),
        ]
        for one in plan.trials
    ]
    stages = [
        [
            stage.digest,
            stage.kind,
            stage.plugin,
            stage.version,
            values.number(stage.identity),
            values.number(stage.settings),
            stage.seed,
            None if stage.parent is None else rows[stage.parent.digest],
            {name: rows[made.digest] for name, made in stage.inputs.items()},
        ]
        for stage in _parents_first(every)
    ]
    uncounted = [values.number(sorted(stage.uncounted)) for stage in _parents_first(every)]
    return {
        "format": FORMAT,
        "name": plan.name,
        "root": rows[plan.root.digest],
        "planned": [rows[stage.digest] for stage in plan.stages],
        "inputs": [asdict(one) for one in plan.inputs],
        "values": values.values,
        "names": names.values,
        "stages": stages,
        "uncounted": uncounted,
        "points": points.values,
        "trials": trials,
    }


def _parents_first(stages: Iterable[Stage]) -> Iterator[Stage]:
    """Every stage behind what it is made from, each once."""
    seen: dict[Stage, None] = {}
    for stage in stages:
        root = list(stage.ancestry())[-1]
        seen.update(dict.fromkeys((root, *stage.lineage)))
    yield from seen


def _unpacked(packed: Mapping[str, Any]) -> Plan:
    values, stages = packed["values"], list[Stage]()
    uncounted = packed.get("uncounted")
    for digest, kind, plugin, version, identity, settings, seed, parent, inputs in packed["stages"]:
        stage = Stage(
            kind=kind,
            plugin=plugin,
            version=version,
            identity=values[identity],
            settings=values[settings],
            seed=seed,
            parent=None if parent is None else stages[parent],
            inputs={name: stages[row] for name, row in inputs.items()},
            uncounted=frozenset(values[uncounted[len(stages)]] if uncounted else ()),
        )
        # What it was called then, and not what it would be called now.
        stage.__dict__["digest"] = digest
        stages.append(stage)
    points, planned = [], set(packed["planned"])
    for model, sample, scores, first in packed["points"]:
        scored = tuple(stages[row] for row in scores)
        primary = None if first is None else scored[first]
        is_drawn = sample in planned
        points.append(Waypoint(stages[model], stages[sample], scored, primary, is_drawn))
    trials = []
    for row in packed["trials"]:
        names, given, erased, seed, is_control, main, control, steps_param, *rest = row
        base, unlearned, final = (points[at] for at in main)
        starts_unlearned, *way = rest
        params = dict(zip(packed["names"][names], given, strict=True))
        trials.append(
            PlannedTrial(
                trial=Trial(ConceptSet.read(erased), (), seed, params),
                is_control=is_control,
                base=base,
                unlearned=unlearned,
                final=final,
                control=stages[control].digest if isinstance(control, int) else control,
                steps_param=steps_param,
                starts_unlearned=starts_unlearned,
                way=tuple(points[at] for at in way[0]) if way else (),
            )
        )
    return Plan(
        name=packed["name"],
        root=stages[packed["root"]],
        trials=tuple(trials),
        stages=tuple(stages[row] for row in packed["planned"]),
        inputs=tuple(Input(**one) for one in packed["inputs"]),
    )
