"""What CLIP's tokenizer makes of a text before it looks at its vocabulary.

Planning asks: no tokenizer is loaded.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Letters together, each digit alone, marks together; what stands between them is no part of it.
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+")
ENDS = 2
"""The start and the end token, which every prompt has."""


def clip_pieces(text: str) -> list[str]:
    """The pieces that are looked up one by one, each at least a token.

    Normalised (NFC), in lower case, split at every space and between letters, digits and marks:
    texts of the same pieces have the same token ids.
    """
    return _PIECES.findall(unicodedata.normalize("NFC", text).lower())


@lru_cache(maxsize=4096)
def as_clip_reads(text: str) -> str:
    """Equal for texts that CLIP's tokenizer cannot tell apart: "star", "Star", " star "."""
    return " ".join(clip_pieces(text))


def cut_by_clip(prompt: str, most: int) -> str:
    """Why a prompt is certainly not read to its end by a model of `most` tokens; '' if it may be.

    A piece may be several tokens, which only the vocabulary tells.
    """
    least = len(clip_pieces(prompt)) + ENDS
    if least <= most:
        return ""
    return (
        f"the prompt {prompt!r} has {least} tokens or more but the model reads {most}: the rest "
        "would be cut off; shorten it"
    )
