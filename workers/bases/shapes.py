"""The bundled base: a small diffusion model of coloured shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.errors import ResurgeError
from orchestrator.core.hints import suggest
from workers.data.files import digest_of
from workers.data.pinned import Source
from workers.data.pipeline_files import weight_shapes
from workers.data.pipeline_loading import load_pipeline
from workers.interfaces.base import Base
from workers.interfaces.reading import as_clip_reads, cut_by_clip
from workers.shapes.vocabulary import (
    ALL_SHAPES,
    COLORS,
    FILLS,
    HELD_OUT,
    NOVEL_SHAPES,
    SHAPES,
    caption,
    said,
)

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

KINDS = (SHAPES, COLORS, FILLS)
PROMPT_TOKENS = 16
WEIGHTS = Path(__file__).parent.parent / "shapes" / "weights" / "pipeline"


class Shapes(Base):
    """The bundled model of coloured shapes: 32 pixels, runs on a laptop's CPU."""

    name = "shapes"
    version = 1
    guidance = 3.0
    sampler_steps = 15
    evaluation = "held_out"

    def concepts(self) -> tuple[str, ...]:
        """Every shape, colour and fill."""
        return SHAPES + COLORS + FILLS

    def prompts(self, concept: str) -> tuple[str, ...]:
        """Ten prompts for a shape (novel ones too), nine for a colour or a fill.

        A shape alone, in each colour and in each fill; a colour or fill of "a shape" and of each
        known shape.
        """
        if concept in ALL_SHAPES:
            colored = (caption(concept, color=color) for color in COLORS)
            filled = (caption(concept, fill=fill) for fill in FILLS)
            return (caption(concept), *colored, *filled)
        if concept in COLORS:
            return tuple(caption(shape, color=concept) for shape in (None, *SHAPES))
        if concept in FILLS:
            return tuple(caption(shape, fill=concept) for shape in (None, *SHAPES))
        raise ResurgeError(f"unknown concept {concept!r}{suggest(concept, self.concepts())}")

    def bare(self, concept: str) -> str:
        """`a star`, `a red shape`: the model has read no word alone."""
        return self.prompts(concept)[0]

    def held_out(self, concept: str) -> tuple[str, ...]:
        """Six sentences about it (docs/evaluations.md has what the model draws from them)."""
        return said(HELD_OUT, concept) if self.prompts(concept) else ()

    def retained(self, concept: str) -> tuple[str, ...]:
        """The other words of the concept's kind."""
        kind = next((words for words in KINDS if concept in words), ())
        return tuple(word for word in kind if word != concept)

    def never_known(self) -> str:
        """A shape that was in no training picture and no caption."""
        return NOVEL_SHAPES[0]

    def as_read(self, text: str) -> str:
        """As CLIP's tokenizer does, which the model's is."""
        return as_clip_reads(text)

    def unread(self, prompt: str) -> str:
        """By the least number of tokens that it can have."""
        return cut_by_clip(prompt, PROMPT_TOKENS)

    def fingerprint(self) -> str:
        """sha256 of the weights' names and contents."""
        return digest_of(_weights(), (".safetensors",))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the bundled weights."""
        return weight_shapes(_weights())

    def load(self, device: str) -> Pipeline:
        """Read the bundled weights, stored in half precision, in fp32."""
        return load_pipeline(Source(str(_weights())), device)


def _weights() -> Path:
    if not (WEIGHTS / "model_index.json").is_file():
        raise ResurgeError(
            f"the bundled model is missing from {WEIGHTS}; "
            "make it with `python -m workers.shapes.making.train`"
        )
    return WEIGHTS
