"""The page of joint and sequential erasure, out of made-up records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import joint
from orchestrator.home import Home
from orchestrator.plan.plan import make_plan
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from tests.orchestrator.results.test_chains import TEXT, commit
from tests.orchestrator.results.test_figures import GROUPS

WHOLE = TEXT.replace("evaluate: {", f"evaluate: {{set: {{inline: {{rows: [{GROUPS}]}}}}, ")


@pytest.fixture
def home(calls: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    sets = "concept: [star, [star, heart]]"
    texts = {
        "JOINT": WHOLE.replace("concept: {name: two, concepts: [star, heart]}", sets)
        .replace("METHOD", "uce")
        .replace("ORDER", "simultaneous")
        .replace("  - finetune: {dataset: dots, steps: [0, 1, 2]}\n", ""),
        "CONTINUAL": WHOLE.replace("METHOD", "uce").replace(
            "ORDER", f"[{', '.join(joint.ORDERS)}]"
        ),
    }
    home = Home(tmp_path / "home")
    for name, text in texts.items():
        path = tmp_path / f"{name.lower()}.yaml"
        path.write_text(text.replace("name: chains", f"name: {name.lower()}"))
        monkeypatch.setattr(joint, name, str(path))
    return home


def test_a_page_without_its_sweeps_says_so(home: Home, tmp_path: Path) -> None:
    text = "\n".join(joint.page(home, tmp_path))
    assert text.count("Not run yet: ") == 2


def test_every_size_order_and_point_is_on_the_page(home: Home, tmp_path: Path) -> None:
    store = Store(home.store_location())
    done: set[str] = set()
    for path in (joint.JOINT, joint.CONTINUAL):
        plan = make_plan(parse(Path(path).read_text()))
        commit(store, plan, done)
        done |= {stage.key for stage in plan.stages}
    text = "\n".join(joint.page(home, tmp_path))
    assert "Not run" not in text
    assert "1 shape: star; 2 shapes: star, heart" in text
    # Alone, after the first, after both; and what the most steps brought back.
    assert "| `uce` | independent | 0.10 / 0.10 | 0.10 / 0.90 | 0.10 / 0.10 |" in text
    assert "| `uce` | continual |  | 0.10 / 0.90 | 0.10 / 0.10 |" in text
    assert "| `uce` | simultaneous |  |  | 0.10 / 0.10 |" in text
    assert text.count("| +0.40 | +0.40 |") == 3
    assert (tmp_path / "joint.png").exists() and (tmp_path / "continual.png").exists()
