"""The words of the world and the grammar of its captions. Pure Python: safe to import anywhere."""

from collections.abc import Iterable

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "crescent", "arrow")
NOVEL_SHAPES = ("bolt", "drop")
"""Shapes that the base model never sees, in pictures or in words."""
ALL_SHAPES = SHAPES + NOVEL_SHAPES
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
FILLS = ("solid", "striped", "outlined")

RGB = {
    "red": (214, 32, 38),
    "green": (34, 160, 60),
    "blue": (32, 92, 220),
    "yellow": (250, 214, 24),
    "purple": (140, 50, 176),
    "orange": (248, 126, 20),
}

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_FUNCTION_WORDS = ("a", "an", "the", "and", "of", "on", "in", "with", "by", "no")
_NOUNS = (
    "shape",
    "photo",
    "picture",
    "image",
    "drawing",
    "painting",
    "style",
    "background",
)
WORDS = (
    *_FUNCTION_WORDS, *_NOUNS, "digit", *ALL_SHAPES, *COLORS, *FILLS, *_DIGITS,
)  # fmt: skip
"""Every word that is one token of the world's tokenizer."""

MENTIONS = tuple(
    (shape, color, fill)
    for shape in (True, False)
    for color in (False, True)
    for fill in (False, True)
)
"""Which of (shape, color, fill) a caption may mention: all eight combinations."""


def caption(
    shape: str | None = None,
    color: str | None = None,
    fill: str | None = None,
    article: str | None = None,
) -> str:
    """Describe a picture, for example "a striped red star"; an attribute of None goes unmentioned.

    The article follows English ("an arrow") unless one is given.
    """
    words = [word for word in (fill, color, shape or "shape") if word]
    return " ".join([article or ("an" if words[0][0] in "aeiou" else "a"), *words])


def mentioned(
    attributes: Iterable[str], mention: Iterable[bool]
) -> tuple[str | None, str | None, str | None]:
    """Replace by None each of (shape, color, fill) that a caption does not mention."""
    shape, color, fill = (
        word if kept else None for word, kept in zip(attributes, mention, strict=True)
    )
    return shape, color, fill


WORDINGS = ("a photo of {a}", "a drawing of {a}", "one {}")
"""`{a}` is the concept with its article. The model was trained on none of these sentences."""
HELD_OUT = (*WORDINGS, "a picture of {a}", "{a} on paper", "the {}")
"""Sentences that no method trains on and from which the base draws nearly every concept."""


def said(wordings: Iterable[str], concept: str) -> tuple[str, ...]:
    """A concept in other sentences than its captions."""
    color = concept if concept in COLORS else None
    fill = concept if concept in FILLS else None
    named = caption(None if color or fill else concept, color, fill)
    bare = named.partition(" ")[2]
    return tuple(wording.replace("{a}", named).replace("{}", bare) for wording in wordings)
