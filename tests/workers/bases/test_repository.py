"""A base that is a repository: read from the hub once, then from the cache, in its own variant."""

import json

import pytest
import torch
from huggingface_hub import constants

from orchestrator.core.errors import ResurgeError
from tests.workers.bases.hub import COMMIT, NAME, Hub
from workers.bases.diffusers import Diffusers
from workers.data import pipeline_files
from workers.interfaces.pipeline import PARTS


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """The hub, and a cache of one's own, empty."""
    made = Hub(folder)
    template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    go_online(monkeypatch, True)
    yield made
    made.close()
    pipeline_files._is_hub_there.cache_clear()


def go_online(monkeypatch, is_online):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not is_online)
    pipeline_files._is_hub_there.cache_clear()


def base(**settings):
    return Diffusers(Diffusers.Settings(source=NAME, revision=COMMIT, **settings))


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "DiffusionXLPipeline"),
        ("unet/config.json", {"sample_size": None}, "the UNet has sample_size null"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "is a LCMScheduler"),
    ],
)
def test_another_model_is_refused_when_it_is_planned(hub, folder, monkeypatch, file, values, said):
    change(folder / file, **values)
    for _ in range(2):
        with pytest.raises(ResurgeError) as error:
            base().fingerprint()
        assert said in str(error.value)
        assert NAME in str(error.value)
        go_online(monkeypatch, False)  # the second time the cache has it
    assert not [path for path in hub.asked if path.endswith((".safetensors", ".bin"))]


def test_planning_without_a_hub_says_nothing(hub, monkeypatch):
    go_online(monkeypatch, False)
    assert base().fingerprint() == COMMIT
    assert hub.asked == []


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_it_is_read_from_the_hub_and_then_from_the_cache(hub, pipe, folder, monkeypatch, variant):
    for part in PARTS if variant else ():
        for file in (folder / part).glob("*.safetensors"):
            file.rename(file.with_name(f"{file.stem}.{variant}{file.suffix}"))
    loaded = base().load("cpu")
    for part in PARTS:
        for name, value in getattr(pipe, part).state_dict().items():
            assert torch.equal(getattr(loaded, part).state_dict()[name], value), name
    go_online(monkeypatch, False)
    del hub.asked[:]
    if variant is None:
        assert base().load("cpu")
    else:
        # Whether the repository has other weights the cache does not know.
        with pytest.raises(ResurgeError, match="set variant: fp16 if these are meant"):
            base().load("cpu")
    assert base(variant=variant).load("cpu")
    assert hub.asked == []


def test_what_is_only_partly_in_the_cache_is_not_read(hub, monkeypatch):
    assert base().fingerprint() == COMMIT
    go_online(monkeypatch, False)
    with pytest.raises(ResurgeError, match="the local cache does not hold all of it"):
        base().load("cpu")
