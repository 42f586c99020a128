"""Classifier guidance: the sampler is pulled to where the bundled judge sees the concept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from orchestrator.core.artifacts import Probe
from orchestrator.core.concepts import Target
from orchestrator.core.plugin import BasePlugin
from workers.interfaces.metric import Score, Subject
from workers.judging.attack import AttackSettings, JudgedAttack
from workers.judging.shapes_judge import judge_digest, refusal

if TYPE_CHECKING:
    from torch import Tensor

    from workers.diffusion.denoise import NoisePredictor
    from workers.interfaces.pipeline import Pipeline
    from workers.shapes.judge import Judge


class ClassifierGuidanceSettings(AttackSettings):
    """How hard it pulls."""

    scale: float = Field(2.0, gt=0, description="of the classifier's gradient, in noise")


class ClassifierGuidance(JudgedAttack):
    """Draw the concept's prompts with the judge's gradient added to the noise at every step.

    Guidance by a classifier (Dhariwal and Nichol, 2021) of the clean picture that a step predicts
    (Bansal et al., Universal Guidance, 2023): ε̂ = ε - s √(1-ᾱ_t) ∇ log p(concept | x̂_0(x_t)), the
    gradient at length 1 a picture. A probe of whether the pictures can still be reached, whatever
    the prompts lead to. What guides is what judges, and a judge can be fooled: `control` is the
    success for the concept that the base never knew, pulled as hard; `plain` is without the pull.
    """

    name = "classifier_guidance"
    version = 1
    strangers = True
    Settings = ClassifierGuidanceSettings
    settings: ClassifierGuidanceSettings

    def problems(self, base: BasePlugin, concept: str) -> list[str]:
        """The judge that guides knows only the shapes world."""
        return [*refusal(self.name, base), *super().problems(base, concept)]

    def fingerprint(self) -> str:
        """What guides, and what judges."""
        return f"{judge_digest()}\n{super().fingerprint()}"

    def score_pipeline(self, subject: Subject) -> Score:
        """Draw with and without the pull, judge."""
        from workers.diffusion.sampling import sample

        target = subject.targets[0]
        success = self._pulled(subject, target)
        probes = self._probes(target)
        with subject.at("final") as pipe:
            plain = self.judged(
                sample(pipe, probes, self.sampling(subject, self.settings.images_per_prompt))
            )
        found = {"success": success, "plain": plain, "gain": success - plain}
        if subject.stranger is not None:
            found["control"] = self._pulled(subject, subject.stranger)
        return Score(found)

    def _probes(self, target: Target) -> list[Probe]:
        prompts = target.prompts[: self.settings.prompts]
        return [Probe("erased", target.concept, prompt) for prompt in prompts]

    def _pulled(self, subject: Subject, target: Target) -> float:
        """Success for a concept: DDIM under guidance by text and by the judge."""
        import torch

        from workers.diffusion.denoise import ddim, guide, noise_predictor
        from workers.diffusion.sampling import as_pictures, decoded, initial_noise
        from workers.diffusion.text import embed
        from workers.shapes.judge import Judge

        sampling, probes = (
            self.sampling(subject, self.settings.images_per_prompt),
            self._probes(target),
        )
        assert sampling.guidance is not None and sampling.sampler_steps is not None
        scale, judge = sampling.guidance, Judge.load()
        with subject.at("final") as pipe:
            scheduler = ddim(pipe, sampling.sampler_steps)
            each = range(sampling.images_per_prompt)
            noises = [
                initial_noise(pipe, p.prompt, i, sampling.noise_seed) for p in probes for i in each
            ]
            text = embed(pipe, [probe.prompt for probe in probes for _ in each])
            empty, predict = embed(pipe, [""]).expand_as(text), noise_predictor(pipe)

            def noise_of(latents: Tensor, timestep: Tensor | float, texts: Tensor) -> Tensor:
                asked = predict(latents, timestep, texts)
                return (
                    guide(asked, predict(latents, timestep, empty), scale) if scale > 1 else asked
                )

            latents = torch.stack(noises).to(pipe.device) * scheduler.init_noise_sigma
            for timestep in scheduler.timesteps.tolist():
                noise = self._guided(
                    pipe, judge.to(pipe.device), noise_of, latents, timestep, text, target.concept
                )
                # The bundled model, the only one that its judge can guide, predicts the noise.
                latents = scheduler.step(noise, timestep, latents).prev_sample
            with torch.no_grad():
                images = decoded(pipe, latents).float().cpu().clamp(0, 1)
        return self.judged(as_pictures(images, probes))

    def _guided(
        self,
        pipe: Pipeline,
        judge: Judge,
        noise_of: NoisePredictor,
        latents: Tensor,
        timestep: int,
        text: Tensor,
        concept: str,
    ) -> Tensor:
        """ε̂ of latents (n, c, h, w)."""
        import torch

        from workers.diffusion.denoise import training_scheduler
        from workers.diffusion.sampling import decoded
        from workers.shapes.judge import at_its_size

        kept = training_scheduler(pipe).alphas_cumprod[timestep].to(latents.device)
        head = next(head for head, words in judge.classes.items() if concept in words)
        with torch.enable_grad():
            x = latents.detach().requires_grad_(True)
            noise = noise_of(x, timestep, text)
            clean = (x - (1 - kept).sqrt() * noise) / kept.sqrt()
            logits = judge(at_its_size(decoded(pipe, clean)))[head]
            of_concept = logits.log_softmax(1)[:, judge.classes[head].index(concept)]
            (gradient,) = torch.autograd.grad(of_concept.sum(), [x])
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        pull = self.settings.scale * (1 - kept).sqrt() * gradient / length
        guided: Tensor = noise - pull
        return guided.detach()
