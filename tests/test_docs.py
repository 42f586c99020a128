"""What the documentation shows works: every YAML is read, every Python compiles, every command is
one that there is.
"""

from __future__ import annotations

import ast
import glob
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
import typer.main
from PIL import Image
from ruamel.yaml import YAML
from safetensors.numpy import save_file

from orchestrator.cli.main import app
from orchestrator.cluster.clusters_file import find_cluster
from orchestrator.sweepfile.load import parse

ROOT = Path(__file__).parent.parent
RECORDING = ROOT / "tests" / "recording"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def blocks(kind: str) -> list[pytest.param]:  # type: ignore[valid-type]
    """Every block of a kind, called by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            if match[1] == kind:
                found.append(pytest.param(match[2], id=f"{page.name}:{line}"))
    return found


def commands() -> list[pytest.param]:  # type: ignore[valid-type]
    """Every command that is shown, in a block or within a sentence."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [line for match in BLOCK.finditer(text) for line in match[2].splitlines()]
        spans = re.findall(r"`((?:\.venv/bin/)?resurge [^`]+)`", BLOCK.sub("", text))
        for line in [*lines, *spans]:
            words = " ".join(line.replace(".venv/bin/", "").partition(" #")[0].split())
            if words.startswith("resurge ") and "…" not in words:
                found.setdefault(words, page.name)
    return [pytest.param(words, id=words) for words in found]


SHELL = """
name: of_the_docs
concept: star
edits:
  - unlearn: uce
  - finetune: {dataset: related, steps: 5}
evaluate: {metrics: [concept_accuracy], images_per_prompt: 1}
"""


def as_sweep(text: str) -> str:
    """The block as a sweep: a part of one is put where it belongs."""
    part = YAML(typ="safe").load(text)
    sweep = part if "name" in part else YAML(typ="safe").load(SHELL)
    for key, value in part.items():
        if key in ("unlearn", "finetune"):
            sweep["edits"] = [
                {**edit, key: value} if key in edit else edit for edit in sweep["edits"]
            ]
        elif key == "dataset":
            sweep["edits"][1]["finetune"]["dataset"] = value
        elif key != "metrics":
            sweep[key] = value
    if {"unlearn", "metrics", "base"} & part.keys() and "name" not in part:  # not of the shapes
        sweep = {"base": "anything", **sweep, "concept": "cat"}
        sweep["edits"][1]["finetune"]["dataset"] = "dots"
        metrics = part.get("metrics", [])
        sweep["evaluate"] |= {"metrics": ["weight_distance", *metrics], "retain": ["dog"]}
    return text if "name" in part else repr(sweep).replace("None", "null")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the files are that the pages speak of."""
    for name in ("cats", "benign", "harmful"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / name / "a.png")
        rows = "a.png,a cat\n" * 300
        (tmp_path / "data" / name / "metadata.csv").write_text(f"file_name,text\n{rows}")
    erased = {"conv_out.bias": np.ones(4, dtype=np.float32)}
    (tmp_path / "models" / "erased").mkdir(parents=True)
    for name in ("erased/weights", "uce"):
        save_file(erased, tmp_path / "models" / f"{name}.safetensors")
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"
    factors = {f"{layer}.lora_down.weight": (2, 64), f"{layer}.lora_up.weight": (64, 2)}
    (tmp_path / "loras").mkdir()
    save_file(
        {name: np.ones(shape, dtype=np.float32) for name, shape in factors.items()},
        tmp_path / "loras" / "style.safetensors",
    )
    table = "prompt,concept,evaluation_seed\na star,star,1\na circle,circle,2\n"
    (tmp_path / "data" / "prompts.csv").write_text(table)
    (tmp_path / "models" / "clip-vit-base-patch32").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESURGE_PLUGINS", str(RECORDING))
    return tmp_path


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_sweep_is_read(text: str, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text.lstrip().startswith("clusters:"):
        token = written / "token"
        token.write_text("x" * 40)
        token.chmod(0o600)
        (written / "clusters.yaml").write_text(
            text.replace("/path/to/resurge/docker/secrets/ray_token", str(token))
        )
        monkeypatch.setenv("RESURGE_CLUSTERS", str(written / "clusters.yaml"))
        assert find_cluster("here").entry.store == "s3://resurge/store"
        return
    parse(as_sweep(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_it_names_of_ours_is_there(page: Path) -> None:
    ours = "orchestrator|workers|sweeps|tests|benchmarks"
    spans = re.findall(rf"`((?:{ours})/[^`\s…]+)`", page.read_text("utf-8"))
    assert [span for span in spans if not glob.glob(str(ROOT / span), recursive=True)] == []


@pytest.mark.parametrize("text", blocks("python"))
def test_python_compiles(text: str) -> None:
    ast.parse(text)


@pytest.mark.parametrize("words", commands())
def test_a_command_is_one_that_there_is(words: str) -> None:
    """Its options too; whether its files are there is another matter."""
    command: click.Command = typer.main.get_command(app)
    arguments = shlex.split(words)[1:]
    with click.Context(command, info_name="resurge") as context:
        while isinstance(command, click.Group) and arguments and arguments[0][0] != "-":
            name, found, arguments = command.resolve_command(context, arguments)
            assert found is not None, name
            command = found
        given, _, _ = command.make_parser(context).parse_args(list(arguments))
        needed = [p.name for p in command.params if p.required and isinstance(p, click.Argument)]
        if arguments and set(arguments) != {"--help"}:
            assert not [name for name in needed if given.get(name or "") is None]
