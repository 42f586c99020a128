"""A task in, records out: one stage at a time, each committed to the store when it is done."""

from __future__ import annotations

import datetime
import logging
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.core.artifacts import (
    CONSTANT_PICTURES,
    DATASET,
    IMAGES,
    IMAGES_DRAWN,
    LOSS,
    LOSSES,
    MATERIAL,
    VALUES,
    WEIGHTS,
    Failure,
    LossRow,
    Probe,
    Provenance,
)
from orchestrator.core.concepts import targets_of
from orchestrator.core.errors import CorruptObject, Stopped, StoreUnavailable
from orchestrator.core.redact import redact
from orchestrator.core.stage import Stage
from orchestrator.messages import (
    Event,
    StageCommitted,
    StageFailed,
    StageProgress,
    StageStarted,
    WorkOrder,
)
from orchestrator.store.store import Record, Store, record_of
from workers.data.pictures import is_constant, read_pictures, write_pictures, write_values
from workers.data.prepared import numbers_of, write_examples
from workers.diffusion.sampling import sample
from workers.editing.edit_file import save_edits
from workers.interfaces.base import Base
from workers.interfaces.metric import Metric, Picture, Score
from workers.model import Model, planned_plugin, plugin_of
from workers.recipes import SampleSettings
from workers.runtime.causes import cause_of, message_of
from workers.runtime.finite import check_numbers, check_tensors
from workers.runtime.kept import give_back_model, let_go
from workers.runtime.pace import Leaving, Pace
from workers.runtime.parts import in_parts
from workers.runtime.progress import heard_by
from workers.runtime.provenance import provenance
from workers.training.checkpoints import save_tensors

Emit = Callable[[Event], None]

PROGRESS_EVERY_S = 0.5
LOSS_WINDOW_STEPS = 20
log = logging.getLogger("resurge.worker")


@dataclass(frozen=True)
class _Result:
    """What a stage made: numbers, and files that the store keeps under their names."""

    metrics: Mapping[str, float]
    files: Sequence[Path] = ()


class Runner:
    """Runs tasks one after another and keeps the model warm between them.

    Args:
        device: a torch device; the first GPU if there is one, else the CPU.
        processes: how many fine-tune a model together, each on a GPU of its own if there are any.
        gpus: how many GPUs, or what share of one, it has to itself; None: the one that it finds.
    """

    def __init__(
        self, device: str | None = None, processes: int = 1, gpus: float | None = None
    ) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.gpus = float(self.device != "cpu") if gpus is None else gpus
        self.processes = processes
        # transformers warns of image processors that nothing here uses when it is imported.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it; no effect on CPUs
        self.model: Model | None = None
        self._leaving = threading.Event()

    @property
    def holds(self) -> str | None:
        """The digest of the model in memory."""
        return self.model.stage.digest if self.model else None

    def run(self, order: WorkOrder, emit: Emit) -> bool:
        """Run the task's stages in order; a failed one takes only its descendants with it.

        Whether the task is over. It is not if `stop` was called: what is done is committed, the
        training state is kept, and another worker can go on from there.
        """
        try:
            with in_parts(order.split):
                _TaskRun(self, order, emit, self._leaving).all()
        except Leaving:
            self.drop()
            return False
        return True

    def stop(self) -> None:
        """Leave the task at hand, and every later one, as soon as nothing is lost by it.

        From any thread, or a signal's handler. It holds until the process ends.
        """
        self._leaving.set()

    def drop(self) -> None:
        """Forget the warm model, and give back the memory that it took."""
        self.model = None
        give_back_model()


class _TaskRun:
    """One task on its way."""

    def __init__(
        self, runner: Runner, order: WorkOrder, emit: Emit, leaving: threading.Event
    ) -> None:
        self.runner = runner
        self.order = order
        self.task = order.task
        self.emit = emit
        self.store = Store(order.store)
        self.pace = Pace(order.checkpoint_every_s, leaving)
        self.save = set(order.task.save)
        self.failed: set[str] = set()
        self.mended: set[str] = set()
        self.reported = 0.0
        self.curve: list[tuple[int, float]] = []
        self.at: Stage | None = None

    def all(self) -> None:
        for stage in self.task.stages:
            self.pace.leave_if_asked()
            if not self.is_hopeless(stage) and not self.one(stage):
                self.runner.drop()  # only now: the exception held what the work had in memory
        self.tidy()

    def is_hopeless(self, stage: Stage) -> bool:
        """Whether an ancestor, or a smaller step count of the same trajectory, failed here."""
        names = {s.digest for s in stage.ancestry()} | {s.trajectory for s in stage.ancestry()}
        return not names.isdisjoint(self.failed)

    def one(self, stage: Stage) -> bool:
        """Do a stage and say so; False if it failed."""
        self.at, self.curve = stage, []
        try:
            record = self.store.get(stage)
            ran = record is None
            if record is None:
                self.emit(StageStarted(self.task.id, stage.key))
                self.log(f"{stage!r} begins")
                with heard_by(self.tell):
                    record = self.made(stage)
        except BaseException as error:
            # A plug-in may raise anything, also what ends a process (sys.exit). The task goes on
            # with what does not hang on the stage.
            if _is_asked_to_stop(error):
                raise
            self.fail(stage, error)
            return False
        self.log(f"{stage!r} {'done' if ran else 'was there'}")
        self.emit(StageCommitted(self.task.id, stage.key, record, ran))
        return True

    def made(self, stage: Stage) -> Record:
        """Do the stage. What it reads and finds damaged is made again first, once each."""
        while True:
            try:
                return self.work(stage)
            except CorruptObject as error:
                damaged = next((s for s in stage.lineage[:-1] if s.digest == error.digest), None)
                if damaged is None or error.digest in self.mended:
                    raise
                self.log(str(error))
            self.mend(damaged)

    def mend(self, damaged: Stage) -> None:
        """Make a stage again whose record the store has set aside."""
        self.mended.add(damaged.digest)
        if damaged.is_model:
            self.save.add(damaged.digest)  # weights were read, so they had been kept
        self.runner.drop()
        self.made(damaged)
        self.log(f"{damaged!r} was made again")

    def work(self, stage: Stage) -> Record:
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        begin = time.perf_counter()
        with self.store.scratch() as folder:
            result = getattr(self, stage.kind)(stage, folder)
            return self.store.commit(
                stage,
                {path.name: path for path in result.files},
                result.metrics,
                started,
                time.perf_counter() - begin,
                self.provenance(stage),
            )

    def provenance(self, stage: Stage) -> Provenance:
        root = list(stage.ancestry())[-1]
        base = plugin_of(Base, root.plugin, root.settings)
        values: Provenance = {**provenance(self.runner.device), "base": base.provenance()}
        values["gpus"] = self.runner.gpus
        if self.order.split > 1:
            values["split"] = self.order.split
        return values

    def prepare(self, stage: Stage, folder: Path) -> _Result:
        model = self.model(stage)
        if "dataset" in stage.settings:
            path = folder / DATASET.name
            examples = model.new_examples(stage)
            write_examples(path, examples)
            return _Result(numbers_of(examples), [path])
        made = model.prepare(stage)
        check_tensors(made.tensors, f"material {stage.plugin!r}", "look at the model it is made of")
        path = folder / MATERIAL
        save_tensors(path, made.tensors)
        return _Result(made.numbers, [path])

    def unlearn(self, stage: Stage, folder: Path) -> _Result:
        model = self.model(stage)
        model.become(stage)
        return _Result(model.numbers, self.weights(stage, model, folder))

    def finetune(self, stage: Stage, folder: Path) -> _Result:
        model = self.model(stage)
        model.become(stage)
        model.checkpoint(stage, needed=self.order.task.keep_checkpoints)
        path = folder / LOSSES.name
        LOSSES.write(path, (LossRow(*pair) for pair in model.losses))
        recent = [loss for _, loss in model.losses[-LOSS_WINDOW_STEPS:]]
        files = [path, *self.weights(stage, model, folder)]
        return _Result({LOSS: sum(recent) / len(recent)}, files)

    def merge(self, stage: Stage, folder: Path) -> _Result:
        model = self.model(stage)
        model.become(stage)
        return _Result({}, self.weights(stage, model, folder))

    def sample(self, stage: Stage, folder: Path) -> _Result:
        probes = [Probe(**probe) for probe in stage.settings["probes"]]
        self.ask_the_judges(stage, probes)
        model = self.model(stage)
        model.become(stage.model)
        settings = SampleSettings.model_validate(stage.settings["settings"])
        with model.evaluation(stage.settings.get("placeholders")) as pipe:
            pictures = sample(pipe, probes, settings)
        path = folder / IMAGES.name
        write_pictures(path, pictures)
        constant = sum(is_constant(picture.image) for picture in pictures)
        numbers = {IMAGES_DRAWN: float(len(pictures)), CONSTANT_PICTURES: float(constant)}
        return _Result(numbers, [path])

    def ask_the_judges(self, sample: Stage, probes: Sequence[Probe]) -> None:
        """Whether each metric of pictures knows what they are going to show: before they cost."""
        erased = list(dict.fromkeys(p.concept for p in probes if p.role == "erased"))
        known = (p.concept for p in probes if p.role != "never_known")
        kept = [concept for concept in dict.fromkeys(known) if concept not in erased]
        for score in self.task.stages + self.task.judges:
            if score.kind != "score" or score.parent != sample:
                continue
            try:
                metric = plugin_of(Metric, score.plugin, score.settings)
            except ValueError:  # its files are not here: where it is to judge, it says so
                continue
            metric.look_ahead(erased, kept)

    def score(self, stage: Stage, folder: Path) -> _Result:
        metric = planned_plugin(Metric, stage.plugin, stage.settings)
        assert stage.parent is not None  # a score hangs on images or on a model
        if metric.needs == "weights":
            return _scored(metric, self.model(stage).compare(stage.parent, metric))
        reference = [p for made in stage.inputs.values() for p in self.pictures(made)]
        if metric.needs == "pipeline":
            metric.look_ahead([target.concept for target in targets_of(stage.settings)], ())
            subject = self.model(stage).subject(stage.parent, stage.settings, reference)
            return _scored(metric, metric.score_pipeline(subject))
        pictures = self.pictures(stage.parent)
        score = metric.score_images(pictures, reference)
        if not metric.per_picture:
            return _scored(metric, score)
        path = folder / VALUES.name
        write_values(path, pictures, score.values)
        return _scored(metric, score, [path])

    def pictures(self, stage: Stage) -> list[Picture]:
        with self.store.object(record_of(self.store, stage), IMAGES.name) as path:
            return read_pictures(path)

    def weights(self, stage: Stage, model: Model, folder: Path) -> list[Path]:
        if stage.digest not in self.save:
            return []
        path = folder / WEIGHTS
        save_edits(path, model.edits())
        return [path]

    def model(self, stage: Stage) -> Model:
        """The warm model of the stage's base, its edits still to be made."""
        root = list(stage.ancestry())[-1]
        if self.runner.model is None or self.runner.model.root != root:
            self.runner.drop()  # two bases need not fit into memory
            self.runner.model = Model(root, self.runner.device, self.runner.processes)
        model = self.runner.model
        model.store, model.pace = self.store, self.pace
        model.progress, model.tell = self.progress, self.tell
        return model

    def progress(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """How far the stage is, its latest numbers; only so often that nobody minds."""
        if math.isfinite(loss := numbers.get("loss", math.nan)):
            self.curve.append((done, loss))
        now = time.monotonic()
        if self.at and (done == total or now - self.reported > PROGRESS_EVERY_S):
            self.reported = now
            self.emit(StageProgress(self.task.id, self.at.key, done, total, numbers))

    def tell(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """The same of work whose state cannot be kept: here it is left, if that was asked for."""
        self.pace.leave_if_asked()
        self.progress(done, total, numbers)

    def fail(self, stage: Stage, error: BaseException) -> None:
        self.failed |= {stage.digest, stage.trajectory or stage.digest}
        self.log("".join(traceback.format_exception(error)))
        cause, message = cause_of(error), redact(message_of(error))
        if cause == "oom":
            let_go()
        curve = (getattr(error, "curve", ()) or tuple(self.curve)) if cause == "nan" else ()
        failure = Failure(message, self.order.log_path, cause, curve)
        self.emit(StageFailed(self.task.id, stage.key, failure))

    def tidy(self) -> None:
        """Forget the checkpoints of trajectories that are complete, unless they are to be kept."""
        if self.failed or self.task.keep_checkpoints:
            return
        names = {str(stage.trajectory) for stage in self.task.stages if stage.trajectory}
        names |= {stage.digest for stage in self.task.stages if stage.kind == "unlearn"}
        try:
            for name in sorted(names):
                self.store.drop_checkpoints(name)
        except StoreUnavailable as error:
            # The work is done and recorded; what is left over, the store's `gc` removes.
            self.log(f"training states were left in the store: {error}")

    def log(self, text: str) -> None:
        """Write to the task's log, or where that cannot be done (a full disk) the process's own."""
        path, text = Path(self.order.log_path), redact(text)
        now = datetime.datetime.now(datetime.UTC)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(f"{now:%Y-%m-%d %H:%M:%S} {text}\n")
        except OSError as error:
            log.warning("%s cannot be written (%s): %s", path, error, text)


def _scored(metric: Metric, score: Score, files: Sequence[Path] = ()) -> _Result:
    """What a metric found. A picture's value may be NaN, which says nothing of the picture."""
    where = f"metric {metric.name!r}"
    check_numbers(score.metrics, where, "look at the model that is scored and the metric's own")
    values = {f"picture {i}": v for i, v in enumerate(score.values) if not math.isnan(v)}
    check_numbers(values, where, "a value must be a finite number, or NaN where there is none")
    return _Result(score.metrics, files)


def _is_asked_to_stop(error: BaseException) -> bool:
    """Whether it comes from outside, and not from a plug-in."""
    if isinstance(error, Leaving | Stopped):
        return True
    is_a_keys = isinstance(error, KeyboardInterrupt) and not error.args
    is_pythons = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    is_main = threading.current_thread() is threading.main_thread()  # only that hears signals
    return is_a_keys and is_main and is_pythons


def leave_on_sigterm(runner: Runner) -> None:
    """Stop the runner when the process is asked to end; a second time the process ends as before.

    Only in the main thread, where signals are handled; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    earlier = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None: one that is not Python's

    def leave(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, earlier)
        runner.stop()

    signal.signal(signal.SIGTERM, leave)
