"""JSON documents of the store: each carries its own checksum, and the path it is kept under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"
MAX_DEPTH = 100
"""Lists and objects in each other. A sweep file's own nesting comes nowhere near."""


def seal(path: str, values: Mapping[str, Any]) -> str:
    """The text of a document that is to be kept under `path`, below the store's root.

    Raises:
        ValueError: it could not be read again: it is nested too deeply, or is no JSON.
    """
    try:
        # Read back, so that what is hashed is what a reader will have: text for a number as a key,
        # a list for a tuple.
        plain = json.loads(json.dumps(values))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be kept as JSON: {error}") from error
    _check_depth(plain)
    return json.dumps({**plain, SEAL: {"path": path, "sha256": _checksum(path, plain)}}, indent=1)


def unseal(path: str, data: bytes) -> dict[str, Any]:
    """The values of a document that is kept under `path`, as they were when it was written.

    Raises:
        ValueError: in words, what is wrong: it is no JSON, was changed, or belongs elsewhere.
    """
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from error
    _check_depth(values)
    if not isinstance(values, dict) or not isinstance(found := values.pop(SEAL, None), dict):
        raise ValueError("it carries no checksum")
    if found.get("sha256") != _checksum(str(found.get("path")), values):
        raise ValueError("its checksum is another: it was changed after it was written")
    if found["path"] != path:
        raise ValueError(f"it was written as {found['path']}")
    return values


def seal_of(data: bytes | str) -> Any:
    """A document's seal, unchecked: two of the same path with the same one say the same."""
    try:
        return json.loads(data)[SEAL]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _checksum(path: str, values: Any) -> str:
    # Not the digests' canonical form, which refuses the NaN of a loss that is not finite.
    text = json.dumps([path, values], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_depth(values: Any) -> None:
    level = [values] if isinstance(values, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [child for one in inner for child in one if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
