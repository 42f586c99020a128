"""Make everything in `weights/`: `python -m workers.shapes.making.train`. See weights/README.md."""

import argparse
import time
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from workers.shapes.judge import WEIGHTS
from workers.shapes.making.architecture import assemble, save_pipeline
from workers.shapes.making.card import write_card
from workers.shapes.making.data import draw_pictures
from workers.shapes.making.recipe import Recipe, write_record
from workers.shapes.making.train_diffusion import Denoiser, train_diffusion
from workers.shapes.making.train_judge import train_judge
from workers.shapes.making.train_vae import encode, train_vae


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights")
    for name, setting in Recipe.__dataclass_fields__.items():
        flag, text = "--" + name.replace("_", "-"), f"{setting.metadata['help']} (%(default)s)"
        parser.add_argument(flag, type=int, default=setting.default, help=text)
    settings = vars(parser.parse_args())
    out = settings.pop("out")
    train(out, Recipe(**settings))
    write_card(out)


def train(out: Path, recipe: Recipe) -> None:
    """Train autoencoder, judge and denoiser and write them, with a record of the run, to `out`."""
    started = time.monotonic()
    torch.set_num_threads(recipe.threads)
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw_pictures(recipe.pictures, seed=recipe.seed)
    vae = train_vae(pictures, recipe.vae_steps, seeded(recipe, "autoencoder"))
    judge = train_judge(
        vae, recipe.seed + 1, recipe.judge_pictures, recipe.judge_steps, seeded(recipe, "judge")
    )
    judge.save(out)

    def save(denoiser: Denoiser, step: int) -> None:
        save_pipeline(assemble(vae, denoiser.text_encoder, denoiser.unet), out / "pipeline")
        write_record(out, replace(recipe, unet_steps=step), time.monotonic() - started)

    generator = seeded(recipe, "denoiser")
    denoiser = train_diffusion(
        encode(vae, pictures, generator),
        pictures.labels,
        recipe.unet_steps,
        generator,
        recipe.save_every_steps,
        save,
    )
    save(denoiser, recipe.unet_steps)


def seeded(recipe: Recipe, part: str) -> torch.Generator:
    """Seed the initial weights of a part and return the generator of everything else about it."""
    seed = zlib.crc32(f"{recipe.seed} {part}".encode())
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    main()
