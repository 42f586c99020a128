"""Plug-ins of one's own: what is wrong with one is said, and stops only who asks for it."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import warnings
from pathlib import Path

import pytest

from orchestrator.core import registry as plugins
from orchestrator.core.errors import ResurgeError, SweepError
from orchestrator.core.registry import PluginWarning, find, registry
from orchestrator.sweepfile.load import parse

ROOT = Path(__file__).parents[3]
IMPORTS = "from workers.interfaces.unlearner import Erasure, Unlearned, Unlearner\n"
SOUND = (
    IMPORTS
    + '''
class Forget(Unlearner):
    """Do nothing."""

    name = "forget"

    def unlearn(self, erasure: Erasure) -> Unlearned:
        return Unlearned([])
'''
)
SWEEP = """
name: mine
concept: star
edits: [{unlearn: forget}, {finetune: {dataset: related}}]
evaluate: {metrics: [concept_accuracy]}
"""
BROKEN = {
    "a name that is not imported": (SOUND.replace(IMPORTS, ""), "line 2: NameError: name 'Unlea"),
    "no Python": (SOUND + "\n  x = (\n", "line 11: IndentationError: unindent"),
    "an import that is not there": ("import no_such_module\n" + SOUND, "line 1: ModuleNotFound"),
    "a wrong import": ("from json import no_such\n" + SOUND, "line 1: ImportError: cannot import"),
    "the program's end": (SOUND + "\nimport sys\nsys.exit('enough')\n", "line 12: SystemExit"),
    "a fault deeper down": (SOUND + "\nimport json\njson.loads('{')\n", "line 12: JSONDecodeErr"),
    "no UTF-8": (SOUND + "\nx = 'caf\udce9'\n", "SyntaxError"),
    "NUL": (SOUND + "\0", "source code string cannot contain null bytes"),
}
UNFIT = {
    "no name": (SOUND.replace('    name = "forget"\n', ""), "has no `name`"),
    "an empty name": (SOUND.replace('"forget"', '""'), "has the name ''"),
    "a name with a dot": (SOUND.replace('"forget"', '"a.b"'), "has the name 'a.b'"),
    "a name that is a number": (SOUND.replace('"forget"', "3"), "has the name 3"),
    "no method": (SOUND.replace("def unlearn", "def forget"), "lacks `unlearn`"),
    "no version": (SOUND.replace("    name =", "    version = '1'\n    name ="), "but has '1'"),
    "the head's class": (
        SOUND.replace("(Unlearner)", "(P)").replace(
            IMPORTS, IMPORTS + "from orchestrator.core.plugin import UnlearnerPlugin as P\n"
        ),
        "must subclass Unlearner (from workers.interfaces.unlearner import Unlearner)",
    ),
    "pydantic's settings": (
        "import pydantic\n"
        + SOUND.replace("    name =", "    Settings = pydantic.BaseModel\n    name ="),
        "(from orchestrator.core.settings import Settings)",
    ),
    "settings that are none": (
        SOUND.replace("    name =", "    Settings = {'x': 1}\n    name ="),
        "(from orchestrator.core.settings import Settings)",
    ),
}


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESURGE_PLUGINS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_names_itself_and_is_left_out(fault: str, folder: Path) -> None:
    text, why = BROKEN[fault]
    path = write(folder, text)
    write(folder, SOUND.replace("forget", "other").replace("Forget", "Other"), "other.py")
    with pytest.warns(PluginWarning, match=re.escape(f"{path} cannot be used: ")) as told:
        assert "other" in registry("unlearner")
        assert "forget" not in registry("unlearner")
    assert len(told) == 1
    assert why in str(told[0].message)
    assert "\n" not in str(told[0].message)
    with pytest.raises(SweepError) as refused:
        parse(SWEEP)
    assert f"unlearner 'forget' is not there, because {path} cannot be used: " in str(refused.value)
    with pytest.raises(ResurgeError, match="is not there, because"):
        find("unlearner", "forget")
    assert parse(SWEEP.replace("forget", "esd")).name == "mine"


@pytest.mark.parametrize("fault", UNFIT)
def test_an_unfit_class_says_what_it_lacks_and_is_left_out(fault: str, folder: Path) -> None:
    text, why = UNFIT[fault]
    path = write(folder, text)
    with pytest.warns(PluginWarning, match=re.escape(f"class Forget of {path}")) as told:
        assert "forget" not in registry("unlearner")
    assert why in str(told[0].message)
    assert parse(SWEEP.replace("forget", "esd")).name == "mine"


@pytest.mark.parametrize("name", ["forget", "esd"])
def test_two_of_one_name_are_both_refused_where_it_is_asked_for(name: str, folder: Path) -> None:
    write(folder, SOUND.replace("forget", name), "a.py")
    write(folder, SOUND.replace("forget", name), "b.py")
    with pytest.warns(PluginWarning, match=f"two plug-ins of kind unlearner are called '{name}'"):
        assert name not in registry("unlearner")
    with pytest.raises(SweepError, match=r"two plug-ins .*b\.py.*rename one"):
        parse(SWEEP.replace("forget", name))
    assert parse(SWEEP.replace("forget", "uce")).name == "mine"


def test_what_plugins_share_is_no_fault(folder: Path) -> None:
    write(folder, "def shared() -> int:\n    return 3\n", "helpers.py")
    write(
        folder,
        SOUND.replace("class Forget(Unlearner)", "class Common(Unlearner)").replace(
            '    name = "forget"\n', ""
        )
        + "\n\nclass Forget(Common):\n    name = 'forget'\n",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "forget" in registry("unlearner")
        assert parse(SWEEP).name == "mine"


def test_a_sweep_says_where_plugins_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RESURGE_PLUGINS", raising=False)
    with pytest.raises(SweepError, match="RESURGE_PLUGINS, which is not set"):
        parse(SWEEP)
    monkeypatch.setenv("RESURGE_PLUGINS", "")
    with pytest.raises(ResurgeError, match="RESURGE_PLUGINS, which is not set"):
        find("unlearner", "forget")
    monkeypatch.setenv("RESURGE_PLUGINS", str(tmp_path))
    with pytest.raises(SweepError, match=f"RESURGE_PLUGINS, which is {tmp_path}"):
        parse(SWEEP)
    monkeypatch.setenv("RESURGE_PLUGINS", str(tmp_path / "no"))
    with pytest.raises(ResurgeError, match="RESURGE_PLUGINS must be a folder"):
        parse(SWEEP)


def test_an_installed_plugin_that_is_broken_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by importlib.metadata, as an installed distribution is."""
    info = tmp_path / "broken_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[resurge.plugins]\nforget = broken_plugin_module\n")
    (tmp_path / "broken_plugin_module.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RESURGE_PLUGINS", str(info))
    plugins._entry_points.cache_clear()
    try:
        with pytest.warns(PluginWarning, match="the installed plug-in 'forget' .*SystemExit"):
            assert "esd" in registry("unlearner")
        with pytest.raises(SweepError, match="'forget' is not there, because the installed"):
            parse(SWEEP)
    finally:
        monkeypatch.undo()
        plugins._entry_points.cache_clear()
    assert importlib.metadata.entry_points(group="resurge.plugins") == ()


def test_the_example_of_contributing_runs_as_it_is_pasted(folder: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    write(folder, example)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = find("unlearner", "forget")
    assert parse(SWEEP).name == "mine"
    import torch

    from workers.interfaces.unlearner import Unlearner

    assert issubclass(method, Unlearner)
    unet = torch.nn.ModuleDict({"attn2": torch.nn.ModuleDict({"to_v": torch.nn.Linear(2, 2)})})
    pipe = type("Pipe", (), {"unet": unet})()
    erasure = type("Given", (), {"pipe": pipe})()
    [edit] = method(method.Settings()).unlearn(erasure).edits  # type: ignore[attr-defined]
    assert {name: float(value.abs().max()) for name, value in edit.values.items()} == {
        "unet.attn2.to_v.weight": 0.0,
        "unet.attn2.to_v.bias": 0.0,
    }
    assert "resurge_plugins.mine" in sys.modules
