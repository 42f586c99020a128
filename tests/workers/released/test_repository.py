"""Released weights in a repository: fetched at a commit, without pickles, then from the cache."""

import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from orchestrator.core.errors import ResurgeError
from tests.workers.bases.hub import COMMIT, NAME, Hub
from workers.data.pinned import Source
from workers.released.source import find_released, local

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    shutil.copy(tmp_path / "model" / UNET, tmp_path / "model" / "esd.safetensors")
    (tmp_path / "model" / "esd.pt").write_bytes(b"PK")
    return tmp_path / "model"


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    made = Hub(folder)
    template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield made
    made.close()


def test_its_layout_is_fetched_without_pickles(hub, folder, monkeypatch):
    found = find_released(local(Source(NAME, COMMIT)))
    assert {part for part, _ in found.parts} == {"unet", "text_encoder"}
    [(_, unet), *_] = found.parts
    assert load_file(unet).keys() == load_file(folder / UNET).keys()
    assert not [path for path in hub.asked if path.endswith((".pt", ".bin")) or "/vae/" in path]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    assert find_released(local(Source(NAME, COMMIT))).parts == found.parts
    assert len(hub.asked) == before


def test_one_of_its_files_can_be_named(hub):
    found = find_released(local(Source(NAME, COMMIT), "esd.safetensors"))
    assert [path.name for path in found.files] == ["esd.safetensors"]
    with pytest.raises(ResurgeError, match="is a pickle"):
        local(Source(NAME, COMMIT), "esd.pt")


def test_what_is_neither_here_nor_to_be_had_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ResurgeError, match="hub cannot be reached"):
        local(Source(NAME, COMMIT))


def test_a_folder_with_one_file_is_that_file(tmp_path):
    save_file({"conv_out.bias": torch.ones(4)}, tmp_path / "uce.safetensors")
    assert find_released(tmp_path).files == (tmp_path / "uce.safetensors",)
