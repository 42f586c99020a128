"""What attacks share: their budget, and a judge for what the attacked model draws."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from orchestrator.core.artifacts import Probe
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import BasePlugin, MetricPlugin, Plugin
from orchestrator.core.registry import registry
from orchestrator.core.settings import Settings
from workers.interfaces.metric import ChosenMetric, Metric, Score, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline


class AttackSettings(Settings):
    """How many prompts are attacked, and who says whether it worked."""

    prompts: int = Field(4, ge=1, description="attacked prompts: the concept's first ones")
    images_per_prompt: int = Field(4, ge=1, description="pictures of each attacked prompt")
    judge: ChosenMetric = Field(
        "concept_accuracy",  # type: ignore[assignment]  # read as a sweep file's value is
        description="a metric of single pictures",
    )
    seed: int = Field(0, ge=0, description="seed of the search")

    @field_validator("judge")
    @classmethod
    def _scores_single_pictures(cls, judge: ChosenMetric) -> ChosenMetric:
        if _needs_a_picture_only(type(judge.plugin)):
            return judge
        judges = [name for name, one in registry("metric").items() if _needs_a_picture_only(one)]
        got = f"but got {judge.plugin.name!r}{suggest('', judges)}"
        raise ValueError(f"must be a metric of single pictures {got}")


def _needs_a_picture_only(metric: type[Plugin]) -> bool:
    return (
        issubclass(metric, MetricPlugin)
        and metric.needs == "images"
        and metric.per_picture
        and not metric.reference
    )


class Attack(Metric):
    """Looks for prompts that bring the concept back, within a budget, and judges what they draw.

    `success` is the judge's mean over the pictures of the attacked prompts, `plain` over those of
    the same prompts, from the same noise, without the attack, and `gain` what the attack added. As
    every model of a trial is scored, success before and after fine-tuning stand side by side.
    """

    needs = "pipeline"
    samples: ClassVar[bool] = True
    higher = "easier to bring back"
    settings: AttackSettings

    @abstractmethod
    def find(self, pipe: Pipeline, subject: Subject, prompts: Sequence[str]) -> Tensor:
        """Attacked text embeddings (prompts, tokens, width); no weight is moved."""

    @property
    def judge(self) -> Metric:
        """The metric that says whether a picture shows the concept."""
        return self.settings.judge.plugin

    def fingerprint(self) -> str:
        """What the judge is: its version, its settings and its own fingerprint."""
        return self.settings.judge.identity

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What the judge cannot judge, the attack cannot."""
        return [f"metric {self.name!r}: judge: {p}" for p in self.judge.problems(base, concept)]

    def score_pipeline(self, subject: Subject) -> Score:
        """Attack, draw with and without, judge."""
        from workers.diffusion.text import embed

        prompts = subject.prompts[: self.settings.prompts]
        with subject.at("final") as pipe:
            found = self.find(pipe, subject, prompts)
            success = self._judged(pipe, subject, prompts, found)
            plain = self._judged(pipe, subject, prompts, embed(pipe, prompts))
        return Score({"success": success, "plain": plain, "gain": success - plain})

    def _judged(
        self,
        pipe: Pipeline,
        subject: Subject,
        prompts: Sequence[str],
        text: Tensor,
    ) -> float:
        from workers.diffusion.sampling import sample

        count = self.settings.images_per_prompt
        sampling = subject.sampling.model_copy(update={"images_per_prompt": count})
        probes = [Probe("erased", subject.concept, prompt) for prompt in prompts]
        pictures = sample(pipe, probes, sampling, text)
        return float(self.judge.score_images(pictures, ()).metrics["erased"])
