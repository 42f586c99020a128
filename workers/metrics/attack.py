"""What attacks share: their budget, and a judge for what the attacked model draws."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.errors import ResurgeError
from orchestrator.plugin import BasePlugin, MetricPlugin, Settings, find
from workers.metrics.base import Metric, Probe, Score, Subject

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor


class AttackSettings(Settings):
    """How many prompts are attacked, and who says whether it worked."""

    prompts: int = Field(4, ge=1, description="attacked prompts: the concept's first ones")
    images_per_prompt: int = Field(4, ge=1, description="pictures of each attacked prompt")
    judge: str = Field("concept_accuracy", description="a metric of single pictures")
    judge_settings: dict[str, Any] = Field({}, description="the judge's settings")
    seed: int = Field(0, ge=0, description="seed of the search")

    @model_validator(mode="after")
    def _judge_scores_single_pictures(self) -> AttackSettings:
        try:
            cls = find("metric", self.judge)
        except ResurgeError as error:
            raise ValueError(f"judge: {error}") from None
        assert issubclass(cls, MetricPlugin)
        if cls.needs != "images" or not cls.per_picture or cls.reference:
            raise ValueError(f"judge must be a metric of single pictures but got {self.judge!r}")
        cls.Settings.model_validate(self.judge_settings)
        return self


class Attack(Metric):
    """Looks for prompts that bring the concept back, within a budget, and judges what they draw.

    `success` is the judge's mean over the pictures of the attacked prompts, `plain` over those of
    the same prompts, from the same noise, without the attack, and `gain` what the attack added. As
    every model of a trial is scored, success before and after fine-tuning stand side by side.
    """

    needs: Literal["pipeline"] = "pipeline"
    samples: ClassVar[bool] = True
    higher = "easier to bring back"

    @abstractmethod
    def find(
        self, pipe: StableDiffusionPipeline, subject: Subject, prompts: Sequence[str]
    ) -> Tensor:
        """Attacked text embeddings (prompts, tokens, width); no weight is moved."""

    @cached_property
    def judge(self) -> Metric:
        """The metric that says whether a picture shows the concept."""
        cls = find("metric", self.settings.judge)
        judge = cls(cls.Settings.model_validate(self.settings.judge_settings))
        assert isinstance(judge, Metric)
        return judge

    def fingerprint(self) -> str:
        """The judge's version and fingerprint."""
        return f"{self.judge.name} {self.judge.version} {self.judge.fingerprint()}"

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """What the judge cannot judge, the attack cannot."""
        return [f"metric {self.name!r}: judge: {p}" for p in self.judge.problems(base, concept)]

    def score_pipeline(self, subject: Subject) -> Score:
        """Attack, draw with and without, judge."""
        from workers.text import embed

        prompts = subject.prompts[: self.settings.prompts]
        with subject.at("final") as pipe:
            found = self.find(pipe, subject, prompts)
            success = self._judged(pipe, subject, prompts, found)
            plain = self._judged(pipe, subject, prompts, embed(pipe, prompts))
        return Score({"success": success, "plain": plain, "gain": success - plain})

    def _judged(
        self,
        pipe: StableDiffusionPipeline,
        subject: Subject,
        prompts: Sequence[str],
        text: Tensor,
    ) -> float:
        from workers.sampling import sample

        count = self.settings.images_per_prompt
        sampling = subject.sampling.model_copy(update={"images_per_prompt": count})
        probes = [Probe("erased", subject.concept, prompt) for prompt in prompts]
        pictures = sample(pipe, probes, sampling, text)
        return float(self.judge.score_images(pictures, ()).metrics["erased"])
