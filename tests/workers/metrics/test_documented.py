from pathlib import Path

from orchestrator.core.registry import registry
from workers.judging.model_metric import COMMITS

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_metric_and_every_default_model_is_in_the_docs():
    text = DOCS.read_text(encoding="utf-8")
    ours = [name for name, cls in registry("metric").items() if cls.__module__.startswith("work")]
    assert [name for name in ours if f"`{name}`" not in text] == []
    assert [name for name, commit in COMMITS.items() if f"`{name}` | `{commit}`" not in text] == []
