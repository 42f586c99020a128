"""Models in diffusers' layout whose weights, configurations or tokenizers are not sound."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from orchestrator.core.errors import ResurgeError
from tests.fuzz.cases import Answer, Area, Fault, damaged, resurge
from tests.fuzz.trees import changes, mutated
from workers.bases.diffusers import Diffusers
from workers.diffusion.sampling import sample_floats
from workers.interfaces.pipeline import PARTS, Pipeline
from workers.recipes import SampleSettings
from workers.shapes.judge import WEIGHTS

SOUND = WEIGHTS / "pipeline"
PLAN = """
name: fuzz
base: {{diffusers: {{source: {folder}, retained: [circle]}}}}
concept: star
edits: [{{unlearn: uce}}]
evaluate: {{metrics: [concept_accuracy]}}
resources: {{executor: inline}}
"""
DRAW = SampleSettings(images_per_prompt=1, guidance=2.0, sampler_steps=2, batch_size=1)


class Weights(Area):
    """A model is refused, or is the same each time it is loaded: nothing in it is made up.

    Where only names and shapes were changed, what is accepted must have the sound model's weights.
    What loads and cannot draw, the doctor must have seen.
    """

    name = "weights"
    full = 500
    quick = 12

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = folder / "model"
        self.sound = states(self.load(SOUND))
        self.weights = sorted(SOUND.rglob("*.safetensors"))
        self.texts = sorted(p for p in SOUND.rglob("*") if p.suffix in (".json", ".txt"))

    def case(self, rng: random.Random) -> str:
        shutil.rmtree(self.model, ignore_errors=True)
        shutil.copytree(SOUND, self.model, copy_function=os.link)
        names, texts = [self.names] * 2, [self.texts_wrong] * 2
        must_be_same = rng.choice((*names, *texts, self.bytes_wrong, self.files))(rng)
        answer = resurge("doctor", str(self.model))
        self.plan()
        loaded = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            try:
                loaded.append(self.load(self.model))
            except ResurgeError as error:
                loaded.append(None)
                self.check_refusal(error, answer)
        if None in loaded:
            if loaded != [None, None]:
                raise Fault("loaded once and refused once")
            return "refused"
        one, other = (states(pipe) for pipe in loaded)
        if names := differing(one, other):
            raise Fault(f"random numbers: two loads differ in {names}")
        if must_be_same and (names := differing(one, self.sound)):
            raise Fault(f"other weights than the sound model's: {names}")
        return self.draw(loaded[0], answer)

    def load(self, folder: Path) -> Pipeline:
        return Diffusers(Diffusers.Settings(source=str(folder))).load("cpu")

    def plan(self) -> None:
        """It may be refused here already; what it costs and gives is not looked at."""
        file = self.folder / "sweep.yaml"
        file.write_text(PLAN.format(folder=json.dumps(str(self.model))))
        resurge("plan", str(file))

    def check_refusal(self, error: ResurgeError, answer: Answer) -> None:
        if not str(error).strip():
            raise Fault("refused without a reason")
        if answer.code == 0:
            raise Fault(f"the doctor calls sound what is refused: {error}\n{answer.out}")

    def draw(self, pipe: Pipeline | None, answer: Answer) -> str:
        try:
            sample_floats(pipe, ["a star"], DRAW)
        except Exception as error:
            if answer.code == 0:
                raise Fault(
                    f"the doctor calls sound what cannot draw: {error!r}\n{answer.out}"
                ) from error
            return "loaded, and the doctor refuses it"
        return "loaded and drew" if answer.code == 0 else "loaded, and the doctor refuses it"

    # What is done to the copy: each says whether what is accepted must be the sound model

    def rewrite(self, path: Path, content: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    def names(self, rng: random.Random) -> bool:
        """Tensors missing, renamed, reshaped, of another type, too many."""
        source = rng.choice(self.weights)
        path = self.model / source.relative_to(SOUND)
        tensors = load_file(source)
        some = rng.sample(sorted(tensors), min(len(tensors), rng.choice((1, 1, 2, 10, 1000))))
        what = rng.choice(("missing", "renamed", "reshaped", "cut", "more", "double", "module"))
        for name in some:
            value = tensors[name]
            match what:
                case "missing":
                    del tensors[name]
                case "renamed":
                    tensors[name + rng.choice(("_", ".weight", "2"))] = tensors.pop(name)
                case "reshaped":
                    tensors[name] = value.unsqueeze(-1)
                case "cut":
                    tensors[name] = value[:-1].clone()
                case "more":
                    tensors[f"{name}.more"] = value.clone()
                case "double":
                    tensors[name] = value.double()
                case "module":
                    tensors[f"module.{name}"] = tensors.pop(name)
        path.unlink()
        save_file(tensors, path, metadata=rng.choice(({"format": "pt"}, None)))
        self.say(f"{path.relative_to(self.model)}: {what}: {some[:10]}")
        return True

    def bytes_wrong(self, rng: random.Random) -> bool:
        """The header or anything else of a safetensors file."""
        source = rng.choice(self.weights)
        content = source.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        how = rng.choice(("header", "header", "length", "any", "cut", "tree"))
        match how:
            case "header":
                content = (
                    content[:8] + damaged(content[8 : 8 + length], rng) + content[8 + length :]
                )
            case "length":
                new = rng.choice(
                    (0, 1, length - 1, length + 1, length * 2, 2**32, 2**63, 2**64 - 1)
                )
                content = struct.pack("<Q", new) + content[8:]
            case "any":
                content = damaged(content, rng)
            case "cut":
                content = content[: rng.randrange(len(content))]
            case "tree":
                tree = json.loads(content[8 : 8 + length])
                header = json.dumps(mutated(tree, rng), ensure_ascii=True).encode()
                content = struct.pack("<Q", len(header)) + header + content[8 + length :]
        path = self.model / source.relative_to(SOUND)
        self.rewrite(path, content)
        self.say(f"{path.relative_to(self.model)}: {how}")
        return how == "cut"

    def texts_wrong(self, rng: random.Random) -> bool:
        """A configuration's or a tokenizer's text."""
        source = rng.choice(self.texts)
        content = source.read_bytes()
        path = self.model / source.relative_to(SOUND)
        how = rng.choice(("tree", "tree", "tree", "bytes", "empty"))
        if how == "tree" and source.suffix == ".json":
            tree: Any = json.loads(content)
            new = mutated(tree, rng)
            how += f" {changes(tree, new)!r:.500}"
            content = json.dumps(new).encode()
        elif how == "empty":
            deep = (b"[" * 50_000, b'{"a":' * 20_000)
            content = rng.choice((b"", b"{}", b"[]", b"null", b"\xff\xfe", *deep))
            how += f" {content[:10]!r}"
        else:
            content = damaged(content, rng)
        self.rewrite(path, content)
        self.say(f"{path.relative_to(self.model)}: {how}")
        return False

    def files(self, rng: random.Random) -> bool:
        """A file or folder missing, swapped with another's, or in another's place."""
        files = [*self.weights, *self.texts]
        one, other = (self.model / p.relative_to(SOUND) for p in rng.sample(files, 2))
        how = rng.choice(("missing", "part missing", "swapped", "folder", "dead link", "loop"))
        match how:
            case "missing":
                one.unlink()
            case "part missing":
                shutil.rmtree(one.parent if one.parent != self.model else other.parent)
            case "swapped":
                content = one.read_bytes()
                self.rewrite(one, other.read_bytes())
                self.rewrite(other, content)
            case "folder":
                one.unlink()
                one.mkdir()
            case "dead link":
                one.unlink()
                one.symlink_to("nowhere")
            case "loop":
                one.unlink()
                one.symlink_to(one.name)
        self.say(f"{how}: {one.relative_to(self.model)}, {other.relative_to(self.model)}")
        return False


def states(pipe: Pipeline) -> dict[str, torch.Tensor]:
    """Every weight of the pipeline by name."""
    return {
        f"{part}.{name}": value
        for part in PARTS
        for name, value in getattr(pipe, part).state_dict().items()
    }


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names whose values are not the same, bit for bit."""
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one
        or name not in other
        or one[name].shape != other[name].shape
        or not torch.equal(one[name].nan_to_num(7), other[name].nan_to_num(7))
    ][:10]
