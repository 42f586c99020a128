"""What a submitted sweep takes along, and what it does not."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cluster.clusters_file import Cluster, ClusterEntry
from orchestrator.cluster.shipment import (
    MAX_PLUGINS_BYTES,
    Shipment,
    local_paths,
    pack,
    runtime_env,
)
from orchestrator.core.errors import ResurgeError
from orchestrator.sweepfile.load import parse

LAB = Cluster("lab", ClusterEntry(address="http://head:8265", store="s3://resurge/store"))
SEARCH = """
name: worst
base: tiny
concept: star
edits:
  - unlearn: nudge
  - finetune: {dataset: dots}
evaluate: {metrics: [brightness], images_per_prompt: 1}
search: {maximize: resurgence, space: {finetune.learning_rate: {log: [1.0e-5, 1.0e-3]}}, trials: 2}
"""
FOLDER = """
name: mine
base: tiny
concept: star
edits:
  - finetune: {{dataset: {{folder: {{path: {path}}}}}}}
evaluate: {{metrics: [brightness]}}
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, calls: object) -> None:
    for name in ("RESURGE_STORE", "RESURGE_MLFLOW", "RESURGE_STUDIES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ship(tmp_path: Path) -> Callable[..., Shipment]:
    """Packs a sweep's text into a folder of its own."""

    def packed(text: str, *overrides: str, cluster: Cluster = LAB, to: str = "box") -> Shipment:
        folder = tmp_path / to
        folder.mkdir()
        return pack(parse(text, None, overrides), overrides, cluster, folder)

    return packed


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_sweep_the_plug_ins_and_the_code_go_along(
    ship: Callable[..., Shipment], small: str
) -> None:
    shipment = ship(f"# why\n{small}", "seeds=1")
    assert names(shipment.working_dir) >= {"small.yaml", "plugins/recording.py"}
    assert (shipment.working_dir / "small.yaml").read_text().startswith("# why")
    assert [module.name for module in shipment.modules] == ["orchestrator", "workers"]
    orchestrator, workers = (names(module) for module in shipment.modules)
    assert {"cli/main.py", "py.typed", "executors/ray.py"} <= orchestrator
    assert {"runner.py", "shapes/weights/judge.safetensors"} <= workers
    assert not [name for name in workers if name.startswith("shapes/making")]
    assert not [name for name in orchestrator | workers if "__pycache__" in name]
    assert [freight.what for freight in shipment.freight] == ["sweep", "plug-ins", "code"]
    assert "MB" in str(shipment.freight[2])


def test_the_head_runs_the_ordinary_command(ship: Callable[..., Shipment], small: str) -> None:
    words = shlex.split(ship(small, "finetune.learning_rate=[1e-4, 1e-3]").entrypoint)
    assert words[:6] == ["exec", "python", "-P", "-m", "orchestrator.cli", "run"]
    assert words[6:8] == ["--home", "$HOME/.resurge"]
    assert words[8:] == ["--", "small.yaml", "finetune.learning_rate=[1e-4, 1e-3]"]
    entry = ClusterEntry(address="http://head:8265", store="/s", home="/srv/my state")
    words = shlex.split(ship(SEARCH, cluster=Cluster("lab", entry), to="other").entrypoint)
    assert words[5:8] == ["search", "--home", "/srv/my state"]


def test_what_was_sent_stands_before_other_packages_of_its_name(
    ship: Callable[..., Shipment], small: str, tmp_path: Path
) -> None:
    shipment = ship(small)
    for name in ("orchestrator", "workers"):
        other = shipment.working_dir / name
        other.mkdir()
        (other / "__init__.py").write_text("raise ImportError('another package of that name')")
    # As Ray starts a job: in the working directory, what was sent on PYTHONPATH.
    settings = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(str(module.parent) for module in shipment.modules),
        **shipment.environment,
        "RESURGE_STORE": str(tmp_path / "store"),
    }
    assert shipment.entrypoint.count(" run ") == 1
    done = subprocess.run(
        shipment.entrypoint.replace(" run ", " plan "),
        shell=True,
        capture_output=True,
        text=True,
        cwd=shipment.working_dir,
        env=settings,
    )
    assert done.returncode == 0, done.stderr
    assert "unlearn shake star seed 1" in done.stdout


def test_what_was_sent_means_what_was_planned(ship: Callable[..., Shipment], small: str) -> None:
    shipment = ship(small, "seeds=1")
    text = (shipment.working_dir / "small.yaml").read_text()
    assert parse(text, None, ("seeds=1",)) == parse(small, None, ("seeds=1",))
    # A sweep that is known by name has its first run's text, which may be another sweep by now.
    sweep = dataclasses.replace(parse(small, None, ("seeds=[3, 4]",)), source=small)
    folder = shipment.working_dir.parent / "again"
    folder.mkdir()
    again = pack(sweep, (), LAB, folder)
    assert parse((again.working_dir / "small.yaml").read_text()) == sweep
    assert again.content != shipment.content


def test_the_same_contents_have_the_same_digest(ship: Callable[..., Shipment], small: str) -> None:
    one, other = ship(small, to="one"), ship(f"# a comment\n{small}", to="other")
    assert one.content == other.content
    assert ship(small, "seeds=1", to="third").content != one.content


def test_only_places_are_told_and_never_a_credential(
    ship: Callable[..., Shipment], small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    monkeypatch.setenv("RESURGE_MLFLOW", "http://mlflow:5000")
    shipment = ship(small)
    assert shipment.environment == {
        "RESURGE_STORE": "s3://resurge/store",
        "RESURGE_MLFLOW": "http://mlflow:5000",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RESURGE_PLUGINS": "plugins",
    }
    assert "planted" not in str(runtime_env(shipment)) + shipment.entrypoint
    for name in ("RESURGE_MLFLOW", "RESURGE_STUDIES"):
        monkeypatch.setenv(name, "postgresql://ann:hunter22@host/db")
        with pytest.raises(ResurgeError, match=f"{name} carries a password") as caught:
            ship(small, to=name)
        assert "hunter22" not in str(caught.value)
        assert "PGPASSFILE" in str(caught.value)
        monkeypatch.delenv(name)


def test_without_a_store_that_all_machines_see_nothing_is_sent(
    ship: Callable[..., Shipment], small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Cluster("http://head:8265", ClusterEntry(address="http://head:8265"))
    with pytest.raises(ResurgeError, match="need a store that all of them see"):
        ship(small, cluster=bare)
    with pytest.raises(ResurgeError, match="'results' is a folder relative to this one"):
        ship(f"{small}store: results\n", cluster=bare, to="relative")
    monkeypatch.setenv("RESURGE_STORE", "/shared/store")
    assert ship(small, cluster=bare, to="set").environment["RESURGE_STORE"] == "/shared/store"


def test_plug_ins_go_along_without_hidden_files_and_not_by_the_gigabyte(
    ship: Callable[..., Shipment], small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = tmp_path / "mine"
    (plugins / "lib").mkdir(parents=True)
    (plugins / "lib" / "help.py").write_text("")
    (plugins / ".env").write_text("TOKEN=planted")
    monkeypatch.setenv("RESURGE_PLUGINS", str(plugins))
    shapes = small.replace("base: tiny", "base: shapes")
    text = shapes.replace("[nudge, shake]", "uce").replace("dots", "related")
    text = text.replace("brightness", "concept_accuracy")
    assert names(ship(text).working_dir) == {"small.yaml", "plugins/lib/help.py"}
    with (plugins / "weights.bin").open("wb") as stream:
        stream.truncate(MAX_PLUGINS_BYTES + 1)
    with pytest.raises(ResurgeError, match=r"RESURGE_PLUGINS has 20\.0 MB"):
        ship(text, to="large")


def test_local_data_is_named_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: str
) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "one.png")
    (pictures / "metadata.csv").write_text("file_name,text\none.png,a shape\n")
    assert local_paths(parse(FOLDER.format(path=pictures))) == [str(pictures)]
    assert local_paths(parse(small)) == []
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResurgeError, match="names 'pictures' relative to this folder"):
        local_paths(parse(FOLDER.format(path="pictures")))
