"""The rooms, and who may enter them: every import points down, and none leads back."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.registry import HOMES

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "workers")

ORCHESTRATOR = {
    "core": "",
    "stats": "",
    "store": "core",
    "messages": "core store",
    "config": "core",
    "sweep": "config core",
    "sweepfile": "sweep config core",
    "home": "sweep core",
    "plan": "sweep messages core",
    "executors": "sweep messages store core",
    "schedule": "executors messages store core",
    "results": "plan sweep store stats core",
    "study": "results plan sweep store stats home core",
    "upkeep": "study plan sweepfile sweep store home core",
    "tracking": "study results plan sweep store home core",
    "run": "tracking study results schedule executors plan home sweepfile sweep messages store "
    "core",
    "search": "run study schedule plan sweep store home messages core",
    "cluster": "run sweepfile sweep config store home core",
    "audit": "run tracking results plan schedule stats store home messages core",
    "cli": "audit cluster search run tracking upkeep study results schedule executors plan home "
    "sweepfile sweep config messages store stats core workers.doctor workers.interfaces "
    "workers.released",
}
"""A room (a folder or a file of `orchestrator/`) and the rooms that it may import."""

HELPERS = (
    "released diffusion data editing training erasure judging shapes interfaces recipes runtime"
)
WORKERS = {
    "runtime": "",
    "recipes": "",
    "shapes": "",
    "interfaces": "recipes runtime",
    "diffusion": "interfaces recipes runtime",
    "data": "interfaces shapes runtime",
    "editing": "diffusion interfaces runtime",
    "training": "editing data diffusion interfaces recipes runtime",
    "released": "editing data diffusion interfaces runtime",
    "erasure": "editing training diffusion data interfaces recipes runtime",
    "judging": "diffusion data shapes interfaces recipes runtime",
    "bases": HELPERS,
    "datasets": HELPERS,
    "materials": HELPERS,
    "evaluations": HELPERS,
    "metrics": HELPERS,
    "updates": HELPERS,
    "unlearners": HELPERS,
    "model": "training editing diffusion data interfaces recipes runtime",
    "runner": "model training editing diffusion data interfaces recipes runtime",
    "doctor": "training editing diffusion data interfaces recipes runtime",
}
"""The same for `workers/`, whose every room may import these of the orchestrator:"""
WORKERS_MAY_IMPORT = {"core", "store", "messages"}

PLUGINS = {home.partition(".")[2] for home in HOMES.values() if home.startswith("workers.")}
PLUGINS -= {"recipes"}  # a file: work that is no choice of the user's

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "peft"}
SPEAKS_TO = {
    "mlflow": {"tracking/connection.py"},
    "ray": {"cluster/jobs.py", "executors/ray.py", "executors/ray_keeper.py"},
    "optuna": {f"study/{name}.py" for name in ("study", "lock", "optuna_views", "storage")},
}
"""Each service, and the few files that speak to it."""

MAX_FILES = 16


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, anywhere in it, also through importlib."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {dotted(path): path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))}
FOLDERS = sorted(
    {path.parent for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.py")}
)


def room_of(name: str) -> str:
    """ "store" of "orchestrator.store.files"; "" of a package itself."""
    return name.split(".")[1] if "." in name else ""


def test_every_room_is_in_the_table() -> None:
    for package, table in (("orchestrator", ORCHESTRATOR), ("workers", WORKERS)):
        rooms = {room_of(name) for name in FILES if name.startswith(f"{package}.")}
        assert rooms == set(table)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name: str) -> None:
    package, room = name.partition(".")[0], room_of(name)
    table = ORCHESTRATOR if package == "orchestrator" else WORKERS
    allowed = {"", room, *table.get(room, "").split()}
    for imported in imports(FILES[name]):
        other = imported.partition(".")[0]
        if other == package:
            assert room_of(imported) in allowed, f"{name} imports {imported}"
        elif (package, other) == ("workers", "orchestrator"):
            assert room_of(imported) in WORKERS_MAY_IMPORT, f"{name} imports {imported}"
        elif (package, other) == ("orchestrator", "workers") and room != "executors":
            assert f"workers.{room_of(imported)}" in allowed, f"{name} imports {imported}"


DRAWN = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(("table", "drawn"), [(ORCHESTRATOR, DRAWN[0]), (WORKERS, DRAWN[1])])
def test_the_drawing_shows_the_rooms_and_only_arrows_of_the_table(
    table: dict[str, str], drawn: str
) -> None:
    arrows = [
        (start, end)
        for start, ends in re.findall(r"^ *(\w+) --> (.+)$", drawn, re.MULTILINE)
        for end in ends.split(" & ")
    ]
    assert {room for arrow in arrows for room in arrow} - {"head"} == set(table)
    assert not [(start, end) for start, end in arrows if end not in f"{table[start]} head".split()]


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: set(imports(path)) & FILES.keys() - {name} for name, path in FILES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", [n for n in FILES if room_of(n) in PLUGINS and n.count(".") > 1])
def test_folders_of_plugins_hold_plugins_that_only_the_registry_names(name: str) -> None:
    kinds = {cls.name for cls in ast.walk(ast.parse(FILES[name].read_text())) if _is_plugin(cls)}
    assert kinds, f"{name} has no plug-in"
    readers = [reader for reader, path in FILES.items() if name in imports(path)]
    assert not readers, f"{name} is imported by {readers}"


def _is_plugin(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "name"
        for line in node.body
    )


def test_how_the_bundled_model_was_made_is_known_to_nobody() -> None:
    making = "workers.shapes.making"
    for name, path in FILES.items():
        if not name.startswith(making):
            assert not [i for i in imports(path) if i.startswith(making)], name


def test_each_service_has_few_files_that_speak_to_it() -> None:
    for name, path in FILES.items():
        if name.startswith("workers"):
            continue
        inside = path.relative_to(ROOT / "orchestrator").as_posix()
        tops = {imported.partition(".")[0] for imported in imports(path)}
        for service, files in SPEAKS_TO.items():
            assert service not in tops or inside in files, f"{name} imports {service}"
        if inside != "executors/worker.py":  # it runs in a worker's process
            assert HEAVY.isdisjoint(tops), name


def test_planning_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.argv = ['resurge', 'plan', 'sweeps/quickstart.yaml', '--home', sys.argv[1]]\n"
        "from orchestrator.cli.main import app\n"
        "app(standalone_mode=False)\n"
        f"found = [name for name in {sorted(HEAVY | SPEAKS_TO.keys())} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "unique" in done.stdout


def test_cutting_a_plan_into_tasks_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from orchestrator.plan.plan import make_plan\n"
        "from orchestrator.plan.tasks import make_tasks\n"
        "from orchestrator.sweepfile.load import load\n"
        "tasks = make_tasks(make_plan(load(Path('sweeps/methods.yaml'))), (), ())\n"
        f"found = [name for name in {sorted(HEAVY | SPEAKS_TO.keys())} if name in sys.modules]\n"
        "assert tasks and not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_no_folder_has_more_files_than_one_takes_in(folder: Path) -> None:
    # One file a plug-in: a plug-in's own, its tests, and its tests against released numbers.
    if PLUGINS.isdisjoint(folder.parts[-2:]):
        assert len(list((ROOT / folder).glob("*.py"))) <= MAX_FILES
