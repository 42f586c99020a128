"""Edits survive their file, also those that a plug-in brings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.core.errors import ResurgeError, UnreadableFile
from workers.editing.edit_file import load_edits, save_edits
from workers.editing.edits import LowRank, Weights
from workers.interfaces.edit import ModelEdit
from workers.training.checkpoints import load_tensors


class Doubled(ModelEdit):
    """A kind of edit that only a plug-in knows."""

    kind = "doubled"

    def __init__(self, names):
        self.names = names

    def apply(self, pipe):
        for name in self.names:
            pipe.unet.get_parameter(name).mul_(2)

    def tensors(self):
        return {}

    def config(self):
        return {"names": self.names}

    @classmethod
    def load(cls, tensors, config):
        return cls(config["names"])


def test_edits_are_read_in_the_order_in_which_they_were_written(tmp_path):
    values = {"unet.one": torch.arange(3.0), "unet.two": torch.ones(2, 2)}
    factors = {"layer": (torch.ones(1, 2), torch.zeros(3, 1))}
    save_edits(tmp_path / "edits", [Weights(values), LowRank(factors, scale=0.5)])
    weights, low_rank = load_edits(tmp_path / "edits")
    assert isinstance(weights, Weights) and isinstance(low_rank, LowRank)
    assert {n: t.tolist() for n, t in weights.values.items()} == {
        "unet.one": [0, 1, 2],
        "unet.two": [[1, 1], [1, 1]],
    }
    assert low_rank.scale == 0.5
    assert [t.shape for t in low_rank.factors["layer"]] == [(1, 2), (3, 1)]


def test_a_plug_ins_own_kind_is_known_once_it_is_defined(tmp_path):
    save_edits(tmp_path / "edits", [Doubled(["a", "b"])])
    (edit,) = load_edits(tmp_path / "edits")
    assert isinstance(edit, Doubled)
    assert edit.names == ["a", "b"]


def test_an_unknown_kind_and_other_files_are_refused(tmp_path):
    header = '[{"kind": "later", "config": {}}]'
    save_file({"0.a": torch.ones(1)}, tmp_path / "later", metadata={"edits": header})
    with pytest.raises(ResurgeError, match="unknown kind of edit 'later'"):
        load_edits(tmp_path / "later")
    save_file({"a": torch.ones(1)}, tmp_path / "plain")
    with pytest.raises(ResurgeError, match="holds no edits"):
        load_edits(tmp_path / "plain")


@pytest.mark.parametrize("load", [load_edits, load_tensors])
@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}"])
def test_what_is_no_safetensors_file_is_said(
    load: Callable[[Path], object], content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(UnreadableFile, match="odd is no safetensors file: "):
        load(tmp_path / "odd")
