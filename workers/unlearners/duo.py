"""DUO: prefer a picture without the concept to the same picture with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.erasure.picture_method import AnchoredSettings, PictureUnlearner
from workers.interfaces.unlearner import Erasure, Unlearned

if TYPE_CHECKING:
    from torch import Tensor

    from workers.diffusion.denoise import NoisePredictor
    from workers.erasure.relabel import PictureSet


class DUOSettings(AnchoredSettings):
    """How the pairs are made, how strong the preference is, and how firmly all else is held.

    Tuned to the shapes base: sweeps/tuning/duo.yaml. No preset: the published β and λ go with how
    the authors' code sums errors over a latent, which was not compared.
    """

    iterations: int = Field(60, ge=1, description="optimiser steps")
    learning_rate: float = Field(5e-4, gt=0, description="Adam's learning rate")
    batch_size: int = Field(8, ge=1, description="pairs per step")
    group: Literal["full", "xattn", "noxattn"] = Field("xattn", description="what is trained")
    beta: float = Field(30.0, gt=0, description="β, how firmly the preference binds to the base")
    prior_weight: float = Field(10.0, ge=0, description="λ of keeping the output at pure noise")
    edit_strength: float = Field(
        0.75, gt=0, le=1, description="SDEdit's strength: the share of the noise steps gone back"
    )
    edit_steps: int = Field(10, ge=1, description="DDIM steps of the whole way, for the pairs")
    edit_guidance: float = Field(3.0, ge=0, description="guidance towards the anchor")


class DUO(PictureUnlearner):
    """Optimise a preference for pictures of an anchor over the same pictures of the concept.

    Direct Unlearning Optimization (Park et al., NeurIPS 2024). The model's own pictures of the
    concept, x⁻, are edited into x⁺ by SDEdit (Meng et al., ICLR 2022): noised to `edit_strength`
    of the way and denoised towards the anchor's prompt, away from the concept's. Then Diffusion-DPO
    (Wallace et al., CVPR 2024) with the same ε and t for both of a pair,
    -log σ(-β (d(x⁺) - d(x⁻))), d(x) = MSE(ε_θ(x_t), ε) - MSE(ε*(x_t), ε), and output preserving
    regularisation λ MSE(ε_θ(x_T), ε*(x_T)) at pure noise x_T, so that the model moves on what is
    seen in a picture and keeps what a prompt alone asks for. Both pictures are read under the
    concept's prompt. The paper trains a LoRA; here the weights themselves are trained, and errors
    are means over a picture, with which β goes.
    """

    name = "duo"
    version = 2
    uses = frozenset({"anchors"})
    joint = True
    jointly = "ours, published for one concept: all concepts' pictures are one forget set"
    paper = "Park et al., NeurIPS 2024"
    Settings = DUOSettings
    settings: DUOSettings

    def passes(self) -> int:
        """Each step's pairs, trained and frozen, and its pure noise; pairs are made once."""
        return self.settings.iterations * 12 * self.settings.batch_size

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Make the pairs, then train the group."""
        from workers.diffusion.denoise import noise_predictor
        from workers.erasure.relabel import PictureSet
        from workers.training.optimise import from_loss, train_weights
        from workers.training.selection import frozen_copy, select

        s, pipe = self.settings, erasure.pipe
        parameters = select(pipe.unet, s.group)
        frozen = noise_predictor(pipe, frozen_copy(pipe.unet, parameters))
        unsafe = PictureSet.of(pipe, erasure.materials["forget"])
        safe = self._edited(erasure, unsafe)
        student = noise_predictor(pipe)

        def loss(step: int) -> Tensor:
            batch = unsafe.batch(s.batch_size, erasure.seed, step, "pairs")
            without = unsafe.scheduler.add_noise(safe[batch.rows], batch.noise, batch.timesteps)
            text = unsafe.text[batch.rows]
            worse = excess(student, frozen, batch.noisy, batch.noise, batch.timesteps, text)
            better = excess(student, frozen, without, batch.noise, batch.timesteps, text)
            last = unsafe.scheduler.config.num_train_timesteps - 1
            kept = kept_at_noise(student, frozen, batch.noise, last, text)
            return preference(better, worse, s.beta) + s.prior_weight * kept

        return train_weights(erasure, s, parameters, from_loss(loss))

    def _edited(self, erasure: Erasure, pictures: PictureSet) -> Tensor:
        """SDEdit of every picture, latents (n, c, h, w): towards the anchor, from the concept."""
        import torch

        from workers.diffusion.denoise import ddim, guided
        from workers.diffusion.rng import normal
        from workers.diffusion.text import embed
        from workers.erasure.relabel import counterparts
        from workers.runtime.progress import tell

        s, pipe = self.settings, erasure.pipe
        prompts = erasure.materials["forget"].prompts
        anchor = embed(pipe, counterparts(prompts, erasure.prompts, erasure.anchor_prompts))
        noise = normal(pictures.latents.shape, erasure.seed, 0, "sdedit", pipe.device)
        edited = []
        with torch.no_grad():
            for rows in torch.arange(len(noise)).split(s.batch_size):
                sampler = ddim(pipe, s.edit_steps)
                back = max(1, round(s.edit_strength * s.edit_steps))
                steps = sampler.timesteps[-back:]
                at = steps[:1].to(pipe.device).expand(len(rows))
                x = pictures.scheduler.add_noise(pictures.latents[rows], noise[rows], at)
                predict = guided(pipe.unet, anchor[rows], pictures.text[rows], s.edit_guidance)
                for timestep in steps.tolist():
                    x = sampler.step(predict(x, timestep), timestep, x).prev_sample
                edited.append(x)
                tell(len(edited) * s.batch_size, len(noise))
        return torch.cat(edited)


def excess(
    student: NoisePredictor,
    frozen: NoisePredictor,
    noisy: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    text: Tensor,
) -> Tensor:
    """d (n,): by how much the student's error at x_t (n, c, h, w) is above the frozen model's."""
    import torch

    with torch.no_grad():
        before = (frozen(noisy, timesteps, text) - noise).square().flatten(1).mean(1)
    return (student(noisy, timesteps, text) - noise).square().flatten(1).mean(1) - before


def preference(better: Tensor, worse: Tensor, beta: float) -> Tensor:
    """-log σ(-β (d⁺ - d⁻)), the mean over pairs (n,): Diffusion-DPO (Wallace et al. 2024)."""
    from torch.nn import functional

    return -functional.logsigmoid(-beta * (better - worse)).mean()


def kept_at_noise(
    student: NoisePredictor, frozen: NoisePredictor, noise: Tensor, last: int, text: Tensor
) -> Tensor:
    """MSE(ε_θ(x_T), ε*(x_T)) at pure noise (n, c, h, w)."""
    import torch
    from torch.nn import functional

    with torch.no_grad():
        target = frozen(noise, last, text)
    return functional.mse_loss(student(noise, last, text), target)
