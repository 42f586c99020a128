"""What a worker does when something goes wrong, and when it is asked to leave."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.core.artifacts import CONSTANT_PICTURES, Failure
from orchestrator.core.errors import Stopped
from orchestrator.core.stage import Stage
from orchestrator.messages import (
    Event,
    StageCommitted,
    StageFailed,
    StageProgress,
    StageStarted,
    WorkOrder,
)
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.plan.tasks import make_tasks
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from workers.runner import Runner, leave_on_sigterm

pytestmark = pytest.mark.usefixtures("calls")

ONE = ("unlearn=nudge", "seeds=1", "finetune.learning_rate=1e-3", "evaluate.controls=false")
ESD = "unlearn=[{esd: {iterations: 5, batch_size: 2, sampler_steps: 2}}]"


class Workshop:
    """A runner, a store and what the runner tells; `on_event` may act in the middle of the work."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.store, self.log = plan, Store(folder / "store"), folder / "worker.log"
        self.runner = Runner()
        self.events: list[Event] = []
        self.on_event: Callable[[Event], None] = lambda event: None

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def work(self, split: int = 1, checkpoint_every_s: float = 600.0) -> bool:
        """Do all that is not done and can be; False as soon as a task is handed back."""
        done = {stage.key for stage in self.plan.stages if self.store.get(stage)}
        pending = list(make_tasks(self.plan, done, ("unlearned",)))
        while ready := [t for t in pending if done.issuperset(s.key for s in t.waits_for)]:
            pending.remove(ready[0])
            order = WorkOrder(
                ready[0], self.store.location, str(self.log), split=split,
                checkpoint_every_s=checkpoint_every_s,
            )  # fmt: skip
            if not self.runner.run(order, self.emit):
                return False
            done |= {event.key for event in self.events if isinstance(event, StageCommitted)}
        return True

    def results(self) -> dict[str, dict[str, object]]:
        """By stage its numbers, and the hash of each of its files."""
        records = {stage.key: self.store.get(stage) for stage in self.plan.stages}
        return {
            key: {**record.metrics, **{name: blob.sha256 for name, blob in record.objects.items()}}
            for key, record in records.items()
            if record
        }

    def undisturbed(self) -> dict[str, dict[str, object]]:
        """The results, all of them, when nothing gets in the way."""
        assert self.work()
        assert self.results().keys() == {stage.key for stage in self.plan.stages}
        return self.results()

    def stage(self, kind: str, steps: int | None = None) -> Stage:
        """One of that kind, of the model with so many fine-tuning steps."""
        return next(
            s for s in self.plan.stages if s.kind == kind and steps in (None, s.model.steps)
        )

    def failed(self) -> Failure:
        (event,) = [event for event in self.events if isinstance(event, StageFailed)]
        return event.failure


@pytest.fixture
def workshop(small: str, tmp_path: Path) -> Callable[..., Workshop]:
    """Make one for a small sweep with some changes; each has its own store."""
    made = []

    def make(*overrides: str, metrics: str = "brightness") -> Workshop:
        made.append(1)
        text = small.replace("[brightness]", f"[{metrics}]")
        plan = make_plan(parse(text, None, (*ONE, *overrides)))
        return Workshop(plan, tmp_path / str(len(made)))

    return make


@pytest.fixture(autouse=True)
def every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is not thinned out: when it comes does not depend on how fast the machine is."""
    monkeypatch.setattr("workers.runner.PROGRESS_EVERY_S", -1.0)


# Causes


@pytest.mark.parametrize(
    ("over", "cause", "message"),
    [
        ("memory", "oom", "allocate memory"),
        ("disk", "storage", "No space left on device"),
        ("bug", "bug", "RuntimeError"),
    ],
)
def test_a_failure_says_its_cause(
    workshop: Callable[..., Workshop], over: str, cause: str, message: str
) -> None:
    there = workshop(f"unlearn=[{{trip: {{over: {over}}}}}]")
    assert there.work()
    failed = there.failed()
    assert failed.cause == cause
    assert message in failed.message
    assert "\n" not in failed.message
    assert "Traceback" in there.log.read_text()


def test_no_password_reaches_the_log_or_the_head(workshop: Callable[..., Workshop]) -> None:
    there = workshop("unlearn=[{trip: {over: bug}}]")
    there.work()
    assert "hunter22" not in there.failed().message + there.log.read_text()
    assert "db/studies" in there.failed().message


def test_a_log_that_cannot_be_written_costs_no_work(
    workshop: Callable[..., Workshop], caplog: pytest.LogCaptureFixture
) -> None:
    there = workshop("unlearn=[{trip: {over: bug}}]")
    there.log = Path("/dev/null/worker.log")
    assert there.work()
    assert there.store.get(there.stage("sample", 0)) is not None
    assert there.failed().cause == "bug"
    assert "Traceback" in caplog.text
    assert "hunter22" not in caplog.text


def test_after_a_failure_nothing_holds_the_model(workshop: Callable[..., Workshop]) -> None:
    there = workshop("unlearn=[{trip: {over: memory}}]")
    models: list[weakref.ref[object]] = []

    def look(event: Event) -> None:
        if isinstance(event, StageFailed) and there.runner.model is not None:
            models.append(weakref.ref(there.runner.model))

    there.on_event = look
    there.work()
    assert [model() for model in models] == [None]
    assert there.runner.holds is None


LATE = "esd: {iterations: 1, batch_size: 2, sampler_steps: 2, learning_rate: 1e30}"


@pytest.mark.parametrize(
    ("override", "stage", "message"),
    [
        # What the last update did no loss has seen, and a closed form has none.
        (f"unlearn=[{{{LATE}}}]", "unlearn", "after unlearn 'esd': the prediction is not finite"),
        ("unlearn=[{nudge: {amount: 1e38}}]", "unlearn", "after unlearn 'nudge': the prediction"),
        (
            "unlearn=[{uce: {erase_scale: 1e308}}]", "unlearn",
            "the closed form: the system is not finite",
        ),
        ("unlearn=[spoil]", "unlearn", "after unlearn 'spoil': unet.conv_out.bias is not finite"),
        ("finetune.learning_rate=1e30", "finetune", "lower finetune.learning_rate"),
        (
            "unlearn=[{spoil: {part: autoencoder}}]", "sample",
            " pictures are not finite (NaN or infinite), the first of prompt 'a star'",
        ),
        (
            "evaluate.metrics=[brightness, {wild: {what: nan}}]", "score",
            "metric 'wild': erased = nan, not finite",
        ),
        (
            "evaluate.metrics=[brightness, {wild: {what: inf, of: picture}}]", "score",
            "metric 'wild': picture 0 = inf, not finite",
        ),
    ],
)  # fmt: skip
def test_what_is_not_finite_fails_its_stage_and_is_no_result(
    workshop: Callable[..., Workshop], override: str, stage: str, message: str
) -> None:
    there = workshop("finetune.steps=[1]", override)
    assert there.work()
    failed = [event for event in there.events if isinstance(event, StageFailed)]
    assert {event.failure.cause for event in failed} == {"nan"}
    assert any(message in event.failure.message for event in failed), failed
    keys = {event.key for event in failed}
    broken = [s for s in there.plan.stages if s.key in keys]
    assert broken[0].kind == stage
    assert all(there.store.get(s) is None for s in broken)


def test_pictures_of_one_colour_are_counted(workshop: Callable[..., Workshop]) -> None:
    there = workshop("unlearn=[{spoil: {part: colour}}]", "finetune.steps=[0]")
    base, black = (s for s in there.plan.stages if s.kind == "sample")
    there.work()
    records = [there.store.get(stage) for stage in (base, black)]
    assert [r and r.metrics[CONSTANT_PICTURES] for r in records] == [
        0,
        records[1].metrics["images"],
    ]


def test_a_fine_tune_that_diverges_keeps_its_curve(workshop: Callable[..., Workshop]) -> None:
    how = ("finetune.learning_rate=5", "finetune.warmup_steps=9")  # too much, but not at once
    there = workshop(*how, "finetune.steps=[1, 9]")
    assert there.work()
    failed = there.failed()
    assert failed.cause == "nan"
    assert "lower finetune.learning_rate" in failed.message
    steps = [step for step, _ in failed.curve]
    assert steps == list(range(1, len(steps) + 1))
    assert 1 <= len(steps) < 9
    assert f"at step {len(steps) + 1};" in failed.message
    record = there.store.get(there.stage("finetune", 1))
    assert record is not None
    assert failed.curve[0][1] == record.metrics["loss"]


def test_an_unlearning_that_diverges_keeps_its_curve(workshop: Callable[..., Workshop]) -> None:
    there = workshop(ESD.replace("iterations: 5", "iterations: 9, learning_rate: 1e30"))
    assert there.work(checkpoint_every_s=0.0)
    failed = there.failed()
    assert failed.cause == "nan"
    assert "of 'train'; lower the unlearner's learning_rate" in failed.message
    steps = [step for step, _ in failed.curve]
    assert steps == list(range(1, len(steps) + 1))
    assert f"at step {len(steps) + 1} " in failed.message


# Batches in parts


def test_how_often_a_batch_was_parted_is_recorded_and_changes_no_identity(
    workshop: Callable[..., Workshop],
) -> None:
    whole, parted = workshop("finetune.batch_size=4"), workshop("finetune.batch_size=4")
    whole.work()
    parted.work(split=2)
    stage = whole.stage("finetune", 2)
    one, other = whole.store.get(stage), parted.store.get(stage)
    assert one is not None and other is not None
    assert "split" not in one.provenance
    assert other.provenance["split"] == 2
    assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-3)


# Several GPUs


@pytest.mark.slow
def test_fine_tuning_spread_over_processes_changes_no_identity_and_is_taken_over_by_one(
    workshop: Callable[..., Workshop],
) -> None:
    how = ("finetune.steps=[2, 40]", "finetune.batch_size=3")
    alone, spread = workshop(*how), workshop(*how)
    alone.undisturbed()
    spread.runner = Runner(processes=2)
    last = spread.stage("finetune", 40)
    stop_at(spread, last, done=10)
    assert not spread.work()
    [saved] = spread.store.checkpoints(str(last.trajectory))
    assert 10 <= saved < 40
    go_on(spread)
    for stage in spread.plan.stages:
        one, other = alone.store.get(stage), spread.store.get(stage)
        assert one is not None and other is not None
        assert other.metrics == pytest.approx(one.metrics, rel=1e-2)


@pytest.mark.slow
def test_a_spread_fine_tune_that_diverges_is_the_stages_failure(
    workshop: Callable[..., Workshop],
) -> None:
    there = workshop("finetune.learning_rate=1e30", "finetune.steps=[9]", "finetune.batch_size=2")
    there.runner = Runner(processes=2)
    assert there.work()
    failed = there.failed()
    assert failed.cause == "nan"
    assert "lower finetune.learning_rate" in failed.message
    assert f"at step {len(failed.curve) + 1};" in failed.message
    assert "workers/training/loop.py" in there.log.read_text()
    assert there.runner.holds is None


# Leaving


def stop_at(there: Workshop, stage: Stage, done: int) -> None:
    """Ask the runner to leave when a stage's loss after `done` steps is told."""

    def listen(event: Event) -> None:
        is_training = isinstance(event, StageProgress) and "loss" in event.numbers
        if is_training and (event.key, event.done) == (stage.key, done):
            there.runner.stop()

    there.on_event = listen


def go_on(there: Workshop) -> None:
    """Another worker takes over."""
    there.runner, there.on_event, there.events = Runner(), lambda event: None, []
    assert there.work()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_fine_tune_that_is_left_midway_goes_on_to_the_same_bits(
    workshop: Callable[..., Workshop], adapter: str
) -> None:
    how = ("finetune.steps=[2, 14]", f"finetune.adapter={adapter}", "finetune.ema_decay=0.9")
    expected, left = workshop(*how).undisturbed(), workshop(*how)
    last = left.stage("finetune", 14)
    stop_at(left, last, done=10)
    assert not left.work()
    assert left.store.get(last) is None
    assert left.store.get(left.stage("sample", 2)) is not None
    assert left.store.checkpoints(str(last.trajectory)) == [10]
    assert left.runner.holds is None
    go_on(left)
    assert first_loss_told(left, last) == 14
    assert left.results() == expected
    record = left.store.get(last)
    assert record is not None
    with left.store.object(record, "losses.parquet") as path:
        assert pq.read_table(path)["step"].to_pylist() == list(range(1, 15))


def first_loss_told(there: Workshop, stage: Stage) -> int:
    return next(
        event.done
        for event in there.events
        if isinstance(event, StageProgress) and event.key == stage.key and "loss" in event.numbers
    )


@pytest.mark.slow
def test_a_fine_tune_that_was_killed_goes_on_from_its_last_save(
    workshop: Callable[..., Workshop],
) -> None:
    expected, cut = workshop("finetune.steps=[8]").undisturbed(), workshop("finetune.steps=[8]")
    last = cut.stage("finetune", 8)

    class Killed(Stopped):
        """Nothing may tidy up."""

    def listen(event: Event) -> None:
        if isinstance(event, StageProgress) and event.key == last.key and event.done == 6:
            raise Killed

    cut.on_event = listen
    with pytest.raises(Killed):
        cut.work(checkpoint_every_s=0.0)
    assert cut.store.checkpoints(str(last.trajectory)) == [5]
    go_on(cut)
    assert cut.results() == expected


@pytest.mark.slow
def test_a_training_state_that_is_damaged_is_trained_again(
    workshop: Callable[..., Workshop],
) -> None:
    expected, left = workshop("finetune.steps=[8]").undisturbed(), workshop("finetune.steps=[8]")
    last = left.stage("finetune", 8)
    stop_at(left, last, done=4)
    left.work(checkpoint_every_s=0.0)
    [state] = Path(left.store.root).glob("checkpoints/*/train/4/tensors.safetensors")
    damage(state)
    go_on(left)
    assert left.results() == expected


@pytest.mark.slow
def test_an_unlearning_that_is_left_midway_goes_on_to_the_same_bits(
    workshop: Callable[..., Workshop],
) -> None:
    expected, left = workshop(ESD).undisturbed(), workshop(ESD)
    unlearned = left.stage("unlearn")
    stop_at(left, unlearned, done=2)
    assert not left.work(checkpoint_every_s=0.0)
    assert left.store.get(unlearned) is None
    assert left.store.checkpoints(unlearned.digest) == [3]
    go_on(left)
    assert first_loss_told(left, unlearned) == 5
    assert left.results() == expected


def test_what_keeps_no_state_is_left_at_its_next_sign_of_life(
    workshop: Callable[..., Workshop],
) -> None:
    expected, left = workshop().undisturbed(), workshop()
    drawing = left.stage("sample", 2)

    def listen(event: Event) -> None:
        if isinstance(event, StageProgress) and event.key == drawing.key:
            left.runner.stop()

    left.on_event = listen
    assert not left.work()
    assert left.store.get(left.stage("finetune", 2)) is not None
    assert left.store.get(drawing) is None
    assert not [event for event in left.events if isinstance(event, StageFailed)]
    go_on(left)
    assert left.results() == expected


def test_who_was_asked_to_leave_starts_nothing_more(workshop: Callable[..., Workshop]) -> None:
    there = workshop()
    there.runner.stop()
    assert not there.work()
    assert not there.work()
    assert there.events == []


@pytest.fixture
def terminations() -> Iterator[list[int]]:
    """The signals that reach the handler that was there before."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGTERM, before)


def test_the_first_signal_stops_the_runner_and_the_second_does_what_it_did_before(
    workshop: Callable[..., Workshop], terminations: list[int]
) -> None:
    there = workshop()
    leave_on_sigterm(there.runner)
    os.kill(os.getpid(), signal.SIGTERM)
    assert not there.work()
    assert terminations == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert terminations == [signal.SIGTERM]


# Signs of life


def test_every_kind_of_stage_that_may_take_long_says_how_far_it_is(
    workshop: Callable[..., Workshop],
) -> None:
    there = workshop(ESD)
    there.work()
    told = {event.key for event in there.events if isinstance(event, StageProgress)}
    loud = {s.key for s in there.plan.stages if s.kind in ("prepare", "unlearn", "sample")}
    loud |= {s.key for s in there.plan.stages if s.steps}
    assert loud <= told


def test_loading_a_base_is_a_sign_of_life(workshop: Callable[..., Workshop]) -> None:
    there = workshop()
    there.work()
    first = next(event for event in there.events if isinstance(event, StageStarted))
    after = there.events[there.events.index(first) + 1]
    assert isinstance(after, StageProgress)
    assert (after.done, after.total) == (0, 1)


# Damage


def damage(path: Path) -> None:
    """One bit is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def file_of(there: Workshop, stage: Stage, name: str) -> Path:
    record = there.store.get(stage)
    assert record is not None
    return Path(there.store.root) / record.objects[name].path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps", "name"),
    [
        ("unlearn", None, "weights.safetensors"),
        ("sample", 2, "images.parquet"),
        ("prepare", None, "dataset.parquet"),
    ],
)
@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_what_is_damaged_is_made_again(
    workshop: Callable[..., Workshop], kind: str, steps: int | None, name: str, how: str
) -> None:
    straight = workshop("finetune.steps=[0, 2, 3]", metrics="brightness, darkness")
    expected = straight.undisturbed()
    there = workshop()
    there.work()
    stage = there.stage(kind, steps)
    there.plan = straight.plan

    def listen(event: Event) -> None:
        """Once the next run is on its way: what it plans with was there."""
        if isinstance(event, StageStarted) and not done:
            done.append(event)
            if how == "damaged":
                damage(file_of(there, stage, name))
            else:  # another worker found it first, and has set it aside
                Path(there.store.root, "records", f"{stage.key}.json").unlink()

    done: list[Event] = []
    there.runner, there.on_event = Runner(), listen
    assert there.work()
    assert done
    assert not [event for event in there.events if isinstance(event, StageFailed)]
    if stage.is_model and how == "gone":  # a model is made in passing, where it has no record
        expected.pop(stage.key)
    assert expected.items() <= there.results().items()


def test_a_damaged_parent_of_what_is_damaged_is_made_again_too(
    workshop: Callable[..., Workshop],
) -> None:
    straight = workshop(metrics="brightness, darkness")
    expected = straight.undisturbed()
    there = workshop()
    there.work()
    damage(file_of(there, there.stage("unlearn"), "weights.safetensors"))
    damage(file_of(there, there.stage("prepare"), "dataset.parquet"))
    damage(file_of(there, there.stage("sample", 2), "images.parquet"))
    there.plan, there.runner = straight.plan, Runner()
    assert there.work()
    assert there.results() == expected
    committed = [event.key for event in there.events if isinstance(event, StageCommitted)]
    assert len(committed) == len(set(committed))
