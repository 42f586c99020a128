"""A model is read with every weight from its files, or not at all."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    CLIPModel,
    CLIPTextModel,
)

from orchestrator.core.errors import ResurgeError
from tests.workers.metrics.tiny_models import noise_images, save_classifier, save_clip
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import WEIGHTS
from workers.data.loading import load_model, load_weights
from workers.data.pinned import Source
from workers.judging.classes import load_classifier
from workers.judging.clip import load_clip

PARTS = {
    "unet": ("diffusion_pytorch_model.safetensors", "conv_out.weight"),
    "vae": ("diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"),
    "text_encoder": ("model.safetensors", "final_layer_norm.weight"),
}
KINDS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def without(key):
    return lambda tensors: tensors.pop(key)


def beside(key):
    return lambda tensors: tensors.update({f"{key}.twice": tensors[key].clone()})


def reshaped(key):
    return lambda tensors: tensors.update({key: torch.zeros(3, 2)})


CHANGES = {
    "missing": (without, "missing: {key}"),
    "unexpected": (beside, "not the model's: {key}.twice"),
    "mismatched": (reshaped, "{key}"),
}


def change(file, how):
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A copy of the bundled base."""
    return shutil.copytree(WEIGHTS, tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def folder(whole, tmp_path):
    """The same, to be changed: links to what stays."""
    for inner in whole.rglob("*"):
        there = tmp_path / "model" / inner.relative_to(whole)
        there.parent.mkdir(parents=True, exist_ok=True)
        if inner.is_file() and "safetensors" not in inner.name:
            shutil.copy(inner, there)
        elif inner.is_file():
            there.symlink_to(inner)
    return tmp_path / "model"


def own(file):
    """In the place of a link, a copy of what it leads to."""
    shutil.copy(file.resolve(), copy := file.with_suffix(".copy"))
    copy.rename(file)
    return file


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("part", PARTS)
def test_a_pipeline_whose_part_lacks_a_weight_or_has_another_is_refused(folder, part, what):
    file, key = PARTS[part]
    how, said = CHANGES[what]
    change(own(folder / part / file), how(key))
    with pytest.raises(ResurgeError) as error:
        Diffusers(Diffusers.Settings(source=str(folder))).load("cpu")
    assert said.format(key=key) in str(error.value)
    assert str(folder) in str(error.value)
    assert part in str(error.value)


@pytest.mark.parametrize("part", PARTS)
def test_buffers_that_are_counted_anew_may_stand_in_the_file(folder, part):
    file, _ = PARTS[part]
    ids = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    change(own(folder / part / file), lambda tensors: tensors.update(ids))
    load_weights(KINDS[part], str(folder), part=part, use_safetensors=True)


MODELS = {
    "clip": (save_clip, CLIPModel, "visual_projection.weight"),
    "classifier": (
        lambda folder: save_classifier(folder, ("a", "b")),
        AutoModelForImageClassification,
        "classifier.1.weight",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("name", MODELS)
def test_a_metrics_model_that_lacks_a_weight_or_has_another_is_refused(tmp_path, name, what):
    save, kind, key = MODELS[name]
    how, said = CHANGES[what]
    change(save(tmp_path / name) / "model.safetensors", how(key))
    with pytest.raises(ResurgeError) as error:
        load_model(kind, Source(str(tmp_path / name)))
    assert said.format(key=key) in str(error.value)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "start"), [("clip", "text_"), ("clip", "vision_model."), ("classifier", "classifier.")]
)
def test_half_a_model_is_refused_with_a_few_names_and_how_many_more(tmp_path, name, start):
    """A vision-only or text-only CLIP, a classifier without its head."""
    save, kind, _ = MODELS[name]
    gone = []

    def halve(tensors):
        gone.extend(sorted(key for key in tensors if key.startswith(start)))
        for key in gone:
            del tensors[key]

    change(save(tmp_path / name) / "model.safetensors", halve)
    with pytest.raises(ResurgeError) as error:
        load_model(kind, Source(str(tmp_path / name)))
    more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
    assert f"(missing: {', '.join(gone[:3])}{more});" in str(error.value)


def test_counters_of_batches_may_be_missing(tmp_path):
    save, kind, _ = MODELS["classifier"]

    def drop(tensors):
        for key in [key for key in tensors if key.endswith("num_batches_tracked")]:
            del tensors[key]

    change(save(tmp_path / "model") / "model.safetensors", drop)
    load_model(kind, Source(str(tmp_path / "model")))


def test_a_clip_with_another_models_tokenizer_is_refused(tmp_path):
    save_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["vocab_size"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = "text_model.embeddings.token_embedding.weight"
    change(
        tmp_path / "model.safetensors", lambda tensors: tensors.update({name: tensors[name][:7]})
    )
    with pytest.raises(ResurgeError, match="take the tokenizer that the model was made with"):
        load_clip(Source(str(tmp_path)))


@pytest.mark.parametrize("name", MODELS)
def test_a_metrics_model_that_gives_no_numbers_is_refused(tmp_path, name):
    save, _, key = MODELS[name]
    file = save(tmp_path / name) / "model.safetensors"
    change(file, lambda tensors: tensors[key].fill_(torch.nan))
    ask = {
        "clip": lambda source: load_clip(source).images(noise_images(2)),
        "classifier": lambda source: load_classifier(source).probabilities(noise_images(2)),
    }
    with pytest.raises(FloatingPointError, match="not finite"):
        ask[name](Source(str(tmp_path / name)))
