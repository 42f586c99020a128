"""Erasures on the tiny pipeline: every input of a method, small."""

import pytest
import torch

from orchestrator.core.concepts import ConceptSet, Target
from tests.workers.unlearners.small import NoCheckpoints, make_materials
from tests.workers.unlearners.transcribe import ANCHOR, FORGET, RETAIN, noise_pictures
from workers.interfaces.unlearner import Erasure


@pytest.fixture
def erasure(pipe, tiny_base):
    """Make an erasure of the star for a method; keyword arguments replace its parts."""

    def make(method=None, **parts):
        concept = parts.pop("concept", "star")
        prompts = parts.pop("prompts", tiny_base.prompts(concept))
        anchors = parts.pop("anchor_prompts", tiny_base.prompts(tiny_base.anchor(concept)))
        erased = ConceptSet.of(concept)
        defaults = {
            "pipe": pipe,
            "targets": (Target(concept, tuple(prompts), tuple(anchors)),),
            "retained_prompts": tiny_base.retained_prompts(concept),
            "seed": 0,
            "progress": lambda *_: None,
            "checkpoints": NoCheckpoints(),
            "materials": make_materials(pipe, method, tiny_base, erased) if method else {},
        }
        return Erasure(**(defaults | parts))

    return make


@pytest.fixture
def brief(erasure):
    """Make an erasure of a few prompts with pictures of noise; keyword arguments add to it."""

    def make(materials=None, **parts):
        pictures = {
            "forget": noise_pictures(FORGET),
            "anchor": noise_pictures(ANCHOR),
            "retain": noise_pictures(RETAIN),
        }
        prompts = {"prompts": FORGET, "anchor_prompts": ANCHOR, "retained_prompts": RETAIN}
        return erasure(materials=pictures | (materials or {}), **(prompts | parts))

    return make


@pytest.fixture
def double_precision():
    """Everything made in the test is fp64: two ways to compute one thing differ by rounding only.

    The first step of Adam is the gradient's sign, which fp32 does not settle for tiny gradients.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
