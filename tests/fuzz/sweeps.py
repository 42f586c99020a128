"""Sweep files and overrides that are wrong in some way: `plan` and `search` files alike."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.fuzz.cases import Answer, Area, Fault, damaged, resurge
from tests.fuzz.trees import TEXTS, mutated, odd, paths, value_at

ROOT = Path(__file__).parents[2]
DEAR = {"celebrity", "objects", "paper", "styles", "nudity", "worst_case"}
"""Thousands of trials: mutations of these say no more, and each takes seconds."""
MOST_BYTES = 20_000
RAW = (
    "!!python/object:os.system x", "&a [*a]", "*nowhere", "!tag x", '"\\U00110000"', '"\\ud800"',
    '"\\x00"', '"\\u2028"', "'", '"', "[", "{", "]", "}", "- -", "? x", ": x", "|\n  x",
    ">-\n  x", "&a x", "*a", "%YAML 1.1", "---", "...", "0o17", "0b1", "0x" + "f" * 300, "1_000",
    "1:30", "2001-12-14", "=", "<<: {a: 1}", "~", "@x", "`x", "9" * 5000, "1e999999", "-.inf",
    ".nan", "!!binary eA==", "[" * 60, "{a: " * 45, "\t x", "# x", "x # y", "*a : 1", "\u0085x",
)  # fmt: skip


WORDS = json.dumps(
    {
        "name": "words",
        "base": {
            "diffusers": {
                "source": str(ROOT / "workers" / "shapes" / "weights" / "pipeline"),
                "retained": ["circle", "OTHER"],
                "templates": ["a {}", "PROMPT {}"],
            }
        },
        "concept": ["star", "NAME"],
        "edits": [{"unlearn": [{"esd": {"erase_from": ["FROM", "star"]}}, "uce"]}],
        "evaluate": {
            "metrics": ["weight_distance"],
            "prompts": ["a {concept}", "{concept} PROMPT"],
        },
    }
)
"""A sweep of a model that knows any word."""


class Raw(str):
    """Written into the file as it is."""


def raw_or_odd(rng: random.Random) -> Any:
    return Raw(rng.choice(RAW)) if rng.random() < 0.4 else odd(rng)


def written(tree: Any, rng: random.Random, depth: int = 0, inline: bool = False) -> str:
    """YAML of a tree, partly in flow style; anything may stand anywhere, valid or not."""
    pad = "  " * depth
    if isinstance(tree, dict) and tree and not inline:
        return "".join(
            f"\n{pad}{scalar(k)}: {written(v, rng, depth + 1, rng.random() < 0.2)}"
            for k, v in tree.items()
        )
    if isinstance(tree, list) and tree and not inline:
        return "".join(f"\n{pad}- {written(v, rng, depth + 1, rng.random() < 0.5)}" for v in tree)
    if isinstance(tree, dict):
        inner = ", ".join(f"{scalar(k)}: {written(v, rng, 0, True)}" for k, v in tree.items())
        return f"{{{inner}}}"
    if isinstance(tree, list):
        return f"[{', '.join(written(v, rng, 0, True) for v in tree)}]"
    return scalar(tree)


def scalar(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return value
    return json.dumps(value)


class Sweeps(Area):
    """`plan` refuses a file with reasons or plans it, and writes nothing."""

    name = "sweeps"
    full = 5000
    quick = 300

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        good = [p for p in (ROOT / "sweeps").rglob("*.yaml") if p.stem not in DEAR]
        bad = (ROOT / "tests" / "bad_sweeps").glob("*.yaml")
        self.texts = [[path.read_text() for path in sorted(paths)] for paths in (good, good, bad)]
        self.trees = [[t for x in texts if isinstance(t := _tree(x), dict)] for texts in self.texts]
        self.file = folder / "sweep.yaml"

    def case(self, rng: random.Random) -> str:
        ways = (self.of_tree, self.of_tree, self.of_text, self.of_both, self.of_words)
        text, overrides = rng.choice(ways)(rng)
        self.file.write_bytes(text[:MOST_BYTES])
        self.say(f"file: {text[:MOST_BYTES]!r}\noverrides: {overrides!r}")
        before = set(self.folder.iterdir())
        answer = resurge("plan", str(self.file), *overrides)
        if new := set(self.folder.iterdir()) - before:
            raise Fault(f"planning wrote {new}")
        check_reasons(answer)
        return "planned" if answer.code == 0 else "refused"

    def of_tree(self, rng: random.Random) -> tuple[bytes, list[str]]:
        tree = rng.choice(rng.choice(self.trees))
        for _ in range(rng.choice((1, 1, 2, 4))):
            tree = mutated(tree, rng, raw_or_odd)
        return written(tree, rng).lstrip("\n").encode("utf-8", "surrogatepass"), []

    def of_text(self, rng: random.Random) -> tuple[bytes, list[str]]:
        text = rng.choice(rng.choice(self.texts))
        if rng.random() < 0.5:
            return damaged(text.encode(), rng), []
        lines = text.splitlines(keepends=True)
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                del lines[at]
            case 1:
                lines.insert(other, lines[at])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = "  " + lines[at] if rng.random() < 0.5 else lines[at].lstrip(" ")
            case 4:
                lines[at] = f"{lines[at].partition(': ')[0]}: {rng.choice(RAW)}\n"
        return "".join(lines).encode(), []

    def of_words(self, rng: random.Random) -> tuple[bytes, list[str]]:
        """Text of the user's, of any kind, in every place that takes text."""
        words = {word: rng.choice(TEXTS) for word in ("NAME", "OTHER", "PROMPT", "FROM")}
        tree = json.loads(WORDS)
        for path in paths(tree):
            if isinstance(text := value_at(tree, path), str):
                for word, given in words.items():
                    text = text.replace(word, given)
                value_at(tree, path[:-1])[path[-1]] = text
        return written(tree, rng).lstrip("\n").encode("utf-8", "surrogatepass"), []

    def of_both(self, rng: random.Random) -> tuple[bytes, list[str]]:
        """A good file and overrides that may be anything."""
        tree = rng.choice(self.trees[0])
        return written(tree, rng).lstrip("\n").encode(), [
            self.override(tree, rng) for _ in range(rng.choice((1, 1, 2, 3)))
        ]

    def override(self, tree: Any, rng: random.Random) -> str:
        path = rng.choice(list(paths(tree)))
        names = [str(step) for step in path if rng.random() < 0.9]
        where = rng.choice((".".join(names), ".".join(names), "..".join(names), rng.choice(RAW)))
        value = rng.choice((value_at(tree, path), raw_or_odd(rng), raw_or_odd(rng)))
        text = written(value, rng, inline=True)
        whole = rng.choice(
            (f"{where}={text}", f"{where}={text}", f"{where}", f"{where}=", f"={text}")
        )
        # What no shell can hand over, and what would be an option.
        return whole.replace("\0", "").lstrip("-") or "x"


def check_reasons(answer: Answer) -> None:
    """A refusal names what is wrong, and in its own words."""
    if answer.code == 0:
        return
    if answer.code != 2:
        raise Fault(f"plan ends with {answer.code}: {answer.err}")
    first = answer.err.strip().splitlines()[0]
    if not (first.startswith(("error: ", "Usage: "))):
        raise Fault(f"refused without a reason: {answer.err}")
    if found := re.search(r"<class '|object at 0x|pydantic|\bNoneType\b|ruamel", answer.err):
        raise Fault(f"the reason speaks of {found[0]!r}: {answer.err}")


def _tree(text: str) -> Any:
    try:
        tree = YAML(typ="safe", pure=True).load(text)
        json.dumps(tree)
    except Exception:  # bad sweeps: no YAML, or an alias of itself
        return None
    return tree
