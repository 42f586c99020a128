"""Train the judge on pictures, on reconstructions of them, and on pictures that show no shape."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from workers.shapes.judge import CLASSES, NONE, Judge
from workers.shapes.making.data import LabelledPictures, draw_pictures, endless_batches, to_unit
from workers.shapes.making.train_vae import reconstruct
from workers.shapes.vocabulary import ALL_SHAPES

BATCH = 64
LEARNING_RATE = 2e-3
NONE_SHARE = 0.15
NONE_INDEX = CLASSES["shape"].index(NONE)


def train_judge(
    vae: AutoencoderKL, pictures_seed: int, count: int, steps: int, generator: torch.Generator
) -> Judge:
    """Fit a judge to `count` pictures of all shapes, half of them seen through `vae`."""
    pictures = draw_pictures(count, pictures_seed, ALL_SHAPES)
    views = torch.stack([to_unit(pictures.images), reconstruct(vae, pictures.images)])
    judge = Judge()
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    batches = endless_batches(len(pictures), BATCH, generator)
    spoiled = int(BATCH * NONE_SHARE)
    progress = tqdm(range(steps), desc="judge", mininterval=5)
    for _ in progress:
        index = next(batches)
        view = torch.randint(2, (BATCH,), generator=generator)
        images, labels = views[view, index], pictures.labels[index]
        images[:spoiled] = shapeless(images[:spoiled], labels[:spoiled], generator)
        labels[:spoiled, 0] = NONE_INDEX
        logits, shown = judge(augment(images, generator)), labels[:, 0] != NONE_INDEX
        # Colour and fill count only where there is a shape.
        loss = (
            functional.cross_entropy(logits["shape"], labels[:, 0], label_smoothing=0.01)
            + functional.cross_entropy(logits["color"][shown], labels[shown, 1])
            + functional.cross_entropy(logits["fill"][shown], labels[shown, 2])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}")
    return judge.eval().requires_grad_(False)


def judge_accuracy(judge: Judge, images: Tensor, pictures: LabelledPictures) -> dict[str, float]:
    """Return the share of images (n, 3, 32, 32) in [0, 1] that each head names rightly."""
    probabilities = judge.probabilities(images)
    return {
        head: (values.argmax(1) == pictures.labels[:, column]).float().mean().item()
        for column, (head, values) in enumerate(probabilities.items())
    }


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Vary images (n, 3, 32, 32) in brightness, sharpness and noise."""
    count = len(images)
    gain = 1 + 0.2 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    offset = 0.1 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    blur = 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    images = torch.lerp(images, functional.avg_pool2d(images, 3, 1, 1), blur)
    level = 0.06 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = level * torch.randn(images.shape, generator=generator)
    return (images * gain + offset + noise).clamp(0, 1)


def shapeless(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Spoil images (n, 3, 32, 32) with labels (n, 3) until none shows a shape.

    Each becomes an empty background, noise, a smear, an even blend with the next image (if that is
    of another shape), or a shuffle of its own patches.
    """
    count = len(images)
    background = images[:, :, :1, :1].expand_as(images)
    # Blotches of cells of four pixels.
    cells = torch.rand(count, 3, 8, 8, generator=generator)
    noise = torch.lerp(background, functional.interpolate(cells, 32, mode="bilinear"), 0.7)
    smear = functional.interpolate(functional.avg_pool2d(images, 16), 32, mode="bilinear")
    different = (labels[:, 0] != labels[:, 0].roll(1)).view(-1, 1, 1, 1)
    blend = torch.where(different, (images + images.roll(1, 0)) / 2, background)
    patches = functional.unfold(images, 8, stride=8)  # sixteen, shuffled the same way in all
    order = torch.randperm(patches.shape[-1], generator=generator)
    shuffled = functional.fold(patches[:, :, order], 32, 8, stride=8)
    ways = torch.stack([background, noise, smear, blend, shuffled])
    way = torch.randint(len(ways), (count,), generator=generator)
    return ways[way, torch.arange(count)]
