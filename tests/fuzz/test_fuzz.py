"""Some of every area's cases, always the same ones; `make fuzz` runs them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.areas import AREAS, prepared
from tests.fuzz.cases import run

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize("name", AREAS)
def test_what_is_damaged_is_right_or_refused(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with prepared(tmp_path):
        area = AREAS[name](tmp_path)
        report = run(area, 0, range(area.quick))
    record_property("fuzz", report.line())
    assert not report.failures, "\n\n".join(report.failures)
