"""What a sweep means that its author may not have meant: said before it runs, and not stopped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.artifacts import ASKS_ERASED, KEPT
from orchestrator.core.concepts import targets_of
from orchestrator.core.digest import canonical_json
from orchestrator.core.plugin import BasePlugin, Plugin
from orchestrator.plan.plan import PlannedTrial


def doubts(trials: Sequence[PlannedTrial], base: BasePlugin) -> Iterator[str]:
    """A sentence each, beginning with the edit that it is about; each plug-in is asked once."""
    used: dict[tuple[str, type[Plugin]], dict[str, Any]] = {}
    for planned in trials:
        for edit in () if planned.is_control else planned.trial.edits:
            settings = edit.plugin.settings
            of = used.setdefault((edit.key, type(edit.plugin)), {})
            of.setdefault(canonical_json(settings.full()), settings)
    for (key, plugin), settings in used.items():
        yield from (f"{key}: {doubt}" for doubt in plugin.doubts(list(settings.values())))
    yield from _leaks(trials, base)


@dataclass
class _Overlap:
    """Scored prompts that methods read too: which methods, and the most of one trial."""

    methods: set[str] = field(default_factory=set)
    shared: int = 0
    scored: int = 0

    def add(self, method: str, read: Iterable[str], scored: Collection[str]) -> None:
        shared = len(set(scored).intersection(read))
        if shared:
            self.methods.add(method)
            self.shared, self.scored = max((self.shared, self.scored), (shared, len(scored)))

    def told(self, role: str, done: str, setting: str) -> str:
        names = ", ".join(sorted(self.methods)[:3])
        more = len(self.methods) - 3
        by = f"{names} and {more} more" if more > 0 else names
        shared = f"{self.shared} of the {self.scored} scored as {role}"
        return f"{shared} are {done} {by} (see `{setting}`)"


def _leaks(trials: Sequence[PlannedTrial], base: BasePlugin) -> Iterator[str]:
    """One line: the scored prompts that methods train on, or are told to preserve.

    A score of them is no score of the concept: the method may have learned the sentences.
    """
    erased, retained = _Overlap(), _Overlap()
    for planned in trials:
        probes = planned.final.sample.settings["probes"]
        asked = {
            of: {base.as_read(probe["prompt"]) for probe in probes if probe["role"] in roles}
            for of, roles in (("erased", ASKS_ERASED), ("retained", KEPT))
        }
        for stage in planned.unlearned.model.lineage:
            # A method that cannot be told its prompts has no way out.
            if stage.kind == "unlearn" and "prompts" in stage.settings["settings"]:
                given = stage.settings
                read = (p for target in targets_of(given) for p in target.prompts)
                erased.add(stage.plugin, map(base.as_read, read), asked["erased"])
                kept = given.get("retained_prompts", ())
                retained.add(stage.plugin, map(base.as_read, kept), asked["retained"])
    found = []
    if erased.shared:
        found.append(erased.told("erased", "trained on by", "prompts"))
    if retained.shared:
        found.append(retained.told("retained", "preserved by", "preserve"))
    if found:
        others = "; `evaluate.set: held_out` asks in others" if erased.shared else ""
        yield f"unlearn: of the prompts, {'; '.join(found)}{others}"
