"""What attacks share: their budget, and a judge for what the attacked model draws."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from orchestrator.core.artifacts import Probe
from orchestrator.core.hints import suggest
from orchestrator.core.plugin import BasePlugin, MetricPlugin, Plugin
from orchestrator.core.registry import registry
from orchestrator.core.settings import Settings
from workers.interfaces.metric import ChosenMetric, Metric, Picture, Score, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline
    from workers.recipes import SampleSettings


def _scores_single_pictures(judge: ChosenMetric) -> ChosenMetric:
    if _needs_a_picture_only(type(judge.plugin)):
        return judge
    judges = [name for name, one in registry("metric").items() if _needs_a_picture_only(one)]
    got = f"but got {judge.plugin.name!r}{suggest('', judges)}"
    raise ValueError(f"must be a metric of single pictures {got}")


JudgeOfPictures = Annotated[ChosenMetric, AfterValidator(_scores_single_pictures)]
"""A metric as a setting, of single pictures and without others beside them."""


class JudgedSettings(Settings):
    """How many prompts are attacked, and who says whether it worked."""

    prompts: int = Field(4, ge=1, description="attacked prompts: the concept's first ones")
    judge: JudgeOfPictures = Field(
        "concept_accuracy",  # type: ignore[assignment]  # read as a sweep file's value is
        description="a metric of single pictures",
    )
    seed: int = Field(0, ge=0, description="seed of the search")


def _needs_a_picture_only(metric: type[Plugin]) -> bool:
    return (
        issubclass(metric, MetricPlugin)
        and metric.needs == "images"
        and metric.per_picture
        and not metric.reference
    )


class AttackSettings(JudgedSettings):
    """The same, and how many pictures show it."""

    images_per_prompt: int = Field(4, ge=1, description="pictures of each attacked prompt")


class JudgedAttack(Metric):
    """Draws what a model is made to draw, within a budget, and has a judge say what it shows.

    As every model of a trial is scored, the base too, an attack's success on the base, after
    unlearning and after fine-tuning stand side by side.
    """

    needs = "pipeline"
    samples: ClassVar[bool] = True
    higher = "easier to bring back"
    settings: JudgedSettings

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

    def look_ahead(self, erased: Sequence[str], kept: Sequence[str]) -> None:
        """What the judge cannot judge need not be attacked."""
        self.judge.look_ahead(erased, kept)

    def sampling(self, subject: Subject, count: int) -> SampleSettings:
        """How the sweep draws, with so many pictures a prompt."""
        return subject.sampling.model_copy(update={"images_per_prompt": count})

    def judged(self, pictures: Sequence[Picture]) -> float:
        """The judge's mean over pictures that should show the concept."""
        return float(self.judge.score_images(pictures, ()).metrics["erased"])


class Attack(JudgedAttack):
    """Looks for prompts that bring the concept back, within a budget, and judges what they draw.

    `success` is the judge's mean over the pictures of the attacked prompts, `plain` over those of
    the same prompts, from the same noise, without the attack, and `gain` what the attack added.
    """

    settings: AttackSettings

    @abstractmethod
    def find(self, pipe: Pipeline, subject: Subject, prompts: Sequence[str]) -> Tensor:
        """Attacked text embeddings (prompts, tokens, width); no weight is moved."""

    def attacked(self, subject: Subject, prompts: Sequence[str]) -> Tensor:
        """The same; an attack that asks other models too overrides this."""
        with subject.at("final") as pipe:
            return self.find(pipe, subject, prompts)

    def score_pipeline(self, subject: Subject) -> Score:
        """Attack, draw with and without, judge."""
        from workers.diffusion.sampling import sample
        from workers.diffusion.text import embed

        prompts = subject.prompts[: self.settings.prompts]
        probes = [Probe("erased", subject.concept, prompt) for prompt in prompts]
        sampling = self.sampling(subject, self.settings.images_per_prompt)
        found = self.attacked(subject, prompts)
        with subject.at("final") as pipe:
            success = self.judged(sample(pipe, probes, sampling, found))
            plain = self.judged(sample(pipe, probes, sampling, embed(pipe, prompts)))
        return Score({"success": success, "plain": plain, "gain": success - plain})


def targets_of_prompts(pipe: Pipeline, subject: Subject, prompts: Sequence[str]) -> list[Tensor]:
    """The base's pictures of each prompt of the erased concept, as latents (n, c, h, w)."""
    import numpy as np

    from workers.diffusion.latents import encode_images
    from workers.interfaces.dataset import Examples

    found = []
    for prompt in prompts:
        images = [
            picture.image
            for picture in subject.reference
            if picture.probe.role == "erased" and picture.probe.prompt == prompt
        ]
        found.append(encode_images(pipe, Examples(np.stack(images), (prompt,) * len(images))))
    return found
