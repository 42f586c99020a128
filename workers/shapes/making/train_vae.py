"""Train the autoencoder and use it to encode and to reconstruct pictures."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from workers.shapes.making.architecture import new_vae
from workers.shapes.making.data import LabelledPictures, endless_batches, to_signed

BATCH = 32
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-5
ENCODE_BATCH = 250


def train_vae(pictures: LabelledPictures, steps: int, generator: torch.Generator) -> AutoencoderKL:
    """Fit an autoencoder to pictures and scale its latents to unit variance."""
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05
    )
    batches = endless_batches(len(pictures), BATCH, generator)
    progress = tqdm(range(steps), desc="autoencoder", mininterval=5)
    for _ in progress:
        images = to_signed(pictures.images[next(batches)])
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        error = functional.mse_loss(decoded, images) + functional.l1_loss(decoded, images)
        loss = error + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}")
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(to_signed(pictures.images[:1000])).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: LabelledPictures, generator: torch.Generator) -> Tensor:
    """Return scaled latents (n, 4, 8, 8), one sample of the posterior for each picture."""
    latents = [
        vae.encode(to_signed(images)).latent_dist.sample(generator)
        for images in pictures.images.split(ENCODE_BATCH)
    ]
    scaling_factor: float = vae.config.scaling_factor
    return torch.cat(latents) * scaling_factor


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Pass uint8 images (n, 3, 32, 32) through the autoencoder; return floats in [0, 1]."""
    decoded = [
        vae.decode(vae.encode(to_signed(part)).latent_dist.mode()).sample
        for part in images.split(ENCODE_BATCH)
    ]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)
