"""Receler: small erasers behind cross-attention, trained against adversarial prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from orchestrator.core.settings import Preset, Presets
from workers.interfaces.unlearner import (
    Erasure,
    OutputSettings,
    Prompts,
    Unlearned,
    Unlearner,
    trained_on,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

PUBLISHED = {
    "prompts": "bare", "learning_rate": 3e-4, "iterations": 500, "batch_size": 1,
    "rank": 128, "attack_steps": 50, "attack_rate": 0.1, "attack_decay": 0.1, "soft_tokens": 16,
    "negative_guidance": 1.0, "local_weight": 0.1, "mask_threshold": 0.1, "start_guidance": 3.0,
    "sampler_steps": 50,
}  # fmt: skip


class RecelerSettings(OutputSettings):
    """The erasers, their adversary, and where they may act.

    Tuned to the shapes base (sweeps/tuning/receler.yaml), where training at one sentence, the bare
    concept, leaves a shape in two of five pictures, and the published weight of the regulariser
    (0.1) leaves a fill in one of three.
    """

    PRESETS: ClassVar[Presets] = {
        "sd": Preset(
            {"variant": "released", **PUBLISHED},
            "released", "jasper0314-huang/Receler at 3ccedc9, the training script",
        ),
        "sd-paper": Preset(
            {"variant": "paper", **PUBLISHED},
            "paper", "the paper's adversary, with the values of the released training script",
        ),
    }  # fmt: skip

    prompts: Prompts = trained_on("base")
    variant: Literal["paper", "released"] = Field(
        "released", description="as the paper says, or as the released code computes"
    )
    iterations: int = Field(100, ge=1, description="optimiser steps")
    learning_rate: float = Field(3e-3, gt=0, description="Adam's learning rate")
    batch_size: int = Field(8, ge=1, description="latents per step")
    rank: int = Field(32, ge=1, description="width of each eraser; 128 in the paper")
    attack_steps: int = Field(3, ge=1, description="steps of the adversary, every iteration")
    attack_rate: float = Field(0.1, gt=0, description="the adversary's learning rate (Adam)")
    attack_decay: float = Field(0.1, ge=0, description="the adversary's L2 term, in its gradient")
    soft_tokens: int = Field(4, ge=1, description="learned embeddings after the concept's word")
    negative_guidance: float = Field(1.0, ge=0, description="η of the erased target")
    local_weight: float = Field(0.03, ge=0, description="weight of what is added outside the mask")
    mask_threshold: float = Field(0.1, ge=0, le=1, description="of the attention, scaled to [0, 1]")
    start_guidance: float = Field(3.0, ge=0, description="guidance of the partial denoising")
    sampler_steps: int = Field(10, ge=1, description="DDIM steps of the partial denoising")


class Receler(Unlearner):
    """Bottleneck adapters after each cross-attention, erasing locally and against an adversary.

    Receler (Huang et al., "Reliable Concept Erasing of Text-to-Image Diffusion Models via
    Lightweight Erasers", ECCV 2024). The adversary is a few embeddings that stand in the text
    encoder's output after the concept's word; they are learned on from iteration to iteration, to
    make the erased model answer as the original does to the concept. Then ESD's loss at that text,
    plus w · mean of what the erasers add outside M (`outside`), where M is where the original's
    cross-attention looks at the concept's words (maps of a sixteenth of the latents' pixels: 16 ×
    16 for 64 × 64). x_t is drawn as ESD's code of 2023 does, by the model with its erasers.

    `released` is what the code does: the adversary's embeddings are written into a copy and never
    reach the model, which is asked and trained at the plain prompt; what they learn from is the
    gradient of the plain rows in their places. `paper` is the same with that one assignment made
    effective.
    """

    name = "receler"
    version = 3
    joint = True
    jointly = "each step draws from all concepts' prompts; one adversary for all"
    paper = "Huang et al., ECCV 2024"
    golden = "mask, regulariser, an iteration with its inner loop, both variants"
    Settings = RecelerSettings
    settings: RecelerSettings

    def passes(self) -> int:
        """Drawing, teacher and mask, the adversary, the trained pass."""
        from workers.erasure.stops import as_in_2023, drawing_passes

        s = self.settings
        trained = 3 if s.variant == "released" else 3 * s.attack_steps + 2
        drawn = drawing_passes(s.sampler_steps, s.batch_size, as_in_2023)
        return s.iterations * (drawn + (3 + trained) * s.batch_size)

    def unlearn(self, erasure: Erasure) -> Unlearned:
        """Train the erasers; the UNet's weights stay."""
        import torch

        from workers.diffusion.attention import recorded
        from workers.diffusion.denoise import predictor
        from workers.diffusion.rng import integers
        from workers.diffusion.text import embed, subject_words
        from workers.editing.adapters import Bottlenecks
        from workers.erasure.negative_guidance import draw, erased_noise
        from workers.erasure.stops import as_in_2023
        from workers.training.optimise import minimise

        s, pipe = self.settings, erasure.pipe
        erasers = Bottlenecks.new(pipe.unet, s.rank, erasure.seed)
        predict = predictor(pipe, s.loss_in)
        prompts, empty = embed(pipe, erasure.prompts), embed(pipe, [""])[0]
        words = subject_words(pipe, erasure.prompts, erasure.subjects)
        soft = SoftTokens.begin(s, prompts, words, erasure.seed)

        def backward(step: int) -> Tensor:
            which = integers(len(prompts), s.batch_size, erasure.seed, step, "prompts", pipe.device)
            text, subject = prompts[which], words[which]
            at = draw(erasure, s, pipe.unet, text, empty, step, as_in_2023)
            height, width = at[0].shape[-2:]
            with torch.no_grad(), erasers.off():
                with recorded(pipe.unet) as maps:
                    concept = predict(*at, text)
                mask = object_mask(maps, subject, height, width, s.mask_threshold)
                target = erased_noise(predict, *at, text, empty, s.negative_guidance)
            if s.variant == "paper":
                for _ in range(s.attack_steps - 1):
                    asked, rows = soft.after(text, subject)
                    soft.learn(mse_gradient(predict(*at, asked), concept, rows))
            asked, rows = soft.after(text, subject, only_in_a_copy=s.variant == "released")
            with erasers.recorded() as added:
                found = predict(*at, asked)
            erased, beside = terms(found, target, added, mask)
            loss = erased + s.local_weight * beside
            loss.backward(retain_graph=True, inputs=list(erasers.parameters().values()))
            # The erasers answer to the embeddings before their last step. As released, all steps
            # of an iteration have one gradient, since the prediction does not hang on them.
            gradient = mse_gradient(found, concept, rows)
            for _ in range(s.attack_steps if s.variant == "released" else 1):
                soft.learn(gradient)
            return loss.detach()

        with erasers.on(pipe):
            mean = minimise(erasure, s, erasers.parameters(), backward, carried=soft.state())
        return Unlearned([Bottlenecks(erasers.tensors())], {"loss": mean})


class SoftTokens:
    """The adversary: embeddings (1, k, width) in the text encoder's output, after a prompt's word.

    Adam, with an L2 term in the gradient, goes on over the whole training, so that its state is
    part of what a checkpoint keeps.
    """

    def __init__(self, start: Tensor, learning_rate: float, l2: float) -> None:
        import torch

        self.rows = torch.nn.Parameter(start)
        self._adam = torch.optim.Adam([self.rows], lr=learning_rate, weight_decay=l2)
        # As Adam itself would begin, but there before its first step: a checkpoint is read into it.
        self._adam.state[self.rows] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(self.rows),
            "exp_avg_sq": torch.zeros_like(self.rows),
        }

    @classmethod
    def begin(cls, s: RecelerSettings, prompts: Tensor, words: Tensor, seed: int) -> SoftTokens:
        """Uniform in [0, 1), for prompts (n, tokens, width) with the concept at `words`.

        As released, as many as there is room for: nothing hangs on them.

        Raises:
            ResurgeError: there is no room for them after the concept.
        """
        import torch

        from workers.diffusion.rng import generator

        room = words.shape[1] - int(_after(words).max())
        if s.soft_tokens > room and s.variant == "paper":
            raise ResurgeError(
                f"{s.soft_tokens} soft tokens do not fit after the concept, where the text encoder "
                f"reads {room} more; lower receler's soft_tokens"
            )
        shape = (1, min(s.soft_tokens, room), prompts.shape[2])
        start = torch.rand(shape, generator=generator(seed, 0, "soft tokens"))
        return cls(start.to(prompts.device), s.attack_rate, s.attack_decay)

    def state(self) -> dict[str, Tensor]:
        """The live tensors that learning changes in place."""
        kept = {f"soft.{name}": value for name, value in self._adam.state[self.rows].items()}
        return {"soft.rows": self.rows.detach(), **kept}

    def after(
        self, text: Tensor, words: Tensor, only_in_a_copy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (n, tokens, width) with the soft ones in the places after each row's words,
        bool (n, tokens); and the rows in those places, to differentiate by. `only_in_a_copy` leaves
        the text's own rows there.
        """
        import torch

        _, count, width = self.rows.shape
        places = _after(words)[:, None] + torch.arange(count, device=text.device)
        index = places[:, :, None].expand(-1, -1, width)
        rows = text.gather(1, index).requires_grad_() if only_in_a_copy else self.rows
        return text.scatter(1, index, rows.to(text.dtype).expand(len(text), -1, -1)), rows

    def learn(self, gradient: Tensor) -> None:
        """One step; gradient (1 or n, k, width), of which the sum over n counts."""
        self.rows.grad = gradient.sum(dim=0, keepdim=True)
        self._adam.step()


def _after(words: Tensor) -> Tensor:
    """The place (n,) after the last of each row's words, bool (n, tokens)."""
    import torch

    return (words * torch.arange(1, words.shape[1] + 1, device=words.device)).amax(dim=1)


def mse_gradient(found: Tensor, concept: Tensor, rows: Tensor) -> Tensor:
    """How a prediction comes nearer to what the original predicts of the concept, by `rows`."""
    import torch
    from torch.nn import functional

    loss = functional.mse_loss(found, concept)
    (gradient,) = torch.autograd.grad(loss, [rows], retain_graph=True)
    return gradient


def terms(
    found: Tensor, target: Tensor, added: Mapping[str, Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The erasing mean square, and the regulariser: the mean over the layers of `outside`."""
    from torch.nn import functional

    return functional.mse_loss(found, target), outside(added, mask).mean()


def object_mask(
    maps: Mapping[str, Tensor], words: Tensor, height: int, width: int, threshold: float
) -> Tensor:
    """Mean attention to the words, scaled to [0, 1] and cut: (n, 1, rows, columns) in {0, 1}.

    Of the layers' maps (n, heads, pixels, tokens) those nearest to a sixteenth of height · width.
    """
    import torch

    from workers.diffusion.denoise import at_least_fp32

    goal = height * width / 16
    sizes = {probs.shape[2] for probs in maps.values()}
    size = min(sizes, key=lambda pixels: abs(pixels - goal))
    share = (words / words.sum(dim=1, keepdim=True))[:, None, None, :]
    chosen = [at_least_fp32(p) * share for p in maps.values() if p.shape[2] == size]
    seen = torch.stack([p.sum(dim=3).mean(dim=1) for p in chosen]).mean(dim=0)
    low, high = seen.amin(dim=1, keepdim=True), seen.amax(dim=1, keepdim=True)
    mask = ((seen - low) / (high - low).clamp_min(1e-12) >= threshold).to(seen)
    rows = round((size * height / width) ** 0.5)
    return mask.view(len(mask), 1, rows, size // rows)


def outside(added: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """What the erasers add outside the mask, (layers,), in the order of `added`.

    Each Σ_pixels (1 - M) · mean_channels a² / (Σ_pixels (1 - M) + 1e-9), for what is added
    (n, pixels, channels) and M (n, 1, rows, columns), brought to the layer's size by nearest
    neighbours; the mean over n.
    """
    import torch
    from torch.nn import functional

    from workers.diffusion.denoise import at_least_fp32

    found = []
    for values in added.values():
        pixels = values.shape[1]
        rows = round((pixels * mask.shape[2] / mask.shape[3]) ** 0.5)
        here = functional.interpolate(mask, (rows, pixels // rows), mode="nearest").flatten(1)
        away, sizes = 1 - here, at_least_fp32(values).square().mean(dim=2)
        found.append(((away * sizes).sum(dim=1) / (away.sum(dim=1) + 1e-9)).mean())
    return torch.stack(found)
