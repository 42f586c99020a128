"""What a sweep means that its author may not have meant: said before it runs, and not stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.core.digest import canonical_json
from orchestrator.core.plugin import Plugin
from orchestrator.plan.plan import PlannedTrial


def doubts(trials: Sequence[PlannedTrial]) -> Iterator[str]:
    """A sentence each, beginning with the edit that it is about; each plug-in is asked once."""
    used: dict[tuple[str, type[Plugin]], dict[str, Any]] = {}
    for planned in trials:
        for edit in () if planned.is_control else planned.trial.edits:
            settings = edit.plugin.settings
            of = used.setdefault((edit.key, type(edit.plugin)), {})
            of.setdefault(canonical_json(settings.full()), settings)
    for (key, plugin), settings in used.items():
        yield from (f"{key}: {doubt}" for doubt in plugin.doubts(list(settings.values())))
