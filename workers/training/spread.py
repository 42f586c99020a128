"""Fine-tuning spread over the several GPUs of a worker: a process each, one model.

Every process has the whole model and takes its slice of each micro-batch; what is random is drawn
for the whole one. Gradients are summed over the processes, so all of them take the very same steps
and end, up to rounding, where a single one would. The worker's own pipeline gets the weights when
they are looked at. The processes are spawned, because CUDA does not survive a fork, and are told
of paths and settings: weights and training states pass through safetensors files.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from orchestrator.core.artifacts import Cause
from orchestrator.core.registry import find
from workers.data.prepared import read_examples
from workers.editing.edit_file import load_edits, save_edits
from workers.editing.edits import live_parameters
from workers.editing.learned_token import LearnedToken
from workers.editing.pipeline import WarmPipeline
from workers.interfaces.base import Base
from workers.interfaces.edit import ModelEdit
from workers.recipes import FinetuneSettings
from workers.runtime.causes import FailedElsewhere, cause_of, message_of
from workers.runtime.parts import in_parts, parts
from workers.runtime.progress import TellProgress, heard_by, tell
from workers.training.checkpoints import load_tensors, save_tensors
from workers.training.finetune import Trainer, new_token
from workers.training.loop import LossNotFinite

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from workers.interfaces.pipeline import Pipeline

TENSORS = "tensors.safetensors"
EDITS = "edits.safetensors"
PRIOR = "prior.safetensors"
LOOK_EVERY_S = 0.5
"""How often the worker asks whether the state is to be saved."""
END_WITHIN_S = 5.0
"""So long is waited for processes that end, to find which one was the first."""


@dataclass(frozen=True)
class _Order:
    """What each process needs to make the trainer that a worker alone would have."""

    base: str
    base_settings: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    dataset: Path
    folder: Path
    device: str
    processes: int
    threads: int
    matmul_precision: str
    parts: int


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a process."""

    cause: Cause
    message: str
    trace: str
    curve: tuple[tuple[int, float], ...]


class SpreadTrainer:
    """A `Trainer` that several processes are; `warm.pipe` gets what they train.

    Args:
        warm: the model to begin with.
        dataset: the file of the prepared data set; read before this returns.
        processes: how many; each gets a GPU of its own if the model is on one.
        prior: as `Trainer` takes it.
    """

    def __init__(
        self,
        warm: WarmPipeline,
        settings: FinetuneSettings,
        dataset: Path,
        seed: int,
        processes: int,
        prior: Tensor | None = None,
    ) -> None:
        self.step = 0
        self.losses: list[tuple[int, float]] = []
        self._warm, self._settings, self._shown = warm, settings, 0
        self._folder = tempfile.TemporaryDirectory(prefix="resurge-spread-")
        folder = Path(self._folder.name)
        self._file = folder / TENSORS
        save_edits(folder / EDITS, warm.now())
        if prior is not None:
            save_tensors(folder / PRIOR, {"latents": prior})
        self.learned, self._forget = new_token(warm.pipe, settings)
        order = _Order(
            base=warm.base.name,
            base_settings=warm.base.settings.model_dump(),
            settings=settings.model_dump(),
            seed=seed,
            dataset=dataset,
            folder=folder,
            device=warm.pipe.device.type,
            processes=processes,
            threads=max(1, torch.get_num_threads() // processes),
            matmul_precision=torch.get_float32_matmul_precision(),
            parts=parts(),
        )
        context = multiprocessing.get_context("spawn")
        self._is_due = context.Event()
        self._processes: dict[Connection, BaseProcess] = {}
        # Whatever becomes of the trainer, its processes do not outlive it.
        self._close = weakref.finalize(self, _end, self._processes, self._folder)
        with self._closed_on_error(), _found_first():
            for rank in range(processes):
                ours, theirs = context.Pipe()
                args = (rank, order, theirs, self._is_due)
                process = context.Process(target=_take_part, args=args, daemon=True)
                process.start()
                theirs.close()  # so that the pipe breaks when the process ends
                self._processes[ours] = process
            self._answers()

    def train_to(
        self,
        stop: int,
        progress: TellProgress | None = None,
        is_due: Callable[[], bool] = lambda: False,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """As `Trainer.train_to`; a state that is due is saved within a second and a step.

        Raises:
            LossNotFinite: the weights are then worthless.
            FailedElsewhere: one of the processes failed.
        """

        def heard(new: Sequence[tuple[int, float]]) -> None:
            self.losses += new
            self.step = self.losses[-1][0]
            if progress is not None:
                progress(self.step, stop, {"loss": self.losses[-1][1]})

        def look() -> None:
            if is_due():
                self._is_due.set()

        with self._closed_on_error():
            while self.step < stop:
                self._is_due.clear()
                look()
                self._ask("train", stop, heard=heard, meanwhile=look)
                if self.step < stop:
                    save()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `Trainer.state`."""
        values = self._ask("state")
        return load_tensors(self._file), values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """As `Trainer.load_state`."""
        _write(self._file, tensors)
        self._ask("load_state", values)
        self.step = int(values["trainer"]["step"])
        self.losses = [(int(step), float(loss)) for step, loss in values["losses"]]

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """As `Trainer.evaluation`."""
        self._show()
        yield

    def beside(self) -> tuple[ModelEdit, ...]:
        """As `Trainer.beside`."""
        return () if self.learned is None else (self.learned.kept(),)

    def finish(self) -> tuple[ModelEdit, ...]:
        """As `Trainer.finish`; the processes end."""
        self._show()
        self._close()
        self._forget()
        return self.beside()

    @torch.no_grad()
    def _show(self) -> None:
        """Put the weights as they are to be judged into the worker's pipeline."""
        if self._shown == self.step:
            return
        self._ask("weights")
        found = load_tensors(self._file)
        for name, value in self._trained().items():
            value.copy_(found[name])
        self._shown = self.step

    def _trained(self) -> dict[str, Tensor]:
        return _trained(self._warm.pipe, self._settings, self.learned)

    def _ask(
        self,
        command: str,
        *args: Any,
        heard: Callable[[Any], None] = lambda losses: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Any:
        """Have every process do something; what the first one answers."""
        with self._closed_on_error():
            for connection in self._processes:
                with contextlib.suppress(OSError):  # it has ended: that is found out below
                    connection.send((command, *args))
            return self._answers(heard, meanwhile)

    def _answers(
        self,
        heard: Callable[[Any], None] = lambda losses: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Any:
        answer, waiting = None, list(self._processes)
        first = waiting[0]
        while waiting:
            for connection in wait(waiting, timeout=LOOK_EVERY_S):
                assert isinstance(connection, Connection)
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    raise self._failure(None) from None
                if kind == "failed":
                    raise self._failure(value)
                if kind == "tell":
                    tell(*value)
                elif kind == "losses":
                    heard(value)
                else:
                    waiting.remove(connection)
                    answer = value if connection is first else answer
            meanwhile()
        return answer

    def _failure(self, said: _Failure | None) -> Exception:
        """What went wrong first: where a process was killed, the others just miss it."""
        count = len(self._processes)
        for process in self._processes.values():
            if said is None or said.cause == "bug":
                process.join(END_WITHIN_S / count)
            if (code := process.exitcode or 0) < 0:
                what = f"one of {count} processes that train together was killed by signal {-code}"
                return FailedElsewhere(what, "oom" if -code == signal.SIGKILL else "bug")
        if said is None:
            return FailedElsewhere(f"one of {count} processes that train together ended", "bug")
        error: Exception = FailedElsewhere(said.message, said.cause)
        if said.cause == "nan":
            error = LossNotFinite(said.message, ())
            error.curve = said.curve
        error.add_note(said.trace)
        return error

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._close()
            raise


@contextmanager
def _found_first() -> Iterator[None]:
    """Inside, what is spawned finds our packages before a user's own of the same name."""
    beside_us = str(Path(__file__).parents[2])
    sys.path.insert(0, beside_us)
    try:
        yield
    finally:
        sys.path.remove(beside_us)


def _trained(
    pipe: Pipeline, settings: FinetuneSettings, learned: LearnedToken | None
) -> dict[str, Tensor]:
    """What training may move: weights, or a token's embedding."""
    if learned is not None:
        return {"token": learned.value}
    start = ("unet.", "text_encoder.") if settings.train_text_encoder else ("unet.",)
    return {name: v for name, v in live_parameters(pipe).items() if name.startswith(start)}


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """As a new file: tensors that were read from the one before are still mapped from it."""
    save_tensors(path.with_suffix(".new"), tensors)
    path.with_suffix(".new").replace(path)


def _end(processes: Mapping[Connection, BaseProcess], folder: Any) -> None:
    for process in processes.values():
        process.kill()
    for connection, process in processes.items():
        process.join()
        connection.close()
    folder.cleanup()


def _take_part(rank: int, order: _Order, connection: Connection, is_due: Event) -> None:
    """A process, from its begin to its end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # to end it is the worker's, which saves first
    threading.Thread(target=_leave_with_the_worker, daemon=True).start()
    try:
        with in_parts(order.parts):
            part = _Part(rank, order, connection, is_due)
            connection.send(("answer", None))
            while True:
                command, *args = connection.recv()
                connection.send(("answer", getattr(part, command)(*args)))
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        curve = getattr(error, "curve", ())
        with contextlib.suppress(OSError):  # nobody is there to hear it
            said = _Failure(cause_of(error), message_of(error), trace, curve)
            connection.send(("failed", said))
        os._exit(1)  # at once: what torch does at an end may wait for the other processes


def _leave_with_the_worker() -> None:
    worker = multiprocessing.parent_process()
    assert worker is not None
    wait([worker.sentinel])
    os._exit(1)


class _Paused(Exception):
    """The worker wants the state."""


class _Part:
    """What a process has, and what the worker can ask of it. Files are the first one's to write."""

    def __init__(self, rank: int, order: _Order, connection: Connection, is_due: Event) -> None:
        self.is_first, self.connection, self.is_due = rank == 0, connection, is_due
        self.file = order.folder / TENSORS
        _meet(rank, order)
        settings = FinetuneSettings.model_validate(order.settings)

        def hear(done: int, total: int, numbers: Mapping[str, float]) -> None:
            if self.is_first:
                connection.send(("tell", (done, total)))

        with heard_by(hear):
            cls = find("base", order.base)
            base = cast(Base, cls(cls.Settings.model_validate(order.base_settings)))
            device = f"cuda:{rank}" if order.device == "cuda" else order.device
            warm = WarmPipeline(base, device)
            warm.put(load_edits(order.folder / EDITS))
            file = order.folder / PRIOR
            prior = load_tensors(file)["latents"] if file.exists() else None
            examples = read_examples(order.dataset)
            self.trainer = Trainer(warm.pipe, settings, examples, order.seed, prior)

    def train(self, stop: int) -> None:
        """Train until there, or until the state is due."""
        told = len(self.trainer.losses)

        def progress(done: int, total: int, numbers: Mapping[str, float]) -> None:
            nonlocal told
            if self.is_first:
                self.connection.send(("losses", self.trainer.losses[told:]))
                told = len(self.trainer.losses)

        def pause() -> None:
            raise _Paused

        with contextlib.suppress(_Paused):
            self.trainer.train_to(stop, progress, self.is_due.is_set, pause)

    def state(self) -> Mapping[str, Any]:
        """Write the training state's tensors; what stands beside them."""
        tensors, values = self.trainer.state()
        if self.is_first:
            _write(self.file, tensors)
        return values

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Go on from what the worker wrote."""
        self.trainer.load_state(load_tensors(self.file), values)

    def weights(self) -> None:
        """Write what is trained as it is to be judged."""
        if self.is_first:
            with self.trainer.evaluation():
                trainer = self.trainer
                _write(self.file, _trained(trainer.pipe, trainer.settings, trainer.learned))


def _meet(rank: int, order: _Order) -> None:
    """Join the others: gradients go over NCCL between GPUs, agreements over gloo."""
    torch.set_num_threads(order.threads)
    torch.set_float32_matmul_precision(order.matmul_precision)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(order.processes), "LOCAL_WORLD_SIZE": str(order.processes),
        "OMP_NUM_THREADS": str(order.threads),  # else accelerate chooses
    }  # fmt: skip
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name need not resolve
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if order.device == "cuda" else "gloo",
        init_method=f"file://{order.folder / 'meeting'}",
        rank=rank,
        world_size=order.processes,
    )
