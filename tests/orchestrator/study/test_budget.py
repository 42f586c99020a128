"""What a budget in hours counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan.plan import Plan
from orchestrator.store.store import Store
from orchestrator.study.budget import Spending
from orchestrator.sweep.search import SearchSettings
from tests.orchestrator import synthetic

HOUR = 3600.0
WHERE: tuple[Mapping[str, Any], ...] = (
    {"device": "H100", "gpus": 2.0},
    {"device": "H100", "gpus": 0.5},
    {"device": "H100"},
    {"device": "cpu", "gpus": 0.0},
)


@pytest.fixture
def plan() -> Plan:
    return synthetic.make_plan(methods=("uce",), datasets=("related",), rates=(1e-3,), seeds=(0,))


def spent(store: Store, plan: Plan, where: Mapping[int, Mapping[str, Any]]) -> Spending:
    """Each of these stages took an hour of its worker."""
    for index, provenance in where.items():
        store.commit(plan.stages[index], {}, {}, "2026-01-01T10:00:00+00:00", HOUR, provenance)
    spending = Spending(SearchSettings(gpu_hours=3.0), store)
    spending.add(plan)
    return spending


def test_an_hour_counts_for_every_gpu_that_the_worker_had(plan: Plan, tmp_path: Path) -> None:
    spending = spent(Store(tmp_path), plan, dict(enumerate(WHERE)))
    assert spending.gpu_hours == pytest.approx(2 + 0.5 + 1 + 0)
    assert spending.is_over


def test_without_any_gpu_hours_are_those_of_workers(plan: Plan, tmp_path: Path) -> None:
    spending = spent(Store(tmp_path), plan, {0: WHERE[3], 1: {}})
    assert spending.gpu_hours == pytest.approx(2)
    assert not spending.is_over
