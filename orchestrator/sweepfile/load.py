"""Sweep: a YAML file as validated, frozen values; everything wrong with it in one report."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from ruamel.yaml import YAML

from orchestrator.config.fields import fill, known, refuse_credentials, single, text, texts
from orchestrator.config.yaml_tree import At, read_yaml, show
from orchestrator.core.digest import canonical_json
from orchestrator.core.errors import Problem, SweepError
from orchestrator.core.hints import nearest, suggest
from orchestrator.core.redact import redact
from orchestrator.core.registry import where_from
from orchestrator.core.text import size_text
from orchestrator.sweep.resources import Resources
from orchestrator.sweep.sweep import Keep, Sweep, given_settings
from orchestrator.sweepfile import overrides as command_line
from orchestrator.sweepfile.evaluate import is_given, read_evaluate
from orchestrator.sweepfile.grid import read_grid
from orchestrator.sweepfile.reference import read_reference
from orchestrator.sweepfile.search import read_search
from orchestrator.sweepfile.tokens import unused_tokens

REQUIRED = ("name", "concept", "edits", "evaluate")
KEYS = (
    "name",
    "base",
    "concept",
    "edits",
    "evaluate",
    "seeds",
    "keep",
    "include",
    "exclude",
    "zip",
    "search",
    "reference",
    "resources",
    "store",
    "mlflow",
)

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
"""What a sweep can be called."""
_UNKNOWN_PLUGIN = re.compile("unknown (base|unlearner|data set|dataset|metric|executor) ")
MAX_BYTES = 4_000_000
"""No sweep is larger; a device has no end."""


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read, override and check a sweep file.

    Raises:
        SweepError: with everything that is wrong in it.
    """
    file, text = str(path), None
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig") if len(data) <= MAX_BYTES else None
        what = f"is larger than {size_text(MAX_BYTES)}: no sweep file"
    except FileNotFoundError:
        hint = f" (nor the folder {path.parent})"
        if path.parent.is_dir():
            hint = suggest(path.name, [p.name for p in path.parent.glob("*.y*ml")][:20])
        what = f"there is no such file{hint}"
    except IsADirectoryError:
        what = "must be a sweep file but is a folder"
    except UnicodeDecodeError as error:
        what = f"must be UTF-8 text but byte {error.start} is not"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    except ValueError as error:  # a path with a NUL
        what = f"cannot be read: {error}"
    if text is None:
        raise SweepError([Problem(what, "", file)])
    return parse(text, file, overrides)


def parse(text: str, file: str | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """Check a sweep file's text; `file` is what errors call it.

    Raises:
        SweepError: with everything that is wrong in it.
    """
    problems: list[Problem] = []
    sweep = None
    root = read_yaml(text, file, problems)
    if root is not None and isinstance(root.value, dict):
        root = command_line.apply(root, overrides, KEYS, problems)
        at = At(root, "", file, problems)
        refuse_credentials(at)
        sweep = _sweep(at, redact(text))
        if sweep is not None and not problems:
            # What is run must be told without files of concepts, which may change or be elsewhere.
            reads_files = sweep.grid.reads_files
            if overrides or reads_files:
                values = sweep.canonical() if reads_files else root.plain()
                sweep = replace(sweep, overridden=redact(_overridden(overrides, values)))
    elif root is not None:
        got = f"but got {show(root.plain())}"
        what = "the file is empty" if root.value is None else f"must map keys to values {got}"
        problems.append(Problem(what, "", file, root.line))
    if sweep is None or problems:
        unique = {str(problem): problem for problem in problems}
        in_order = sorted(unique.values(), key=lambda problem: problem.line or 0)
        is_plugin = any(_UNKNOWN_PLUGIN.match(problem.what) for problem in in_order)
        raise SweepError(in_order, where_from() if is_plugin else "")
    return sweep


def _overridden(overrides: Sequence[str], values: Any) -> str:
    """A sweep file that says what overrides, and files of concepts, make of another one."""
    changes = "".join(f"#   {' '.join(one.split())}\n" for one in overrides)
    how = (
        f"changed on the command line by\n{changes}"
        if overrides
        else "the files that it names read\n"
    )
    return f"# As it was run, {how}{as_text(values)}"


def as_text(values: Any) -> str:
    """A sweep file that says these values."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.sort_base_mapping_type_on_output = False
    written = io.StringIO()
    writer.dump(values, written)
    again = read_yaml(written.getvalue(), None, [])
    # What YAML would read as something else, JSON says as it is.
    is_same = again is not None and canonical_json(again.plain()) == canonical_json(values)
    return written.getvalue() if is_same else json.dumps(values, indent=1, ensure_ascii=False)


def _sweep(root: At, source: str) -> Sweep | None:
    top = known(root, KEYS, REQUIRED)
    grid = read_grid(root, top)
    name = _name(top["name"]) if "name" in top else None
    evaluate = read_evaluate(top["evaluate"], grid) if "evaluate" in top else None
    keep: tuple[Keep, ...] = _keep(top["keep"]) if "keep" in top else ("unlearned",)
    resources = _resources(top["resources"]) if "resources" in top else Resources()
    store, mlflow = (text(top[k]) if is_given(top, k) else None for k in ("store", "mlflow"))
    search = None
    if "search" in top and grid:
        for key in ("include", "exclude", "zip"):
            if key in top:
                top[key].say("cannot stand beside `search`, whose space replaces the axes")
        metrics = evaluate.metrics if evaluate else ()
        problems: list[Problem] = []
        search = read_search(replace(top["search"], problems=problems), grid, metrics)
        # Where no metric could be read, its numbers are missed; that is no fault of the search.
        hidden = () if evaluate else ("unknown number",)
        root.problems.extend(p for p in problems if not p.what.startswith(hidden))
    if not (name and grid and evaluate and resources):
        return None
    if not root.problems:
        root.problems.extend(unused_tokens(grid, evaluate, search))
    named: dict[str, At] = {key: top[key] for key in ("store", "mlflow") if key in top}
    if search is not None and "storage" in top["search"].value:
        named["search.storage"] = top["search"].key("storage")
    here = frozenset(key for key, at in named.items() if command_line.is_origin(at.where))
    found = Sweep(name, grid, evaluate, keep, resources, store, mlflow, source, search, here)
    if is_given(top, "reference"):
        return replace(found, reference=read_reference(top["reference"], grid))
    return found


def _name(at: At) -> str | None:
    name = text(at)
    if name is not None and not NAME.fullmatch(name):
        at.say(
            "becomes a folder's name and must be 1 to 80 letters, digits, '.', '_' or '-', "
            f"not beginning with '.' or '-', but got {show(name)}"
        )
    return name


def _keep(at: At) -> tuple[Keep, ...]:
    if at.value == []:
        return ()
    allowed = get_args(Keep)
    for item in at.items():
        if isinstance(item.value, str) and item.value not in allowed:
            hint = nearest(item.value, list(allowed))
            item.say(f"must be one of {', '.join(allowed)} but got {item.value!r}{hint}")
    return cast("tuple[Keep, ...]", texts(at))


def _resources(at: At) -> Resources | None:
    fields = [name for name in Resources.model_fields if name != "executor_settings"]
    given = known(at, fields)
    executor = single(given.pop("executor"), "executor") if "executor" in given else None
    made = fill(Resources, given, at)
    if made is None or executor is None:
        return made
    plugin, settings = executor
    chosen = {"executor": plugin.name, "executor_settings": given_settings(settings)}
    return made.model_copy(update=chosen)
