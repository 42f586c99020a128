"""Plug-ins that do something small and real, and write down each time that they are asked to.

Found through RESURGE_PLUGINS, as a user's own would be. Each call appends a line to the file that
RESURGE_TEST_CALLS names, so calls in worker processes are seen as well.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field

from orchestrator.core.errors import CorruptObject
from orchestrator.core.settings import Settings
from orchestrator.executors.inline import Inline
from orchestrator.messages import StageCommitted, WorkOrder
from orchestrator.store.store import Store
from workers.interfaces.base import Base
from workers.interfaces.dataset import Dataset, Examples
from workers.interfaces.metric import Metric, Picture, Score, Subject, means
from workers.interfaces.unlearner import Erasure, Unlearned, Unlearner


def note(what: str) -> None:
    """Append a line to the file of calls."""
    if path := os.environ.get("RESURGE_TEST_CALLS"):
        with Path(path).open("a") as stream:
            stream.write(what + "\n")


class Noting(Inline):
    """Notes whether a sweep's results were written before its worker ended."""

    name = "noting"

    def shutdown(self) -> None:
        results = Path(os.environ["RESURGE_HOME"], "results")
        note(f"the worker ends, results written: {results.exists()}")
        super().shutdown()


class Finding(Inline):
    """Loses the file of the first score, and then reads it, as MLflow's writer may."""

    name = "finding"
    has_lost = False

    def submit(self, order: WorkOrder, worker: str) -> None:
        super().submit(order, worker)
        done = [event for event in self.events if isinstance(event, StageCommitted)]
        for record in (event.record for event in done if event.record.kind == "score"):
            if not self.has_lost:
                self.has_lost = True
                store = Store(order.store)
                [(name, blob)] = record.objects.items()
                store.files.delete(blob.path)
                with suppress(CorruptObject), store.object(record, name):
                    pass
                note(f"lost {record.key}: {store.record(record.key)}")


class Tiny(Base):
    """A randomly initialised pipeline in Stable Diffusion's layout."""

    name = "tiny"
    guidance = 2.0
    sampler_steps = 2

    def concepts(self) -> tuple[str, ...]:
        return ("star", "heart", "circle")

    def prompts(self, concept: str) -> tuple[str, ...]:
        return (f"a {concept}", f"a red {concept}")

    def retained(self, concept: str) -> tuple[str, ...]:
        return tuple(other for other in self.concepts() if other != concept)

    def never_known(self) -> str | None:
        return "bolt"

    def load(self, device: str):
        import torch
        from transformers import CLIPTextModel

        from workers.bases.shapes import Shapes

        note("load")
        pipe = Shapes(Shapes.Settings()).load("cpu")
        torch.manual_seed(0)
        pipe.vae = type(pipe.vae).from_config(pipe.vae.config).eval()
        pipe.text_encoder = CLIPTextModel(pipe.text_encoder.config).eval()
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config).eval()
        return pipe.to(device)


class Anything(Tiny):
    """Tiny that knows whatever it is asked for."""

    name = "anything"

    def concepts(self) -> None:  # type: ignore[override]
        return None

    def retained(self, concept: str) -> tuple[str, ...]:
        return ("heart",)


class NudgeSettings(Settings):
    amount: float = Field(0.01, description="added to every cross-attention value weight")
    fail: bool = Field(False, description="raise instead")
    die: str = Field("", description="kill the process if this file does not exist yet")
    leave: str = Field("", description="ask it to leave if this file does not exist yet")
    pid: str = Field("", description="write its number to this file")
    ask: int = Field(0, description="send this signal to its own process")


class Nudge(Unlearner):
    """Add a constant to the cross-attention's value weights."""

    name = "nudge"
    seeded = False
    Settings = NudgeSettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        import torch

        from workers.editing.edits import Weights
        from workers.runtime.progress import tell

        note(f"unlearn {self.settings.amount:g}")
        if self.settings.fail:
            raise RuntimeError("told to fail")
        if self.settings.die and not Path(self.settings.die).exists():
            Path(self.settings.die).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.settings.leave and not Path(self.settings.leave).exists():
            Path(self.settings.leave).touch()
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                tell(0, 1)  # raises once the signal is heard
        if self.settings.ask:
            os.kill(os.getpid(), self.settings.ask)
        if self.settings.pid:
            Path(self.settings.pid).write_text(str(os.getpid()))
        chosen = {n: p for n, p in erasure.pipe.unet.named_parameters() if "attn2.to_v" in n}
        with torch.no_grad():
            values = {
                f"unet.{name}": value + self.settings.amount for name, value in chosen.items()
            }
        return Unlearned([Weights(values)], {"amount": self.settings.amount})


class Shake(Nudge):
    """Nudge that claims to be random, so that each seed has one of its own."""

    name = "shake"
    seeded = True


class Dim(Nudge):
    """Make every picture a little darker, which `glow` takes for nothing left."""

    name = "dim"

    def unlearn(self, erasure: Erasure) -> Unlearned:
        import torch

        from workers.editing.edits import Weights

        note("dim")
        if self.settings.fail:
            raise RuntimeError("told to fail")
        bias = erasure.pipe.unet.conv_out.bias.detach()
        less = torch.tensor([0.0, 0, 1000 * self.settings.amount, 0])
        return Unlearned([Weights({"unet.conv_out.bias": bias - less})])


class SpoilSettings(Settings):
    part: Literal["weights", "autoencoder", "colour"] = Field("weights", description="what of")


class Spoil(Unlearner):
    """Leave a number in the model that is none, or an autoencoder that knows one colour only."""

    name = "spoil"
    seeded = False
    Settings = SpoilSettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        import torch

        from workers.editing.edits import Weights

        note(f"spoil {self.settings.part}")
        pipe = erasure.pipe
        if self.settings.part == "weights":
            bias = torch.full_like(pipe.unet.conv_out.bias, float("nan"))
            return Unlearned([Weights({"unet.conv_out.bias": bias})])
        last = pipe.vae.decoder.conv_out
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(float("nan") if self.settings.part == "autoencoder" else -1.0)
        return Unlearned([])


class WildSettings(Settings):
    what: Literal["nan", "inf"] = Field("nan", description="the number")
    of: Literal["mean", "picture"] = Field("mean", description="what has it")


class Wild(Metric):
    """A metric that computes what is no number."""

    name = "wild"
    Settings = WildSettings

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture]) -> Score:
        note("wild")
        number, values = float(self.settings.what), [0.5] * len(pictures)
        if self.settings.of == "mean":
            return Score({"erased": number}, values)
        return Score({"erased": 0.5}, [number, *values[1:]])


class DotsSettings(Settings):
    level: int = Field(128, ge=0, le=255, description="grey level")


class Dots(Dataset):
    """Grey squares."""

    name = "dots"
    uses_concept = False
    Settings = DotsSettings

    def examples(self, concept: str, size_px: int) -> Examples:
        import numpy as np

        note(f"dots {self.settings.level}")
        images = np.full((4, size_px, size_px, 3), self.settings.level, dtype=np.uint8)
        return Examples(images, ("a shape",) * 4)


class Brightness(Metric):
    """Mean pixel value in [0, 1]."""

    name = "brightness"

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture]) -> Score:
        note("brightness")
        values = [float(picture.image.mean()) / 255 for picture in pictures]
        return Score(means(pictures, values), values)


class Glow(Metric):
    """Brightness stretched so that the tiny base has most of it and a dimmed one none."""

    name = "glow"

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture]) -> Score:
        note("glow")
        values = [min(1.0, max(0.0, float(p.image.mean()) / 255 - 0.42) * 25) for p in pictures]
        return Score(means(pictures, values), values)


class Darkness(Brightness):
    """1 − brightness."""

    name = "darkness"

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture]) -> Score:
        note("darkness")
        values = [1 - float(picture.image.mean()) / 255 for picture in pictures]
        return Score({"erased": sum(values) / len(values)}, values)


class Drift(Metric):
    """Mean difference in brightness to the base's pictures of the same prompts."""

    name = "drift"
    reference = True
    per_picture = False
    values = (-1.0, 1.0)
    higher = "brighter than the base"

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture]) -> Score:
        note("drift")
        pairs = list(zip(pictures, reference, strict=True))
        assert all(one.probe == other.probe for one, other in pairs)
        differences = [float(p.image.mean()) - float(r.image.mean()) for p, r in pairs]
        return Score({"mean": sum(differences) / len(differences) / 255})


class Movement(Metric):
    """How far the UNet's output weights moved in the last fine-tuning, and on how many examples."""

    name = "movement"
    needs = "pipeline"
    of = frozenset({"finetune"})
    values = (0.0, None)
    higher = "farther from the model before fine-tuning"

    def score_pipeline(self, subject: Subject) -> Score:
        note(f"movement {subject.concept}")
        with subject.at("before") as pipe:
            before = pipe.unet.conv_out.weight.detach().clone()
        with subject.at("final") as pipe:
            moved = (pipe.unet.conv_out.weight.detach() - before).norm()
        examples = subject.examples()
        assert examples is not None
        return Score({"moved": float(moved), "examples": float(len(examples.images))})


class TripSettings(Settings):
    over: Literal["memory", "disk", "bug", "silence", "exit", "interrupt"] = Field(
        "bug", description="what over"
    )


class Trip(Unlearner):
    """Fail for want of something, in earnest."""

    name = "trip"
    seeded = False
    Settings = TripSettings

    def unlearn(self, erasure: Erasure) -> Unlearned:
        import torch

        note(f"trip {self.settings.over}")
        if self.settings.over == "memory":
            torch.empty(1 << 58, dtype=torch.uint8)
        if self.settings.over == "disk":
            with open("/dev/full", "w") as full:
                full.write("x" * 100_000)
        if self.settings.over == "silence":
            threading.Event().wait()
        if self.settings.over == "exit":
            sys.exit("no licence for this")
        if self.settings.over == "interrupt":
            raise KeyboardInterrupt("nobody pressed a key")
        raise RuntimeError("cannot reach postgresql://me:hunter22@db/studies")
