"""Look at a picture and say which shape, colour and fill it shows, or that it shows no shape."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from workers.shapes.vocabulary import ALL_SHAPES, COLORS, FILLS

WEIGHTS = Path(__file__).parent / "weights"
VERSION = 1
NONE = "none"
"""The shape class of empty, smeared and half-formed pictures."""
CLASSES: dict[str, tuple[str, ...]] = {
    "shape": (*ALL_SHAPES, NONE),
    "color": COLORS,
    "fill": FILLS,
}


class Judge(nn.Module):
    """A small convolutional classifier with one head for each of shape, colour and fill."""

    def __init__(self, classes: dict[str, tuple[str, ...]] = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            *_block(3, 16), *_block(16, 32, stride=2), *_block(32, 48),
            nn.MaxPool2d(2), *_block(48, 64), nn.MaxPool2d(2),
        )  # fmt: skip
        self.heads = nn.ModuleDict(
            {name: nn.Linear(64 * 4 * 4, len(words)) for name, words in classes.items()}
        )

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> "Judge":
        """Read a saved judge, ready to use."""
        about = json.loads((folder / "judge.json").read_text())
        judge = cls({name: tuple(words) for name, words in about["classes"].items()})
        judge.load_state_dict(
            {name: value.float() for name, value in load_file(folder / "judge.safetensors").items()}
        )
        return judge.eval().requires_grad_(False)

    def save(self, folder: Path = WEIGHTS) -> None:
        """Write the weights, in half precision, and the names of the classes."""
        weights = {
            name: value.half().contiguous() if value.is_floating_point() else value
            for name, value in self.state_dict().items()
        }
        save_file(weights, folder / "judge.safetensors")
        about = {"version": VERSION, "classes": self.classes}
        (folder / "judge.json").write_text(json.dumps(about, indent=2) + "\n")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (n, 3, 32, 32) in [0, 1] to logits (n, classes) for each head."""
        features = self.body(images * 2 - 1).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}

    def features(self, images: Tensor) -> Tensor:
        """What the heads look at, (n, 1024), of images (n, 3, height, width) in [0, 1]."""
        found: Tensor = self.body(at_its_size(images) * 2 - 1)
        return found.flatten(1)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (n, 3, height, width) in [0, 1] to probabilities (n, classes) for each head.

        The classes of a head are named, in order, by `self.classes[head]`.
        """
        logits = self(at_its_size(images.float()))
        return {name: values.softmax(1) for name, values in logits.items()}

    def names(self, images: Tensor) -> dict[str, list[str]]:
        """Name the most probable class of each head for each image."""
        return {
            head: [self.classes[head][index] for index in values.argmax(1).tolist()]
            for head, values in self.probabilities(images).items()
        }


def at_its_size(images: Tensor) -> Tensor:
    """Images (n, 3, height, width) as the judge takes them, (n, 3, 32, 32)."""
    if images.shape[-2:] == (32, 32):
        return images
    return functional.interpolate(images, size=(32, 32), mode="area")


def _block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
