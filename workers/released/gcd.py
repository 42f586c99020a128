"""GIPHY's celebrity detector as an image classifier of transformers.

The checkpoint is a ResNet-50 whose single linear layer was replaced by two with nothing between
them: fc2(fc1(x)) = (W2 W1) x + (W2 b1 + b2), one linear layer again, so nothing is lost. Its layers
are numbered as torchvision's ResNet lists them (stem.0 is conv1, stem.4 is layer1); torchvision's
own names are read too.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import some
from workers.data.loading import NO_WEIGHTS, be_quiet, refuse_wrong_keys
from workers.released.reading import load_safetensors
from workers.runtime.finite import NotFinite, check_tensors

SIDE_PX = 224
TORCHVISION = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
"""torchvision's names of the layers that the checkpoint numbers."""
OF_TRAINING = re.compile(r"(^|\.)(center_loss_)?criterion\.")
"""Tensors of the loss that it was trained with, which no prediction reads."""
LABEL = re.compile(r"(?P<name>.+?)(_\[[^\]]*\])?")
"""A class as the label file writes it: "Aaron_Paul_[m.03qj7gf]"."""
NORMALIZATION = r"(weight|bias|running_mean|running_var)"
BLOCK = r"^layer([1-4])\.(\d+)\."


def convert(weights: Path, labels: Path, folder: Path, allow_pickle: bool) -> int:
    """Write a folder that `face_id` reads as its `model`; the number of its classes.

    Raises:
        ResurgeError: the checkpoint or the labels are not what they must be, or there is already
            something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResurgeError(f"--to: {str(folder)!r} is there already; name a folder that is not")
    names = read_labels(labels)
    tensors = in_transformers_names(str(weights), _read(weights, allow_pickle))
    classes = len(tensors["classifier.1.weight"])
    if classes != len(names):
        raise ResurgeError(
            f"{weights} knows {classes} classes but {labels} names {len(names)}; "
            "take the label file that came with the checkpoint"
        )
    _save(str(weights), tensors, names, folder)
    return classes


def read_labels(path: Path) -> tuple[str, ...]:
    """The names of the classes by their number, as people write them.

    The detector numbers its classes by the alphabet, and its label file says so once more. Two
    people of one name keep what tells them apart beside it; the name finds both.

    Raises:
        ResurgeError: the file is of another kind, or its numbers are not those.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row][1:]
        indices = {row[0]: int(row[1]) for row in rows}
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise ResurgeError(
            f"--labels: cannot read {path}: {error}; it must be a CSV file with a first line and "
            "a label and its number in each other line, as the detector's labels.csv"
        ) from error
    ordered = sorted(indices)
    if not ordered or len(indices) < len(rows):
        raise ResurgeError(f"--labels: {path} must name each class once and at least one")
    if [indices[label] for label in ordered] != list(range(len(ordered))):
        raise ResurgeError(
            f"--labels: the numbers in {path} are not 0, 1, 2, … in the order of the labels, as "
            "the detector counts its classes; it belongs to another checkpoint"
        )
    names = [_plain(label) for label in ordered]
    count = Counter(names)
    return tuple(
        name if count[name] == 1 else f"{name}, {label}"
        for name, label in zip(names, ordered, strict=True)
    )


def _plain(label: str) -> str:
    match = LABEL.fullmatch(label)
    return (match["name"] if match else label).replace("_", " ").strip()


def in_transformers_names(where: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors as those of ResNetForImageClassification, its head folded into one.

    Raises:
        ResurgeError: it is no ResNet with one or two linear layers, or numbers are not finite.
    """
    own = _without_prefix(where, tensors)
    try:
        check_tensors(own, where, "take the checkpoint again")
    except NotFinite as error:
        raise ResurgeError(str(error)) from error
    head = {name: value for name, value in own.items() if name.startswith("fc")}
    weight, bias = _folded(where, head)
    found = {_renamed(name): value for name, value in own.items() if name not in head}
    return {**found, "classifier.1.weight": weight, "classifier.1.bias": bias}


def _without_prefix(where: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By torchvision's names, whatever wraps them ("model.stem.0.weight" is "conv1.weight")."""
    firsts = [n for n in tensors if re.search(r"(^|\.)(stem\.0|conv1)\.weight$", n)]
    first = min(firsts, key=len, default=None)  # every block has a conv1 too, deeper inside
    if first is None:
        raise ResurgeError(
            f"{where} is no checkpoint of the celebrity detector: it must hold a ResNet-50 "
            f"(stem.0.weight or conv1.weight) but holds {some(sorted(tensors))}"
        )
    prefix = re.sub(r"(stem\.0|conv1)\.weight$", "", first)
    inside = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    outside = [n for n in tensors if not n.startswith(prefix) and not OF_TRAINING.search(n)]
    refuse_wrong_keys("ResNet-50", where, unexpected=outside)
    return {
        re.sub(r"^stem\.([0-7])(?=\.)", lambda m: TORCHVISION[int(m[1])], name): value
        for name, value in inside.items()
        if not NO_WEIGHTS.search(name) and not OF_TRAINING.search(name)
    }


def _renamed(name: str) -> str:
    """transformers' name of torchvision's; what it does not know is left for the check."""
    for pattern, into in (
        (r"^conv1\.weight$", "embedder.embedder.convolution.weight"),
        (rf"^bn1\.{NORMALIZATION}$", r"embedder.embedder.normalization.\1"),
    ):
        name, changed = re.subn(pattern, f"resnet.{into}", name)
        if changed:
            return name
    match = re.match(BLOCK, name)
    if match is None:
        return name
    rest = name[match.end() :]
    rest = re.sub(r"^conv([123])\.", lambda m: f"layer.{int(m[1]) - 1}.convolution.", rest)
    rest = re.sub(r"^bn([123])\.", lambda m: f"layer.{int(m[1]) - 1}.normalization.", rest)
    rest = rest.replace("downsample.0.", "shortcut.convolution.")
    rest = rest.replace("downsample.1.", "shortcut.normalization.")
    return f"resnet.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.{rest}"


def _folded(where: str, head: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One linear layer (classes, features), (classes,) of `fc`, or of `fc1` and then `fc2`."""
    names = ["fc"] if "fc.weight" in head else ["fc1", "fc2"]
    needed = {f"{name}.{what}" for name in names for what in ("weight", "bias")}
    refuse_wrong_keys(
        "ResNet-50", where, missing=needed - head.keys(), unexpected=head.keys() - needed
    )
    weight, bias = (head[f"{names[0]}.{what}"].double() for what in ("weight", "bias"))
    for name in names[1:]:
        after, shift = (head[f"{name}.{what}"].double() for what in ("weight", "bias"))
        if after.shape[1] != weight.shape[0]:
            raise ResurgeError(f"{where}: {name}.weight does not fit the layer before it")
        weight, bias = after @ weight, after @ bias + shift
    return weight.float(), bias.float()


def _read(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    """A file's tensors on the CPU; of a pickle those that torch reads without running its code."""
    if not path.is_file():
        raise ResurgeError(f"there is no file {str(path)!r}")
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    if not allow_pickle:
        raise ResurgeError(
            f"{str(path)!r} is no .safetensors file, and any other checkpoint is a pickle; say "
            "--allow-pickle to read it with torch's weights-only reader, which runs no code of it"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises whatever it trips over
        why = str(error).strip().splitlines()
        raise ResurgeError(
            f"torch's weights-only reader cannot read {path}: {why[0] if why else repr(error)}; "
            "where you trust the file, read it once by hand and save its tensors with "
            "safetensors.torch.save_file"
        ) from error
    state = found.get("model_state", found) if isinstance(found, Mapping) else {}
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors or len(tensors) < len(state):
        raise ResurgeError(
            f"{path} must hold a state dict, or one as 'model_state', but holds "
            f"{_what(found)}; save the state dict alone"
        )
    return tensors


def _what(found: object) -> str:
    return some(list(map(str, found))) if isinstance(found, Mapping) else type(found).__name__


def _save(where: str, tensors: Mapping[str, Tensor], names: Sequence[str], folder: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    be_quiet()
    config = ResNetConfig(  # its other defaults are ResNet-50's
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    model = ResNetForImageClassification(config)
    own = {n: tuple(v.shape) for n, v in model.state_dict().items() if not NO_WEIGHTS.search(n)}
    theirs = {name: tuple(value.shape) for name, value in tensors.items()}
    refuse_wrong_keys(
        "ResNet-50",
        where,
        missing=own.keys() - theirs.keys(),
        unexpected=theirs.keys() - own.keys(),
        mismatched=[n for n in own.keys() & theirs.keys() if own[n] != theirs[n]],
    )
    model.load_state_dict(dict(tensors), strict=False)  # but for counters of training
    model.save_pretrained(folder)
    # A face is scaled to the square, whatever its shape, and its values are 0 to 1.
    ViTImageProcessorPil(
        size={"height": SIDE_PX, "width": SIDE_PX},
        resample=2,  # bilinear
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=False,
    ).save_pretrained(folder)
