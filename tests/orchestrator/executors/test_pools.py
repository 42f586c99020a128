"""Pools: how many workers a sweep's resources mean, and what each asks Ray for."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.executors.base import Anything, WorkerKind
from orchestrator.executors.pools import (
    ACCELERATOR,
    Machine,
    Pool,
    lacking,
    pool_of,
    score_pool,
    whole_gpu_pool,
)
from orchestrator.sweep.resources import Elastic, ExecutorSettings

TWO_CORES = {"CPU": 2.0}
EIGHT_GPUS = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("settings", "resources", "is_local", "expected"),
    [
        ({}, TWO_CORES, True, Pool(2, 2, 0.0, 1)),
        ({"workers": 3}, TWO_CORES, True, Pool(3, 3, 0.0, 1)),
        ({}, EIGHT_GPUS, True, Pool(8, 8, 1.0, 1)),
        ({"gpus": 0.5}, EIGHT_GPUS, True, Pool(16, 16, 0.5, 1)),
        ({"gpus": 0.5, "threads": 4}, EIGHT_GPUS, False, Pool(0, 16, 0.5, 4)),
        ({"workers": {"max": 32}}, EIGHT_GPUS, False, Pool(0, 32, 1.0, 1)),
        ({"workers": {"min": 1, "max": 4, "gpus": 2}}, {}, True, Pool(1, 4, 2.0, 1)),
        ({"workers": {"max": 4, "threads": 8}, "gpus": 1}, {}, False, Pool(0, 4, 1.0, 8)),
    ],
)
def test_pool_of(
    settings: dict[str, Any], resources: dict[str, float], is_local: bool, expected: Pool
) -> None:
    assert pool_of(ExecutorSettings(**settings), resources, is_local) == expected


def test_on_a_cluster_a_number_of_workers_is_a_limit() -> None:
    """Others use it too: what stays without work would keep them from theirs."""
    assert pool_of(ExecutorSettings(workers=4), EIGHT_GPUS, is_local=False).min == 0


def test_the_preferred_gpu_is_asked_for_first() -> None:
    settings = ExecutorSettings(workers=Elastic(max=2, gpus=1, gpu_type=("H100", "A100", "L4")))
    assert pool_of(settings, EIGHT_GPUS, is_local=False).labels() == {
        "label_selector": {ACCELERATOR: "H100"},
        "fallback_strategy": [
            {"label_selector": {ACCELERATOR: "A100"}},
            {"label_selector": {ACCELERATOR: "L4"}},
        ],
    }


def test_any_gpu_will_do_if_none_is_named() -> None:
    assert Pool(0, 1, 1.0, 1).labels() == {}


def test_score_workers_ask_for_no_gpu() -> None:
    assert score_pool(3, is_local=True) == Pool(3, 3, 0.0, 1)
    assert score_pool(Elastic(max=5, threads=2), is_local=False) == Pool(0, 5, 0.0, 2)


def test_a_whole_gpu_is_more_than_a_share() -> None:
    assert whole_gpu_pool(Pool(2, 8, 0.25, 4, ("A100",))) == Pool(0, 8, 1.0, 4, ("A100",))


def test_who_has_more_can_do_what_needs_less() -> None:
    whole, share, score = WorkerKind(whole_gpu=True), WorkerKind(), WorkerKind("score")
    assert whole.fits(share) and whole.fits(whole) and share.fits(share)
    assert not share.fits(whole)
    assert not score.fits(share) and not share.fits(score)
    assert all(Anything().fits(need) for need in (whole, share, score))


def test_min_above_max_is_refused() -> None:
    with pytest.raises(ValueError, match="min must be at most max but got 5 and 2"):
        Elastic(min=5, max=2)


def machine(cpus: float, gpus: float = 0, gpu_type: str = "") -> Machine:
    labels = {ACCELERATOR: gpu_type} if gpu_type else {}
    return Machine({"CPU": cpus, **({"GPU": gpus} if gpus else {})}, labels)


LAPTOP, A100S, BIG = machine(8), machine(16, 2, "A100"), machine(64)


@pytest.mark.parametrize(
    ("pool", "machines", "expected"),
    [
        (Pool(0, 2, 1.0, 4), [LAPTOP, A100S], None),
        (Pool(0, 2, 0.5, 4), [LAPTOP], ("0.5 GPU", "0")),
        (Pool(0, 2, 1.0, 4), [LAPTOP], ("1 GPU", "0")),
        (Pool(0, 2, 1.0, 4), [], ("1 GPU", "0")),
        (Pool(0, 2, 4.0, 4), [A100S], ("4 GPUs", "2")),
        (Pool(0, 2, 4.0, 4), [A100S, A100S], ("4 GPUs", "at most 2 on a machine")),
        (Pool(0, 2, 0.0, 32), [LAPTOP, A100S], ("32 CPUs", "16")),
        (Pool(0, 2, 0.0, 64), [LAPTOP, BIG], None),
        (Pool(0, 2, 1.0, 4, ("H100", "A100")), [LAPTOP, A100S], None),
        (Pool(0, 2, 1.0, 4, ("H100",)), [A100S], ("a GPU of type H100", "A100")),
        (
            Pool(0, 2, 1.0, 4, ("H100", "L4")),
            [LAPTOP],
            ("a GPU of type H100 or L4", "no GPU with a type"),
        ),
        (Pool(0, 2, 1.0, 32, ("A100",)), [BIG, A100S], ("32 CPUs", "16")),
        (
            Pool(0, 2, 1.0, 32),
            [BIG, A100S],
            (
                "1 GPU and 32 CPUs on one machine",
                "no machine with as many of both (2 and 64 at most)",
            ),
        ),
    ],
)
def test_what_no_machine_has_is_named(
    pool: Pool, machines: list[Machine], expected: tuple[str, str] | None
) -> None:
    assert lacking(pool, machines) == expected


@pytest.mark.parametrize("gpus", [0, 0.0001, 0.5, 1, 2, 8])
def test_shares_and_whole_numbers_of_gpus_can_be_given(gpus: float) -> None:
    assert ExecutorSettings(gpus=gpus).gpus == gpus


@pytest.mark.parametrize("gpus", [1.5, 2.25, 0.00001, -1, float("inf"), float("nan")])
def test_no_other_number_of_gpus_can_be_given(gpus: float) -> None:
    with pytest.raises(ValueError, match=r"a share of a GPU|greater than or equal|finite"):
        ExecutorSettings(gpus=gpus)
