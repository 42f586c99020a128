import pytest

from workers.unlearners.base import Erasure


@pytest.fixture
def erasure(pipe, tiny_base):
    """Make an erasure of the star; keyword arguments replace its parts."""

    def make(**parts):
        defaults = {
            "pipe": pipe,
            "concept": "star",
            "prompts": tiny_base.prompts("star"),
            "retained_prompts": tiny_base.prompts("circle"),
            "seed": 0,
            "progress": lambda *_: None,
        }
        return Erasure(**(defaults | parts))

    return make
