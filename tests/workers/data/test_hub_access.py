"""A hub that cannot be reached is one sentence that says what to do, whoever asked for what."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import _http

from orchestrator.core.errors import ResurgeError
from workers.bases.diffusers import Diffusers
from workers.data import distance
from workers.data.hub_access import asking_the_hub
from workers.data.pinned import Source
from workers.datasets.hub import Hub
from workers.interfaces.dataset import Examples
from workers.judging.classes import load_classifier
from workers.judging.clip import load_clip
from workers.materials.masks import Masks
from workers.runtime.causes import cause_of, message_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = Source("owner/name", COMMIT)
PICTURES = Examples(np.zeros((1, 8, 8, 3), np.uint8), ("one",))


def base() -> object:
    return Diffusers(Diffusers.Settings(source="owner/name", revision=COMMIT)).load("cpu")


def dataset() -> object:
    return Hub(Hub.Settings(repository="owner/name", revision=COMMIT)).examples("star", 8)


def stream() -> object:
    settings = Hub.Settings(repository="owner/name", revision=COMMIT, streaming=True, size=1)
    return Hub(settings).examples("star", 8)


def nearest() -> object:
    return distance.by_clip(PICTURES, "star", SOURCE)


def segmenter() -> object:
    masks = Masks(Masks.Settings(segmenter="clipseg", model="owner/name", revision=COMMIT))
    return masks._clipseg(None, "star", None)  # type: ignore[arg-type]


def clip() -> object:
    return load_clip(SOURCE)


def classifier() -> object:
    return load_classifier(SOURCE)


@pytest.fixture
def away(request, monkeypatch, tmp_path):
    """No hub, because it was asked for or because nothing answers; and nothing in the cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # between the client's tries
    close_session()
    yield request.param
    close_session()


ASKED = [base, dataset, stream, nearest, segmenter, clip, classifier]
CASES = [("offline", ask) for ask in ASKED]
CASES += [("no way there", ask) for ask in (base, dataset, segmenter)]


@pytest.mark.parametrize(("away", "ask"), CASES, indirect=["away"])
def test_a_hub_out_of_reach_is_one_sentence(
    ask: Callable[[], object], away: str, caplog, capfd
) -> None:
    with pytest.raises(ResurgeError) as raised:
        ask()
    message = message_of(raised.value)
    assert f"cannot read owner/name@{COMMIT}: the Hugging Face hub cannot be reached" in message
    assert ("(HF_HUB_OFFLINE is set)" in message) == (away == "offline")
    what = " --repo-type dataset" if ask in (dataset, stream) else ""
    assert f"`hf download owner/name{what} --revision {COMMIT} --local-dir FOLDER`" in message
    assert "set HF_HOME" in message and len(message) < 800
    assert cause_of(raised.value) == "input"
    assert not [record for record in caplog.records if "Retrying" in record.getMessage()]
    assert "Retrying" not in "".join(capfd.readouterr())


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), asking_the_hub(SOURCE):
        raise KeyError("x")
