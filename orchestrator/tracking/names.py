"""Names and values as MLflow takes them.

What a user calls a concept is part of a metric's name: MLflow refuses most of what is no letter,
and with it the whole batch.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata

MAX_NAME = 250
"""Characters of a metric's, parameter's or tag's name, and of a run's."""
MAX_VALUE = 6_000
"""Characters of a parameter's or tag's value: longer ones MLflow would cut without a word."""
DEFAULT_EXPERIMENT = "Default"
"""MLflow's own, whose artifacts are wherever it was first started."""

_LEGAL = re.compile(r"[/\w.\- :]+")
_ILLEGAL = re.compile(r"[^\w.\- :]+")
_MARK_DIGITS = 8
_MARKED = re.compile(rf".* [0-9a-f]{{{_MARK_DIGITS}}}")
_UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")


def legal_name(name: str) -> str:
    """The name of a metric, a parameter or a tag, as it is if MLflow takes it so.

    Another one keeps what is readable and ends in eight digits of its digest: the same name is
    always called the same, and no two names alike. One that looks as if it ended so is changed too.
    """
    is_path = name == posixpath.normpath(name) and not name.startswith(("..", "/"))
    is_legal = is_path and name != "." and _LEGAL.fullmatch(name) and len(name) <= MAX_NAME
    if is_legal and not _MARKED.fullmatch(name):
        return name
    readable = _ILLEGAL.sub("_", unicodedata.normalize("NFC", name)).lstrip(".")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{readable[: MAX_NAME - _MARK_DIGITS - 1]} {digest[:_MARK_DIGITS]}"


def legal_value(value: str) -> str:
    """A parameter's or tag's value: what no database holds is replaced, a long one cut so that it
    shows.
    """
    value = _UNSTORABLE.sub("\ufffd", value)
    if len(value) <= MAX_VALUE:
        return value
    mark = f"… (cut, {len(value)} characters; see sweep.yaml)"
    return value[: MAX_VALUE - len(mark)] + mark


def legal_title(name: str, instead: str) -> str:
    """A run's or data set's name: on one line, cut so that it shows, and never empty."""
    line = " ".join(_UNSTORABLE.sub("\ufffd", name).split())
    return (line if len(line) <= MAX_NAME else f"{line[: MAX_NAME - 1]}…") or instead


def experiment_name(sweep: str) -> str:
    """A sweep's experiment. No sweep's name has a space in it."""
    return f"{sweep} (sweep)" if sweep == DEFAULT_EXPERIMENT else sweep
