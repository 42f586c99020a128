import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from orchestrator.core.errors import ResurgeError
from tests.workers.bases.single_file import original_names
from workers.bases.diffusers import Diffusers

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def base(source, **settings):
    return Diffusers(Diffusers.Settings(source=str(source), **settings))


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def assert_same_weights(a, b):
    for part in ("unet", "vae", "text_encoder"):
        found, wanted = getattr(a, part).state_dict(), getattr(b, part).state_dict()
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(found[name], value), name


def test_a_folder_loads_with_the_same_weights(pipe, folder):
    loaded = base(folder).load("cpu")
    assert_same_weights(loaded, pipe)
    assert not loaded.unet.training
    assert loaded.safety_checker is None
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert loaded.scheduler.alphas_cumprod.equal(pipe.scheduler.alphas_cumprod)


def test_half_precision_files_are_read_as_fp32(pipe, tmp_path):
    pipe.unet.half()
    pipe.text_encoder.half()
    pipe.save_pretrained(tmp_path, variant="fp16")
    loaded = base(tmp_path).load("cpu")
    assert loaded.unet.dtype == loaded.text_encoder.dtype == torch.float32


def test_weights_may_be_asked_for_in_half_precision(folder):
    loaded = base(folder, torch_dtype="bfloat16").load("cpu")
    assert loaded.unet.dtype == loaded.vae.dtype == loaded.text_encoder.dtype == torch.bfloat16


def test_v_prediction_is_the_schedulers_own(folder):
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert base(folder).load("cpu").scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "epsilon, v_prediction"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "one text encoder"),
        ("unet/config.json", {"cross_attention_dim": 32}, "cannot load"),
    ],
)
def test_another_kind_of_model_is_a_clear_error(folder, file, values, said):
    change(folder / file, **values)
    with pytest.raises(ResurgeError, match=said):
        base(folder).load("cpu")


def test_missing_weights_are_named(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    for use in (base(folder).fingerprint, lambda: base(folder).load("cpu")):
        with pytest.raises(ResurgeError, match="unet has no weights"):
            use()


@pytest.fixture
def pickled(pipe, tmp_path):
    """The folder with the UNet's weights in the old format."""
    pipe.save_pretrained(tmp_path / "pickled")
    unet = tmp_path / "pickled" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(pipe.unet.state_dict(), unet / "diffusion_pytorch_model.bin")
    return tmp_path / "pickled"


def test_pickles_are_refused(pickled):
    with pytest.raises(ResurgeError, match=r"diffusion_pytorch_model\.bin is a pickle.*allow_pick"):
        base(pickled).load("cpu")


def test_pickles_are_read_if_allowed(pipe, pickled):
    assert_same_weights(base(pickled, allow_pickle=True).load("cpu"), pipe)


def test_pickles_that_run_code_are_refused_even_then(pickled, tmp_path):
    class Touch:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "ran",))

    torch.save({"weight": Touch()}, pickled / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ResurgeError, match="cannot load"):
        base(pickled, allow_pickle=True).load("cpu")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def checkpoint(pipe, tmp_path):
    save_file(original_names(pipe), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_checkpoint_file_loads_with_its_configuration(pipe, checkpoint, folder):
    loaded = base(checkpoint, config=str(folder)).load("cpu")
    assert_same_weights(loaded, pipe)
    assert loaded.safety_checker is None
    assert loaded.tokenizer("a star").input_ids == pipe.tokenizer("a star").input_ids


def test_a_checkpoint_file_may_be_a_pickle_if_allowed(pipe, tmp_path, folder):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": original_names(pipe)}, file)
    with pytest.raises(ResurgeError, match=r"model\.ckpt is a pickle"):
        base(file, config=str(folder)).fingerprint()
    loaded = base(file, config=str(folder), allow_pickle=True).load("cpu")
    assert_same_weights(loaded, pipe)


def test_a_folders_fingerprint_follows_its_contents(folder, tmp_path):
    before = base(folder).fingerprint()
    moved = folder.rename(tmp_path / "moved")
    assert base(moved).fingerprint() == before
    change(moved / "unet" / "config.json", dropout=0.1)
    assert base(moved).fingerprint() != before


def test_a_checkpoint_files_fingerprint_follows_its_configuration(checkpoint, folder):
    before = base(checkpoint, config=str(folder)).fingerprint()
    assert before != base(checkpoint).fingerprint()
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert base(checkpoint, config=str(folder)).fingerprint() != before


def test_a_repository_is_named_by_its_commit():
    model = base("owner/name", revision=COMMIT)
    assert model.fingerprint() == COMMIT
    assert model.provenance() == {
        "source": "owner/name",
        "revision": COMMIT,
        "torch_dtype": "float32",
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "owner/name"}, "needs revision, a commit hash of 40 hex digits, but has none"),
        ({"source": "owner/name", "revision": "main"}, "but got 'main'; branches and tags move"),
        ({"source": "/no/where"}, "does not exist here"),
        ({"source": "{folder}", "revision": COMMIT}, "revision is for repositories"),
        ({"source": "{folder}", "config": "x"}, "config is for a checkpoint file"),
        ({"source": "{folder}", "templates": ("a {} {}", "{}")}, "once but got 'a {} {}'"),
        ({"source": "{folder}", "templates": ()}, "once but got no template"),
    ],
)
def test_settings_that_cannot_be_meant(folder, settings, said):
    with pytest.raises(ValidationError) as error:
        base(**(settings | {"source": settings["source"].replace("{folder}", str(folder))}))
    assert said in str(error.value)


def test_any_text_is_a_concept(folder):
    model = base(folder, retained=("dog", "cat"))
    assert model.concepts() is None
    assert model.prompts("a dog")[0] == "a photo of a dog"
    assert model.retained("cat") == ("dog",)
    assert base(folder, templates=("a {}!",)).prompts("{}") == ("a {}!",)


def test_the_anchor_is_the_settings_or_a_retained_concept(folder):
    assert base(folder).anchor("cat") == ""
    assert base(folder, retained=("cat", "dog")).anchor("cat") == "dog"
    assert base(folder, retained=("cat", "dog"), anchor="fish").anchor("cat") == "fish"


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "DiffusionXLPipeline"),
        ("scheduler/scheduler_config.json", {"_class_name": "TCDScheduler"}, "a TCDScheduler"),
    ],
)
def test_a_checkpoint_files_configuration_is_looked_at_when_it_is_planned(
    checkpoint, folder, file, values, said
):
    change(folder / file, **values)
    with pytest.raises(ResurgeError, match=said):
        base(checkpoint, config=str(folder)).fingerprint()


def without_one(weights, start):
    return {
        n: v for n, v in weights.items() if n != next(k for k in weights if k.startswith(start))
    }


def with_one_more(weights, start):
    return weights | {f"{start}more.weight": torch.zeros(2)}


def with_another_shape(weights, start):
    name = next(k for k in weights if k.startswith(start))
    return weights | {name: torch.zeros(3, 2, 1, 1)}


UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


@pytest.mark.parametrize(
    ("start", "how"),
    [
        *((start, without_one) for start in (UNET, VAE, TEXT)),
        *((start, with_another_shape) for start in (UNET, VAE, TEXT)),
        # Text encoders are stored with layers that are not used.
        *((start, with_one_more) for start in (UNET, VAE)),
    ],
)
def test_a_checkpoint_file_with_other_weights_than_the_models_is_refused(
    pipe, tmp_path, folder, start, how
):
    file = tmp_path / "model.safetensors"
    save_file(how(original_names(pipe), start), file)
    with pytest.raises(ResurgeError) as error:
        base(file, config=str(folder)).load("cpu")
    assert str(file) in str(error.value)
