"""Alive or dead: this machine's processes by looking, others by their beats."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from orchestrator.core.liveness import LONG_AGO_S, SILENT_S, Process, Sign, Watch

HERE = Process.here()
AWAY = dataclasses.replace(HERE, machine="another")


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Watch:
    return Watch(clock, clock)


def test_this_process_is_alive(watch: Watch) -> None:
    assert watch.look(Sign(HERE, 0, 0.0)) == "alive"


def test_a_process_survives_json() -> None:
    assert Process.from_json({**HERE.to_json(), "beat": 3}) == HERE


def test_a_killed_process_of_this_machine_is_dead_at_once(watch: Watch) -> None:
    code = "from orchestrator.core.liveness import Process; import json; "
    code += "print(json.dumps(Process.here().to_json()), flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    import json

    process = Process.from_json(json.loads(child.stdout.readline()))
    assert watch.look(Sign(process, 0, 1000.0)) == "alive"
    child.kill()
    child.communicate()
    assert watch.look(Sign(process, 0, 1000.0)) == "dead"


def test_another_process_with_the_same_pid_is_not_it(watch: Watch) -> None:
    assert watch.look(Sign(dataclasses.replace(HERE, born=HERE.born - 5), 0, 1000.0)) == "dead"


def test_of_another_machine_nothing_is_known_at_first(watch: Watch) -> None:
    assert watch.look(Sign(AWAY, 7, 1000.0)) == "unsure"


def test_a_growing_beat_is_a_live_one(watch: Watch, clock: Clock) -> None:
    watch.look(Sign(AWAY, 7, 1000.0))
    clock.s += SILENT_S * 2
    assert watch.look(Sign(AWAY, 8, 1000.0)) == "alive"


def test_a_beat_that_does_not_grow_is_a_dead_one(watch: Watch, clock: Clock) -> None:
    watch.look(Sign(AWAY, 7, 1000.0))
    clock.s += SILENT_S - 1
    assert watch.look(Sign(AWAY, 7, 1000.0)) == "unsure"
    clock.s += 2
    assert watch.look(Sign(AWAY, 7, 1000.0)) == "dead"


def test_it_is_silence_that_counts_and_not_the_time_since_the_first_look(
    watch: Watch, clock: Clock
) -> None:
    watch.look(Sign(AWAY, 7, 1000.0))
    clock.s += SILENT_S - 1
    watch.look(Sign(AWAY, 8, 1000.0))
    clock.s += SILENT_S - 1
    assert watch.look(Sign(AWAY, 8, 1000.0)) == "unsure"


def test_a_clock_that_is_minutes_off_kills_nobody(watch: Watch, clock: Clock) -> None:
    assert watch.look(Sign(AWAY, 7, clock.s - 600)) == "unsure"
    assert watch.look(Sign(AWAY, 7, clock.s + 600)) == "unsure"


def test_a_beat_of_yesterday_needs_no_watching(watch: Watch, clock: Clock) -> None:
    assert watch.look(Sign(AWAY, 7, clock.s - LONG_AGO_S - 1)) == "dead"
