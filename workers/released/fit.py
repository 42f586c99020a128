"""Whether weights of others can be used, as far as planning can tell: by headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import BasePlugin
from workers.data.pinned import Source
from workers.released.lora import place_factors, read_factors
from workers.released.names import Shapes, canonical_shapes, named_shapes, refuse_other_shapes
from workers.released.source import Released, SourceSettings, find_released


def fit_problems(
    settings: SourceSettings, base: BasePlugin, wanted: Literal["lora", "weights", "either"]
) -> list[str]:
    """What keeps weights from being used with the base; of a repository nothing is known yet."""
    path = Source(settings.source, settings.revision).path
    if not path.exists():
        return []
    try:
        released = find_released(path, settings.variant)
        return list(_problems(released, base, wanted))
    except (ResurgeError, OSError) as error:
        return [str(error)]


def _problems(released: Released, base: BasePlugin, wanted: str) -> Iterator[str]:
    shapes: Shapes | None = None
    with suppress(ResurgeError):  # a base that cannot be read says so itself
        shapes = base.shapes()
    lora = released.lora
    if lora is None and wanted == "lora":
        yield f"{released.root} is no LoRA; what holds whole weights is `merge: {{checkpoint: …}}`"
    elif lora is not None and wanted == "weights":
        yield f"{released.root} is a LoRA, no checkpoint; write `merge: {{lora: …}}`"
    elif lora is not None:
        if shapes is None:
            read_factors(lora)
        else:
            place_factors(lora, canonical_shapes(shapes))
    elif (given := named_shapes(released)) is not None and shapes is not None:
        whole = {part for part, _ in released.parts}
        refuse_other_shapes(str(released.root), given, canonical_shapes(shapes), whole)
