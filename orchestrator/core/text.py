"""Numbers, durations and sizes as people read them."""

from __future__ import annotations


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
        return str(value)
    if value and not 0.01 <= abs(value) < 10_000:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def brief(value: object, digits: int) -> str:
    """A value for a line of many: a long list is counted, a digest keeps its first digits."""
    text = f"({len(value)})" if isinstance(value, list) and len(value) > 3 else number(value)
    return f"{text[:digits]}…" if len(text) == 64 else text


_SPEAK_FOR_THEMSELVES = ("method", "dataset", "adapter", "concept")


def axis_value(axis: str, value: object, between: str) -> str:
    """'related', 'lr=1e-3': a value, with its axis unless it speaks for itself."""
    last = axis.rpartition(".")[2]
    if last in _SPEAK_FOR_THEMSELVES:
        return str(value)
    return f"{short_name(last)}{between}{number(value)}"


def short_name(axis: str) -> str:
    """The field's short names."""
    return axis.replace("learning_rate", "lr")


def shortened(text: str, longest: int) -> str:
    """The text, cut so that it shows where it is too long."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
