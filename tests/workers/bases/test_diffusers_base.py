import pytest
import torch

from orchestrator.errors import ResurgeError
from workers.bases.diffusers import Diffusers


def base(source, **settings):
    return Diffusers(Diffusers.Settings(source=str(source), **settings))


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_with_the_same_weights(pipe, folder):
    loaded = base(folder).load("cpu")
    for (name, a), b in zip(pipe.unet.named_parameters(), loaded.unet.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not loaded.unet.training
    assert loaded.safety_checker is None


def test_half_precision_files_are_read_as_fp32(pipe, tmp_path):
    pipe.unet.half()
    pipe.text_encoder.half()
    pipe.save_pretrained(tmp_path)
    loaded = base(tmp_path).load("cpu")
    assert loaded.unet.dtype == loaded.text_encoder.dtype == torch.float32


def test_a_missing_folder_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ResurgeError, match="cannot load a Stable Diffusion pipeline"):
        base(tmp_path / "nowhere").load("cpu")


def test_pickles_are_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ResurgeError, match="safetensors"):
        base(tmp_path).load("cpu")


def test_a_folders_fingerprint_follows_its_contents(folder, tmp_path):
    before = base(folder).fingerprint()
    moved = folder.rename(tmp_path / "moved")
    assert base(moved).fingerprint() == before
    (moved / "unet" / "config.json").write_text("{}")
    assert base(moved).fingerprint() != before


def test_a_repositorys_fingerprint_is_its_revision():
    assert base("owner/name", revision="abc").fingerprint() == "abc"
    assert base("owner/name").fingerprint() == ""


def test_any_text_is_a_concept():
    model = base("owner/name", retained=("dog", "cat"))
    assert model.concepts() is None
    assert model.prompts("a dog")[0] == "a photo of a dog"
    assert model.retained("cat") == ("dog",)
