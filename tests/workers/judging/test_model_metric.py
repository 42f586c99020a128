import json

import pytest
from pydantic import ValidationError

from orchestrator.core.errors import ResurgeError
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import Shapes
from workers.data.pinned import Source
from workers.judging.clip import load_clip
from workers.judging.model_metric import CLIP_L14, COMMITS
from workers.metrics.clip_accuracy import ClipAccuracy
from workers.metrics.clip_score import ClipScore, ClipScoreSettings
from workers.metrics.fid import Fid
from workers.metrics.q16 import Q16

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHAPES = Shapes(Shapes.Settings())
OTHER = Diffusers(Diffusers.Settings(source="owner/name", revision=COMMIT))


def test_a_known_models_commit_is_in_the_record():
    assert ClipScoreSettings().full()["revision"] == COMMITS[CLIP_L14]
    assert ClipScoreSettings(revision=COMMIT).revision == COMMIT


def test_a_filled_in_commit_is_part_of_the_identity():
    written = ClipScoreSettings(revision=COMMITS[CLIP_L14])
    assert ClipScoreSettings().identity() == written.identity() != {}


def test_lists_in_a_sweep_file_are_read():
    given = {"classes": ["star", "heart"], "model": "owner/name", "revision": COMMIT}
    found = ClipAccuracy.Settings.model_validate_json(json.dumps(given), strict=True)
    assert found.classes == ("star", "heart")


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_another_repository_needs_its_commit(revision):
    with pytest.raises(ValidationError, match="40 hex digits, but"):
        ClipScoreSettings(model="owner/name", revision=revision)


def test_what_is_neither_a_folder_nor_a_repository(tmp_path):
    with pytest.raises(ValidationError, match="a folder that exists or a repository id"):
        ClipScoreSettings(model=str(tmp_path / "missing"))


def test_a_folder_has_no_commit(tmp_path):
    with pytest.raises(ValidationError, match="revision is for repositories"):
        ClipScoreSettings(model=str(tmp_path), revision=COMMIT)


def test_the_judge_has_no_commit():
    with pytest.raises(ValidationError, match="revision is for repositories"):
        Fid.Settings(features="judge", revision=COMMIT)
    assert "'judge', a folder" in str(_error(features="nothing here"))


def _error(**settings):
    with pytest.raises(ValidationError) as caught:
        Fid.Settings(**settings)
    return caught.value


def test_the_fingerprint_is_the_commit_or_the_contents(tmp_path):
    (tmp_path / "weights").write_text("one")
    first = ClipScore(ClipScoreSettings(model=str(tmp_path))).fingerprint()
    (tmp_path / "weights").write_text("two")
    assert ClipScore(ClipScoreSettings(model=str(tmp_path))).fingerprint() != first
    pinned = ClipScore(ClipScoreSettings(model="owner/name", revision=COMMIT))
    assert pinned.fingerprint() == f"owner/name@{COMMIT}"


def test_the_judge_is_in_the_fingerprint():
    assert len(Fid(Fid.Settings()).fingerprint()) == 64


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ResurgeError, match=r"cannot load CLIPModel .* weights in safetensors"):
        load_clip(Source(str(tmp_path)))


def test_the_judge_is_for_the_bundled_world():
    fid = Fid(Fid.Settings())
    assert fid.problems(SHAPES, "star") == []
    assert "set features to a CLIP model" in fid.problems(OTHER, "star")[0]


def test_a_weight_file_that_is_missing_is_a_problem(tmp_path):
    metric = Q16(Q16.Settings(prompts=str(tmp_path / "prompts.safetensors")))
    assert "which does not exist" in metric.problems(SHAPES, "star")[0]
    pickled = tmp_path / "prompts.p"
    pickled.touch()
    metric = Q16(Q16.Settings(prompts=str(pickled)))
    assert "must be a .safetensors file" in metric.problems(SHAPES, "star")[0]
