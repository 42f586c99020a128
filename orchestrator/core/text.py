"""Numbers, durations, sizes and texts as people read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from orchestrator.core.digest import sha256

LONGEST_TEXT = 80
"""Characters of a user's text that a line or a cell of ours shows."""
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Scripts and emoji are written with these two."""


def visible(text: str, keep: str = "\n\t") -> str:
    """The text with its control characters written out: an ESC is \\x1b.

    They would move a terminal's cursor, turn what follows around or hide it, or split a line.
    """
    if text.isprintable():
        return text
    is_unseen = {c for c in text if unicodedata.category(c) in _UNSEEN}.difference(keep, _JOINERS)
    escapes = {ord(c): c.encode("unicode_escape").decode() for c in is_unseen}
    return text.translate(escapes)


def one_line(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text of a user's as part of a line: nothing hidden, no new line, and not too much of it.

    Of a longer one the beginning, and four digits that tell it from others that begin so.
    """
    whole = visible(text, keep="")
    if len(whole) <= longest:
        return whole
    mark = f"…{sha256(text)[:4]}"
    return whole[: longest - len(mark)] + mark


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size_text(size_bytes: float) -> str:
    """Bytes as people read them: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"


def number(value: object) -> str:
    """A setting's value as people write it: 0.001 is 1e-3, 0.5 is 0.5."""
    if not isinstance(value, float):
        return one_line(str(value))
    if value and not 0.01 <= abs(value) < 10_000:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def brief(value: object, digits: int) -> str:
    """A value for a line of many: a long list is counted, a digest keeps its first digits."""
    text = f"({len(value)})" if isinstance(value, list) and len(value) > 3 else number(value)
    return f"{text[:digits]}…" if len(text) == 64 else text


_SPEAK_FOR_THEMSELVES = (
    "method", "dataset", "update", "adapter", "concept", "concepts", "order",
)  # fmt: skip


def axis_value(axis: str, value: object, between: str) -> str:
    """'related', 'lr=1e-3': a value, with its axis unless it speaks for itself."""
    last = axis.rpartition(".")[2]
    if last in _SPEAK_FOR_THEMSELVES:
        return number(value)
    return f"{short_name(last)}{between}{number(value)}"


def short_name(axis: str) -> str:
    """The field's short names."""
    return axis.replace("learning_rate", "lr")


def shortened(text: str, longest: int) -> str:
    """The text, cut so that it shows where it is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def some(names: Sequence[str], shown: int = 3) -> str:
    """A few names, and how many more there are."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
