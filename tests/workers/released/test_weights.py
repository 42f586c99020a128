"""Released models are read in the forms in which people publish them, or refused with words."""

import json
import shutil

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from orchestrator.core.errors import ResurgeError
from tests.workers.conftest import TinyShapes
from tests.workers.released.lora_files import add_lora, save_as_kohya
from tests.workers.unlearners.small import NoCheckpoints
from workers.editing.edits import live_parameters
from workers.editing.pipeline import WarmPipeline
from workers.interfaces.unlearner import Erasure
from workers.released.source import find_released
from workers.unlearners.weights import ReleasedWeights
from workers.updates.checkpoint import Checkpoint
from workers.updates.lora import Lora

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
CHANGED = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
FIRST = f"unet.{CHANGED}"


class OfAFolder(TinyShapes):
    """The tiny base as planning knows a base in a folder: by the shapes in its files."""

    def shapes(self):
        pipe = self.load("cpu")
        return {name: tuple(value.shape) for name, value in live_parameters(pipe).items()}


@pytest.fixture(scope="module")
def base():
    return OfAFolder(OfAFolder.Settings())


@pytest.fixture
def warm(base):
    return WarmPipeline(base, "cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("released") / "base"
    base.load("cpu").save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    """A model that differs from the base in one weight of the UNet and one of the text encoder."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    edit(folder / UNET, lambda tensors: tensors[CHANGED].add_(0.5))
    edit(folder / TEXT, lambda tensors: tensors[name_in(tensors)].mul_(2))
    return folder


def name_in(tensors):
    return next(name for name in tensors if name.endswith("layers.0.mlp.fc1.weight"))


def edit(path, change, rename=lambda name: name, dtype=None):
    tensors = load_file(path)
    change(tensors)
    tensors = {rename(n): v.to(dtype) if dtype else v for n, v in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def unlearn(warm, **settings):
    method = ReleasedWeights(ReleasedWeights.Settings(**settings))
    return method.unlearn(
        Erasure(
            pipe=warm.pipe,
            targets=(),
            retained_prompts=(),
            seed=0,
            progress=lambda *_: None,
            checkpoints=NoCheckpoints(),
            base=warm.base_state(),
        )
    ).edits


def test_a_folder_gives_exactly_what_differs(warm, model):
    [made] = unlearn(warm, source=str(model))
    assert {name.partition(".")[0] for name in made.values} == {"unet", "text_encoder"}
    assert len(made.values) == 2
    assert torch.equal(made.values[FIRST], load_file(model / UNET)[CHANGED])
    warm.put([made])
    assert warm.changed().keys() == made.values.keys()


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_part_s_folder_is_that_part(warm, model, part):
    [made] = unlearn(warm, source=str(model / part))
    assert [name.partition(".")[0] for name in made.values] == [part]


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_file_may_hold_some_weights(warm, model, tmp_path, prefix):
    tensors = load_file(model / UNET)
    save_file({f"{prefix}{CHANGED}": tensors[CHANGED]}, tmp_path / "some.safetensors")
    [made] = unlearn(warm, source=str(tmp_path / "some.safetensors"))
    assert list(made.values) == [FIRST]


def test_a_text_encoder_s_file_may_have_transformers_older_names(warm, model, tmp_path):
    old = {
        f"text_model.{name.removeprefix('text_model.')}": value
        for name, value in load_file(model / TEXT).items()
    }
    save_file(old, tmp_path / "text.safetensors")
    [made] = unlearn(warm, source=str(tmp_path / "text.safetensors"))
    assert [name.partition(".")[0] for name in made.values] == ["text_encoder"]


def test_half_precision_counts_only_what_it_changed(warm, model):
    edit(model / UNET, lambda _: None, dtype=torch.float16)
    [made] = unlearn(warm, source=str(model))
    assert len(made.values) == 2
    assert made.values[FIRST].dtype == torch.float32


def test_the_base_itself_is_refused(warm, saved, tmp_path):
    with pytest.raises(ResurgeError, match="no difference to measure"):
        unlearn(warm, source=str(saved))
    half = tmp_path / "half"
    shutil.copytree(saved, half)
    edit(half / UNET, lambda _: None, dtype=torch.float16)
    with pytest.raises(ResurgeError, match="no difference to measure"):
        unlearn(warm, source=str(half))


def test_on_a_model_that_was_changed_before_the_difference_is_added(warm, model):
    with torch.no_grad():
        warm.pipe.unet.get_parameter(CHANGED).sub_(1.0)
    [made] = unlearn(warm, source=str(model))
    expected = warm.base_state()[FIRST] - 1.0 + 0.5
    torch.testing.assert_close(made.values[FIRST], expected)


def test_another_base_can_be_named(warm, saved, model, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(saved, theirs)
    edit(theirs / UNET, lambda tensors: tensors[CHANGED].add_(0.25))
    [made] = unlearn(warm, source=str(model / "unet"), base=str(theirs))
    torch.testing.assert_close(made.values[FIRST], warm.base_state()[FIRST] + 0.25)


def test_a_lora_is_merged_and_scaled(warm, base, tmp_path):
    pipe = base.load("cpu")
    add_lora(pipe)
    path = save_as_kohya(pipe, tmp_path / "erased.safetensors")
    [once] = unlearn(warm, source=str(path))
    [half] = unlearn(warm, source=str(path), scale=0.5)
    before = warm.base_state()
    for name, value in once.values.items():
        torch.testing.assert_close(half.values[name], (value + before[name]) / 2)


def test_problems_are_told_before_anything_runs(base, model, tmp_path):
    def problems(path, cls=ReleasedWeights):
        return cls(cls.Settings(source=str(path))).problems(base, "star")

    assert problems(model) == []
    assert "is no LoRA" in problems(model, Lora)[0]
    (tmp_path / "esd.pt").write_bytes(b"PK")
    assert "is a pickle" in problems(tmp_path / "esd.pt")[0]
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    assert "no safetensors file" in problems(tmp_path / "cut.safetensors")[0]
    save_file({"double_blocks.0.x": torch.ones(1)}, tmp_path / "flux.safetensors")
    assert "a FLUX" in problems(tmp_path / "flux.safetensors")[0]
    save_file({CHANGED: torch.ones(3, 3)}, tmp_path / "wide.safetensors")
    assert "of another shape" in problems(tmp_path / "wide.safetensors")[0]
    edit(model / UNET, lambda tensors: tensors.pop(CHANGED))
    assert "missing: unet.mid_block" in problems(model)[0]
    (tmp_path / "empty").mkdir()
    assert "has none" in problems(tmp_path / "empty")[0]


def test_a_lora_is_no_checkpoint_and_must_fit(base, tmp_path):
    pipe = base.load("cpu")
    add_lora(pipe)
    path = save_as_kohya(pipe, tmp_path / "style.safetensors")
    assert Lora(Lora.Settings(source=str(path))).problems(base, "star") == []
    asked = Checkpoint(Checkpoint.Settings(source=str(path)))
    assert "is a LoRA" in asked.problems(base, "star")[0]
    tensors = {f"x_{n}".replace("x_lora", "lora"): v for n, v in load_file(path).items()}
    other = {n.replace("mid_block", "middle"): v for n, v in tensors.items()}
    save_file(other, tmp_path / "other.safetensors")
    [said] = Lora(Lora.Settings(source=str(tmp_path / "other.safetensors"))).problems(base, "star")
    assert "fit no layer" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "nowhere/at/all"}, "does not exist here"),
        ({"source": "owner/name"}, "needs a revision"),
        ({"source": "owner/name", "revision": "main"}, "40 hex digits"),
        ({"source": "owner/name", "revision": "a" * 40, "file": "../x.safetensors"}, "inside"),
        ({"source": "{model}", "revision": "a" * 40}, "revision is for repositories"),
        ({"source": "{model}", "file": "x.safetensors"}, "file is for repositories"),
        ({"source": "{model}", "base_revision": "a" * 40}, "name the repository as base"),
        ({"source": "{model}", "base": "owner/name"}, "needs a revision"),
    ],
)
def test_what_can_move_is_refused(model, settings, said):
    given = {k: v.format(model=model) for k, v in settings.items()}
    with pytest.raises(ValidationError, match=said):
        ReleasedWeights.Settings(**given)


def test_the_same_weights_of_another_computation_are_refused(warm, model):
    path = model / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 4}))
    with pytest.raises(ResurgeError, match="attention_head_dim"):
        unlearn(warm, source=str(model))


def test_a_model_that_predicts_something_else_is_refused(warm, model):
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "x"}))
    with pytest.raises(ResurgeError, match="prediction_type"):
        unlearn(warm, source=str(model))


def test_the_fingerprint_is_of_what_is_read(model, tmp_path):
    def fingerprint():
        return ReleasedWeights(ReleasedWeights.Settings(source=str(model))).fingerprint()

    before = fingerprint()
    (model / "README.md").write_text("hello")
    assert fingerprint() == before
    edit(model / UNET, lambda tensors: tensors[CHANGED].add_(1))
    assert fingerprint() != before
    commit = "a" * 40
    asked = ReleasedWeights(ReleasedWeights.Settings(source="owner/name", revision=commit))
    assert asked.fingerprint() == f"owner/name@{commit}"


def test_a_checkpoint_s_difference_is_what_is_added(warm, model):
    change = Checkpoint(Checkpoint.Settings(source=str(model))).change(warm.pipe, warm.base_state())
    assert len(change) == 2
    torch.testing.assert_close(change[FIRST], torch.full_like(change[FIRST], 0.5))


def test_files_to_choose_from_are_not_chosen(model, tmp_path):
    for name in ("a", "b"):
        save_file({CHANGED: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ResurgeError, match="name one of them"):
        find_released(tmp_path)
