"""A Ctrl-C, a batch system's request, a terminal that closes: a run ends alike."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.cli.common import STOPPING
from orchestrator.core.errors import Stopped
from orchestrator.schedule.leases import read_heads
from orchestrator.store.store import Store

Command = Callable[..., str]
LESS = ("seeds=1", "finetune.learning_rate=1e-3", "finetune.steps=[1]", "evaluate.controls=false")


@pytest.fixture
def handlers() -> Iterator[list[object]]:
    """This process's own, and the same ones afterwards."""
    before = [signal.getsignal(number) for number in STOPPING]
    yield before
    for number, handler in zip(STOPPING, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_each_signal_ends_a_run_in_order(
    resurge: Command, small: str, tmp_path: Path, handlers: list[object], number: signal.Signals
) -> None:
    """It comes in the middle of a stage, and is not taken for the stage's failure."""
    Path("small.yaml").write_text(small)
    asking = f"unlearn=[nudge, {{nudge: {{ask: {int(number)}}}}}]"
    said = resurge("run", "small.yaml", *LESS, asking, "--home", "home", code=130)
    assert said.rstrip().endswith(
        "Stopped. What is finished is kept; the same command goes on from here."
    )
    store = Store(tmp_path / "home" / "store")
    assert store.keys() and not store.failures()
    assert not read_heads(store), "the head has signed off"
    assert Path("home/results/small.parquet").exists()
    assert [signal.getsignal(one) for one in STOPPING] == handlers


def test_what_is_ignored_stays_so(resurge: Command, small: str, handlers: list[object]) -> None:
    """As `nohup` has it, and a shell for what it runs in the background."""
    Path("small.yaml").write_text(small)
    asking = ", ".join(f"{{nudge: {{ask: {int(number)}}}}}" for number in STOPPING)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    resurge("run", "small.yaml", *LESS, f"unlearn=[{asking}]", "--home", "home")
    store = Store(Path("home/store").absolute())
    assert store.keys() and not store.failures()


def test_a_ctrl_c_outside_of_a_command_is_nobodys_failure(
    small: str, tmp_path: Path, calls: Callable[[], list[str]]
) -> None:
    """Python's own KeyboardInterrupt, where it comes from a key."""
    from orchestrator.executors.base import ExecutorSettings
    from orchestrator.executors.inline import Inline
    from orchestrator.plan.plan import make_plan
    from orchestrator.plan.tasks import make_tasks
    from orchestrator.schedule.scheduler import Scheduler
    from orchestrator.sweepfile.load import parse

    plan = make_plan(
        parse(small, None, ["seeds=1", f"unlearn={{nudge: {{ask: {int(signal.SIGINT)}}}}}"])
    )
    store = Store(tmp_path / "store")
    with Inline(ExecutorSettings()) as executor, pytest.raises(KeyboardInterrupt) as caught:
        Scheduler(make_tasks(plan, (), ()), (), executor, store, tmp_path / "logs").run()
    assert not isinstance(caught.value, Stopped)
    assert not store.failures()
