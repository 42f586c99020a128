"""Numbers on their way to MLflow."""

from __future__ import annotations

import math

from orchestrator.tracking.run import points_of


def test_an_infinite_number_is_not_shown_as_the_largest_there_is() -> None:
    numbers = {"one": 1.0, "none": None, "inf": math.inf, "-inf": -math.inf}
    assert [(point.name, point.value) for point in points_of(numbers, 5, 0)] == [("one", 1.0)]
