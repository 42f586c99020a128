"""Who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKERS_MAY_IMPORT = {"plugin", "stage", "store", "work", "errors", "chosen", "redact"}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft"}
ONLY_IN = {
    "mlflow": ["tracking.py"],
    "ray": ["cluster.py", "ray.py", "ray_worker.py"],
    "optuna": ["study.py", "study_lock.py", "study_plots.py", "study_storage.py"],
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it, also through importlib."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def test_workers_know_little_of_the_orchestrator() -> None:
    for path in files("workers"):
        for name in imports(path):
            if name.startswith("orchestrator."):
                assert name.split(".")[1] in WORKERS_MAY_IMPORT, f"{path} imports {name}"


def test_the_orchestrator_imports_no_torch() -> None:
    for path in files("orchestrator"):
        if path.name == "ray_worker.py":
            continue  # its actor runs in a worker's process
        assert HEAVY.isdisjoint(name.split(".")[0] for name in imports(path)), path


def test_each_service_has_few_files_that_speak_to_it() -> None:
    for path in files("orchestrator"):
        for name in imports(path):
            homes = ONLY_IN.get(name.split(".")[0], [path.name])
            assert path.name in homes, f"{path} imports {name}"


def test_files_are_short() -> None:
    for path in (*files("orchestrator"), *files("workers")):
        assert path.read_text().count("\n") <= 400, path
