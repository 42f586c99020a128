"""The areas by name, and the place that they work in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import RECORDING
from tests.fuzz.cases import Area
from tests.fuzz.metadata import Metadata
from tests.fuzz.pictures import Pictures
from tests.fuzz.stores import Stores
from tests.fuzz.sweeps import Sweeps
from tests.fuzz.weights import Weights

AREAS: dict[str, type[Area]] = {
    cls.name: cls for cls in (Sweeps, Pictures, Metadata, Weights, Stores)
}


@contextmanager
def prepared(folder: Path) -> Iterator[None]:
    """Stand in an empty folder, with a home of its own and nothing of the user's."""
    before, environment = Path.cwd(), dict(os.environ)
    for name in [name for name in os.environ if name.startswith("RESURGE_")]:
        del os.environ[name]
    os.environ.update(RESURGE_HOME=str(folder / "home"), RESURGE_PLUGINS=str(RECORDING))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
