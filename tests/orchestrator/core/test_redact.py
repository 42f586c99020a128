"""Credentials do not get into text that is stored, logged, sent or shown."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.errors import SweepError
from orchestrator.core.redact import has_credentials, passwords_of, redact
from orchestrator.sweepfile.load import parse

RECORDING = Path(__file__).parents[2] / "recording"
RESURGE = str(Path(sys.executable).parent / "resurge")

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED000000001",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret==",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "RAY_AUTH_TOKEN": "planted-ray-token",
    "PGPASSWORD": "planted-pg-password",
    "HF_TOKEN": "hf_plantedplanted",
}
IN_A_URL = "planted%2Furl-password"
IN_A_COMMENT = "planted-in-a-comment"

LEAK = """
import os

from workers.interfaces.unlearner import Erasure, Unlearned, Unlearner


class Leak(Unlearner):
    \"\"\"Fail with an error that holds every secret of the environment.\"\"\"

    name = "leak"
    seeded = False

    def unlearn(self, erasure: Erasure) -> Unlearned:
        values = [os.environ[name] for name in os.environ["RESURGE_TEST_LEAK"].split()]
        raise RuntimeError(f"cannot log in as {' and '.join(values)}")
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://ann:pa55@host:5000/x", "at http://ann:***@host:5000/x"),
        ("at http://ann:p@55@host/x", "at http://ann:***@host/x"),
        ("the folder http:/ann:pa55@host/x", "the folder http:/ann:***@host/x"),
        ("the folder https:/ghp_1234@host/x", "the folder https:/***@host/x"),
        ("the folder s3:/ann:p/q@bucket/x", "the folder s3:/ann:***@bucket/x"),
        ("the folder C:/ann/a@b and E:/x", "the folder C:/ann/a@b and E:/x"),
        ("postgresql+psycopg://ann:p/q@host/db", "postgresql+psycopg://ann:***@host/db"),
        ("postgresql://h/db?user=a&password=pw&x=1", "postgresql://h/db?user=a&password=***&x=1"),
        ("https://ghp_1234@github.com/a/b", "https://***@github.com/a/b"),
        ("# token: abc, and more", "# token: ***, and more"),
        ('{"password": "a b", "user": "ann"}', '{"password": "***", "user": "ann"}'),
        ("AWS_SECRET_ACCESS_KEY=abc/def+1 x", "AWS_SECRET_ACCESS_KEY=*** x"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("api_key='k'", "api_key='***'"),
        # Nothing secret in these.
        ("postgresql://ann@host/db", "postgresql://ann@host/db"),
        ("http://127.0.0.1:5000/a/b@c", "http://127.0.0.1:5000/a/b@c"),
        ("unknown key 'token'; did you mean", "unknown key 'token'; did you mean"),
        ("max_tokens: 77, tokenizer: clip", "max_tokens: 77, tokenizer: clip"),
        ("edits: [{unlearn: {esd: {group: u}}}]", "edits: [{unlearn: {esd: {group: u}}}]"),
    ],
)
def test_credentials_are_taken_out_of_text(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://ann:p%40w@host/db", ["p%40w", "p@w"]),
        ("ann:pw@host/db", ["pw"]),
        ("postgresql://host/db?user=a&password=p%2Fw&x=1", ["p%2Fw", "p/w"]),
        ("postgresql://ann@host/db", []),
        ("sqlite:////home/a:b@c/studies.db", []),
    ],
)
def test_a_urls_passwords_are_known_as_written_and_as_meant(url: str, found: list[str]) -> None:
    assert passwords_of(url) == found


def test_the_environments_secrets_are_found_however_they_are_spelt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s/e+c r=et")
    monkeypatch.setenv("RESURGE_STUDIES", "postgresql://ann:un%2Fguessed@host/db")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled-here")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/some/where.token")
    text = redact("s/e+c r=et s%2Fe%2Bc%20r%3Det un%2Fguessed un/guessed also")
    assert text == "*** *** *** *** also"
    assert redact("disabled-here in /some/where.token") == "disabled-here in /some/where.token"
    assert redact("a known one", ["known"]) == "a *** one"


def test_a_sweep_with_a_password_in_a_url_is_refused_without_showing_it(small: str) -> None:
    url = "http://ann:hunter22@mlflow:5000"
    assert has_credentials(url)
    for text, overrides, where in [
        (f"{small}mlflow: {url}\n", (), "sweep.yaml:11: mlflow"),
        (small, (f"mlflow={url}",), "command line: mlflow"),
    ]:
        with pytest.raises(SweepError) as caught:
            parse(text, "sweep.yaml", overrides)
        assert where in str(caught.value)
        assert "MLFLOW_TRACKING_USERNAME" in str(caught.value)
        assert "hunter22" not in str(caught.value)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, calls: object) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RESURGE_STUDIES", f"postgresql://ann:{IN_A_URL}@127.0.0.1:1/db")
    monkeypatch.setenv("RESURGE_TEST_LEAK", " ".join([*PLANTED, "RESURGE_STUDIES"]))


def secrets() -> Iterator[bytes]:
    for text in (*PLANTED.values(), IN_A_URL, IN_A_URL.replace("%2F", "/"), IN_A_COMMENT):
        yield text.encode()


def resurge(folder: Path, *words: str) -> bytes:
    done = subprocess.run([RESURGE, *words], cwd=folder, capture_output=True)
    return done.stdout + done.stderr


def assert_nothing_is_in(what: bytes, where: object) -> None:
    found = [secret for secret in secrets() if secret in what]
    assert not found, (where, found)


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_no_planted_secret_is_written_or_shown(
    tmp_path: Path, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = tmp_path / "plugins"
    shutil.copytree(RECORDING, plugins)
    (plugins / "leak.py").write_text(LEAK)
    monkeypatch.setenv("RESURGE_PLUGINS", str(plugins))
    (tmp_path / "small.yaml").write_text(f"# token={IN_A_COMMENT}\n{small}")
    brief = ("unlearn=[nudge, leak]", "seeds=1", "finetune.learning_rate=1e-3")
    printed = resurge(tmp_path, "run", "small.yaml", *brief)
    assert b"1 failed" in printed, printed.decode()
    assert b"cannot log in as *** and ***" in printed
    for words in (("status", "small"), ("results", "small"), ("list", "sweeps"), ("sync", "small")):
        printed += resurge(tmp_path, *words)
    assert b"small  failed" in printed
    assert_nothing_is_in(printed, "what was printed")
    assert_nothing_is_below(tmp_path / ".resurge")


def assert_nothing_is_below(home: Path) -> None:
    files = [path for path in home.rglob("*") if path.is_file()]
    assert {"mlflow.db", "small.json"} <= {path.name for path in files}
    for path in files:
        assert_nothing_is_in(path.read_bytes(), path)
    database = sqlite3.connect(home / "mlflow.db")
    assert_nothing_is_in("\n".join(database.iterdump()).encode(), "mlflow.db")
    database.close()
