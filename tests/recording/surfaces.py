"""A metric that is an analytic function of two settings, read back from the model itself."""

from __future__ import annotations

import math

from pydantic import Field

from orchestrator.core.settings import Settings
from workers.interfaces.metric import Metric, Score, Subject
from workers.interfaces.unlearner import Erasure, Unlearned, Unlearner

LOWEST_RATE, HIGHEST_RATE = 1e-5, 1e-1


class Blank(Unlearner):
    """Set the UNet's output bias to zero, so that what moves it later can be read from it."""

    name = "blank"
    seeded = False

    def unlearn(self, erasure: Erasure) -> Unlearned:
        from workers.editing.edits import Weights

        return Unlearned([Weights({"unet.conv_out.bias": erasure.pipe.unet.conv_out.bias * 0})])


class PeakSettings(Settings):
    rate: float = Field(1e-3, gt=0, description="the learning rate at the top")
    level: int = Field(128, ge=0, le=255, description="the grey level at the top")
    steepness: float = Field(2.0, gt=0, description="of the ridge's sides, 1 along it")


class Peak(Metric):
    """1 at one learning rate and grey level, less the farther away: a ridge across both settings.

    It needs `blank` and a fine-tune of one step on `dots`. AdamW's first step moves a weight by the
    learning rate, whatever the gradient; the grey level is that of the examples.
    """

    name = "peak"
    needs = "pipeline"
    of = frozenset({"finetune"})
    values = (None, 1.0)
    higher = "nearer to the top"
    Settings = PeakSettings

    def score_pipeline(self, subject: Subject) -> Score:
        with subject.at("final") as pipe:
            rate = float(pipe.unet.conv_out.bias.detach().abs().max())
        examples = subject.examples()
        assert examples is not None
        level = float(examples.images.mean())
        return Score({"height": self.height(rate, level), "rate": rate, "level": level})

    def height(self, rate: float, level: float) -> float:
        """The surface: a cone, its axes turned by 45°, one of them `steepness` times as steep."""
        s = self.settings
        right = math.log(rate / s.rate) / math.log(HIGHEST_RATE / LOWEST_RATE)
        up = (level - s.level) / 255
        along, across = (right + up) / math.sqrt(2), (right - up) / math.sqrt(2)
        return 1 - math.hypot(along, s.steepness * across)
