"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with (steps done, steps in all, numbers such as the loss)."""
