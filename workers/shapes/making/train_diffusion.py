"""Train the text encoder and the UNet together to predict the noise in latents."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPTextModel

from workers.shapes.making.architecture import new_scheduler, new_text_encoder, new_unet
from workers.shapes.making.data import endless_batches
from workers.shapes.making.tokenizer import MAX_TOKENS, build_tokenizer
from workers.shapes.vocabulary import ALL_SHAPES, COLORS, FILLS, MENTIONS, caption, mentioned

BATCH = 64
LEARNING_RATE = 1e-3
WARMUP_STEPS = 200
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
MENTION_SHAPE_WEIGHT = 3.0
PLAIN_ARTICLE_SHARE = 0.5
"""Share of captions that say "a" even before a vowel, as prompts filled into "a {shape}" do."""


@dataclass
class Denoiser:
    """The two parts that are trained together."""

    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel


class MovingAverage:
    """An exponential moving average of parameters that forgets its first steps sooner."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters as they are."""
        self.updates += 1
        decay = min(EMA_DECAY, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the parameters' place for the duration of a block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the parameters."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            held = parameter.clone()
            parameter.copy_(value)
            value.copy_(held)


class Captioner:
    """Captions of pictures as token ids; which attributes a caption mentions is drawn at random."""

    def __init__(self) -> None:
        tokenizer = build_tokenizer()
        sizes = (len(MENTIONS), len(ALL_SHAPES), len(COLORS), len(FILLS), 2)
        texts = [
            caption(*mentioned((shape, color, fill), mention), article=article)
            for mention in MENTIONS
            for shape in ALL_SHAPES
            for color in COLORS
            for fill in FILLS
            for article in (None, "a")
        ]
        ids = tokenizer([*texts, ""], padding="max_length", return_tensors="pt").input_ids
        self.table = ids[:-1].view(*sizes, MAX_TOKENS)
        self.empty = ids[-1]
        self.weights = torch.tensor(
            [MENTION_SHAPE_WEIGHT if shape else 1.0 for shape, _, _ in MENTIONS]
        )

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return token ids (n, 16) of a true caption, or of none, for each of labels (n, 3)."""
        count = len(labels)
        mention = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        plain = (torch.rand(count, generator=generator) < PLAIN_ARTICLE_SHARE).long()
        ids = self.table[mention, labels[:, 0], labels[:, 1], labels[:, 2], plain]
        dropped = torch.rand(count, 1, generator=generator) < CAPTION_DROPOUT
        return torch.where(dropped, self.empty, ids)


def train_diffusion(
    latents: Tensor,
    labels: Tensor,
    steps: int,
    generator: torch.Generator,
    save_every_steps: int,
    save: Callable[[Denoiser, int], None],
) -> Denoiser:
    """Fit a denoiser to scaled latents (n, 4, 8, 8) with labels (n, 3); return its moving average.

    `save(denoiser, step)` is called every `save_every_steps` with the moving average in place.
    """
    denoiser = Denoiser(new_text_encoder(build_tokenizer()), new_unet())
    denoiser.unet.to(memory_format=torch.channels_last)
    parameters = [*denoiser.text_encoder.parameters(), *denoiser.unet.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    average = MovingAverage(parameters)
    captioner, scheduler = Captioner(), new_scheduler()
    batches = endless_batches(len(latents), BATCH, generator)
    progress = tqdm(range(1, steps + 1), desc="denoiser", mininterval=5)
    for step in progress:
        index = next(batches)
        clean, tokens = latents[index], captioner.draw(labels[index], generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(1000, (BATCH,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        text = denoiser.text_encoder(tokens).last_hidden_state
        loss = functional.mse_loss(denoiser.unet(noisy, timesteps, text).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.update()
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if step % save_every_steps == 0 and step < steps:
            with average.in_place():
                save(denoiser, step)
    average.swap()
    return denoiser


def _rate(step: int, steps: int) -> float:
    """Warm up linearly, hold, then decay to a hundredth over the second half."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    decay = min(1.0, 2 * (steps - step) / steps)
    return warmup * max(decay, 0.01)
