"""The settings of a training run, and the record of it beside the weights."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE_NAME = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """How much of what to train on. The defaults made the bundled weights."""

    seed: int = field(default=0, metadata={"help": "of every random draw"})
    pictures: int = field(default=30000, metadata={"help": "for the autoencoder and denoiser"})
    judge_pictures: int = field(default=8000, metadata={"help": "for the judge"})
    vae_steps: int = field(default=800, metadata={"help": "optimiser steps of the autoencoder"})
    judge_steps: int = field(default=1200, metadata={"help": "optimiser steps of the judge"})
    unet_steps: int = field(default=5000, metadata={"help": "optimiser steps of the denoiser"})
    save_every_steps: int = field(default=1000, metadata={"help": "denoiser steps between saves"})
    threads: int = field(default=2, metadata={"help": "CPU threads"})


def write_record(folder: Path, recipe: Recipe, training_seconds: float) -> None:
    """Write down what was trained and how long it took."""
    record = {**asdict(recipe), "training_seconds": round(training_seconds)}
    (folder / FILE_NAME).write_text(json.dumps(record, indent=2) + "\n")


def read_record(folder: Path) -> dict[str, int]:
    """Return the settings of a run and its `training_seconds`."""
    record: dict[str, int] = json.loads((folder / FILE_NAME).read_text())
    return record
