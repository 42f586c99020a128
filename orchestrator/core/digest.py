"""Values to digests."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any


class Canonical(dict[str, Any]):
    """A mapping that nobody changes any more, shared by all that have it: its canonical JSON is
    made once.
    """

    @cached_property
    def text(self) -> str:
        """As `canonical_json` gives it."""
        return json.dumps(self, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @cached_property
    def without_steps(self) -> Canonical:
        """The same of all step counts: without "steps" under "settings"."""
        settings = {name: value for name, value in self["settings"].items() if name != "steps"}
        return Canonical({**self, "settings": settings})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and no NaN: equal values give equal text."""
    if isinstance(value, Canonical):
        return value.text
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(value: Any) -> str:
    """64 hex digits of a JSON value's canonical form."""
    return sha256_of_text(canonical_json(value))


def sha256_of_text(text: str) -> str:
    """64 hex digits of its UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
