"""A hub that cannot be reached is one sentence that says what to do, whoever asked for what."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import _http

from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Asked
from workers.bases.diffusers import Diffusers
from workers.data import distance, hub_access
from workers.data.hub_access import asking_the_hub
from workers.data.pinned import Source
from workers.datasets.hub import Hub
from workers.interfaces.dataset import Examples
from workers.judging.classes import NoClassError, load_classifier
from workers.judging.clip import load_clip
from workers.materials.masks import Masks
from workers.metrics.classifier import Classifier
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


CLASSES = json.dumps({"id2label": {"0": "tabby, tabby cat", "1": "golden retriever"}})


@pytest.fixture
def hub(request, monkeypatch, tmp_path):
    """A hub that answers a request for config.json with this, or not at all; what it was asked."""
    status, text, release = *request.param, threading.Event()
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if status is None:
                release.wait()
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(hub_access, "PATIENCE_S", 0.2 if status is None else 60.0)
    close_session()
    yield asked
    release.set()
    server.shutdown()
    server.server_close()
    close_session()


def judge(**settings: object) -> Classifier:
    return Classifier(Classifier.Settings(model="owner/name", revision=COMMIT, **settings))


def said(*concepts: str, **settings: object) -> list[str]:
    """What planning says of a judge on the hub."""
    return judge(**settings).problems_with(Asked(concepts, {}))


@pytest.mark.parametrize("hub", [(200, CLASSES)], indirect=True)
def test_planning_asks_a_hub_once_for_the_classes_of_a_judge(hub) -> None:
    assert said("tabby cat", "Golden Retriever") == []
    (what,) = said("tabby cat", "golden retreiver", "zebra")
    assert "no class for 'golden retreiver' (near: golden retriever), 'zebra'" in what
    assert hub == [f"/owner/name/resolve/{COMMIT}/config.json"]


@pytest.mark.parametrize(
    "hub", [(None, ""), (404, "no"), (200, "no JSON"), (200, "[]"), (200, "{}")], indirect=True
)
def test_what_a_hub_does_not_tell_is_no_fault(hub) -> None:
    assert said("zebra") == said("another") == []
    assert len(hub) <= 1  # one that does not answer may not even have heard


@pytest.mark.parametrize("away", ["offline", "no way there"], indirect=True)
def test_planning_goes_on_without_a_hub(away: str, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert said("zebra") == said("another") == []
    judge().look_ahead(["zebra"], [])  # who loads the model says that there is no way


@pytest.mark.parametrize("away", ["offline"], indirect=True)
def test_a_model_in_the_cache_tells_its_classes(away: str, tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(CLASSES)
    (what,) = said("zebra")
    with pytest.raises(NoClassError) as raised:
        judge().look_ahead(["tabby"], ["zebra"])
    assert str(raised.value) == what
    (folder / "config.json").write_text("not JSON")
    assert "cannot read" in said("zebra")[0]


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), asking_the_hub(SOURCE):
        raise KeyError("x")
