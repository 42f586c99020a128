import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.diffusion.lora import Lora
from workers.editing.edit_file import load_edits, save_edits
from workers.editing.edits import Weights
from workers.recipes import FinetuneSettings

WEIGHT = "unet.conv_in.weight"


def disturb(pipe):
    with torch.no_grad():
        for part in (pipe.unet, pipe.text_encoder):
            for value in part.parameters():
                value += 0.1 * value.abs() + 0.01


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_reset_undoes_edits_bit_for_bit(warm):
    before = {name: value.clone() for name, value in warm.state().items()}
    disturb(warm.pipe)
    assert not same(warm.state(), before)
    warm.reset()
    assert same(warm.state(), before)
    assert warm.changed() == {}


def test_changed_has_only_what_differs(warm):
    with torch.no_grad():
        warm.pipe.unet.conv_in.weight += 1
    changed = warm.changed()
    assert list(changed) == [WEIGHT]
    assert torch.equal(changed[WEIGHT], warm.pipe.unet.conv_in.weight)


def test_an_edit_saved_and_applied_is_the_same_edit(warm, tmp_path):
    disturb(warm.pipe)
    edited = warm.state()
    save_edits(tmp_path / "edits.safetensors", warm.now())
    warm.reset()
    warm.put(load_edits(tmp_path / "edits.safetensors"))
    assert same(warm.state(), edited)


def test_putting_edits_begins_at_the_base_and_not_at_the_present_model(warm):
    disturb(warm.pipe)
    warm.put([])
    assert warm.changed() == {}


def test_a_snapshot_does_not_follow_later_edits(warm):
    snapshot = warm.state()
    disturb(warm.pipe)
    assert same(snapshot, warm.base_state())


def test_reset_recovers_from_an_edit_that_died_half_way(warm):
    Lora(warm.pipe.unet, FinetuneSettings(adapter="lora"), seed=0)
    warm.reset()
    assert warm.changed() == {}


def test_weights_of_another_model_are_refused(warm):
    with pytest.raises(ResurgeError, match=r"do not fit the base: unet\.conv_in\.weight"):
        warm.put([Weights({WEIGHT: torch.zeros(1)})])
