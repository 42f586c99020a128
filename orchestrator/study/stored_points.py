"""A search as a store keeps it: what it sought and the points that it asked for, with their trials.

What a study has tried is in the study; what its points came to is in the records. This is what lies
between them, read back without the sweep's plug-ins and without what they point at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from orchestrator.core.digest import canonical_json
from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import Plan
from orchestrator.plan.stored import UnreadablePlan, pack, unpack
from orchestrator.study.points import Points
from orchestrator.study.tried import Tried, counted
from orchestrator.study.worst_case import confirmed, merged
from orchestrator.sweep.search import Search
from orchestrator.sweep.space import Point, point_key

_SEARCH = TypeAdapter(Search)
Studies = Sequence[tuple[str, Point, Sequence[Tried]]]


def keep(points: Points, found: Studies) -> tuple[Plan, str]:
    """What a search has asked for so far: every trial in one plan, and which point has which."""
    plans = {key: plan for key, plan in _asked(points, found)}
    whole = merged([points.nothing, *plans.values()])
    rows = {trial.digest: row for row, trial in enumerate(whole.trials)}
    values = {
        "search": _SEARCH.dump_python(points.search, mode="json"),
        "recorded": points.recorded,
        "seeds": list(points.seeds),
        "studies": [[dict(fixed), points.identity(fixed)] for fixed in points.fixed],
        "defences": [[dict(f), points.identity(f)] for _, f, _ in found if f not in points.fixed],
        "points": {k: [rows[t.digest] for t in plan.trials] for k, plan in plans.items()},
    }
    return whole, pack(values)


class StoredPoints(Points):
    """The points that a search had asked for when it was last run.

    Args:
        plan: all their trials.
        text: what `keep` gave beside it.

    Raises:
        UnreadablePlan: the text is damaged.
    """

    def __init__(self, plan: Plan, text: str) -> None:
        values = unpack(text)
        try:
            self.search = _SEARCH.validate_python(values["search"])
            self.name, self.recorded = plan.name, values["recorded"]
            self.seeds = tuple(values["seeds"])
            self.fixed = [fixed for fixed, _ in values["studies"]]
            studies = [*values["studies"], *values.get("defences", ())]
            self._identities = {point_key(fixed): mine for fixed, mine in studies}
            self._rows: Mapping[str, Sequence[int]] = values["points"]
        except (ValueError, TypeError, LookupError) as error:
            raise UnreadablePlan(f"its search is damaged ({error})") from error
        self._plan = plan
        self.nothing = Plan(plan.name, plan.root, (), (), plan.inputs)

    def identity(self, fixed: Point) -> Mapping[str, Any]:
        found: Mapping[str, Any] | None = self._identities.get(point_key(fixed))
        if found is None:
            raise self._unkept()
        return found

    def measuring(self, point: Point, steps: int | None = None) -> Plan:
        return self._of(_key(point, steps))

    def confirming(self, point: Point) -> Plan:
        return self._of(_key(point, "fresh"))

    def _unkept(self) -> ResurgeError:
        return ResurgeError(
            f"a point of search {self.name!r} was asked for by a run that was killed before "
            "it could be kept: look where its plug-ins and data are"
        )

    def _of(self, key: str) -> Plan:
        if key not in self._rows:
            raise self._unkept()
        trials = tuple(self._plan.trials[row] for row in self._rows[key])
        stages = dict.fromkeys(stage for trial in trials for stage in trial.stages())
        return Plan(self._plan.name, self._plan.root, trials, tuple(stages))


def _key(point: Point, what: int | str | None) -> str:
    return canonical_json([dict(point), what])


def _asked(points: Points, found: Studies) -> Iterator[tuple[str, Plan]]:
    """Every point that a view of the search looks at: on its way, at its end, on fresh seeds."""
    for _, _, trials in found:
        for one in counted(trials):
            for steps in (*one.curve, *([None] if one.state in ("done", "failed") else [])):
                try:
                    yield _key(one.point, steps), points.measuring(one.point, steps)
                except ResurgeError:  # its settings do not go together: it failed at once
                    break
        for one in confirmed(trials, points):
            yield _key(one.point, "fresh"), points.confirming(one.point)
