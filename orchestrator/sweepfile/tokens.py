"""What textual inversion learns must be asked for: a model is otherwise what it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.core.artifacts import ASKS_ERASED
from orchestrator.core.errors import Problem
from orchestrator.sweep.grid import EditAxes, Grid
from orchestrator.sweep.search import Search
from orchestrator.sweep.space import Categorical
from orchestrator.sweep.sweep import Evaluate


def unused_tokens(grid: Grid, evaluate: Evaluate, search: Search | None) -> Iterator[Problem]:
    """The tokens that no prompt for the erased concept names, and no later edit reads.

    Every number would be that of the model before, by construction.
    """
    learned = [
        (edit, token, grid.edits[index + 1 :])
        for index, edit in enumerate(grid.edits)
        if "textual_inversion" in _values(edit, "adapter", grid, search)
        for token in dict.fromkeys(_values(edit, "placeholder", grid, search))
        if isinstance(token, str)
    ]
    if not learned:
        return
    probes = (p for erased in grid.known_sets() for p in evaluate.probes(grid.base, erased))
    prompts = {probe.prompt.lower() for probe in probes if probe.role in ASKS_ERASED}
    for edit, token, later in learned:
        is_asked = any(token in prompt for prompt in prompts)
        if not is_asked and not any(_may_read(other, token) for other in later):
            yield edit.place.problem(
                f"textual inversion changes no weight, and no prompt for the erased concept and no "
                f"later edit names {token}: resurgence would be 0 by construction; ask for it, "
                f"such as by evaluate.prompts: ['a {{concept}} and {token}']"
            )


def _values(edit: EditAxes, name: str, grid: Grid, search: Search | None) -> list[Any]:
    """Every value that a setting of an edit may have."""
    found = list(edit.settings.get(name, ()))
    for point in grid.include:
        found += point.values.get(f"{edit.key}.{name}", ())
    for one in search.space.dimensions if search else ():
        if one.name == f"{edit.key}.{name}" and isinstance(one, Categorical):
            found += one.values
    return found


def _may_read(edit: EditAxes, token: str) -> bool:
    """Whether an edit's settings name it, or a data set's own captions might."""
    settings: Sequence[Any] = [edit.settings, *(choice.settings for choice in edit.choices)]
    if any(token in repr(dict(one)).lower() for one in settings):
        return True
    return edit.kind == "finetune" and None in edit.settings.get("caption", (None,))
