"""The dashboard answers this machine's own browser, over a real socket, and nobody else."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from wsgiref.simple_server import make_server

import optuna
import pytest

from orchestrator.cli.servers import ui
from orchestrator.core.errors import ResurgeError
from orchestrator.study.dashboard import _Quiet, _Server, serve, studies_app


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One study."""
    url = f"sqlite:///{tmp_path_factory.mktemp('studies') / 'studies.db'}"
    optuna.create_study(storage=url, study_name="found")
    return url


@pytest.fixture(scope="module")
def port(storage: str) -> Iterator[int]:
    """Where it is served."""
    with make_server("127.0.0.1", 0, studies_app(storage), _Server, _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, method: str, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def studies(port: int) -> list[str]:
    _, text = ask(port, "GET", "/api/studies", Host=f"127.0.0.1:{port}")
    return [study["study_name"] for study in json.loads(text)["study_summaries"]]


@pytest.mark.parametrize("name", ["127.0.0.1:{port}", "localhost:{port}", "localhost:9000"])
def test_this_machine_is_answered(port: int, name: str) -> None:
    host = name.format(port=port)
    assert ask(port, "GET", "/dashboard", Host=host)[0] == 200
    own = {"Host": host, "Origin": f"http://{host}"}
    assert ask(port, "GET", "/api/studies", **own)[0] == 200


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example:{port}"},
        {"Host": "10.0.0.1"},
        {"Host": "[::1"},
        {"Host": ""},
        {},
        {"Host": "127.0.0.1:{port}", "Origin": "http://evil.example"},
        {"Host": "127.0.0.1:{port}", "Origin": "http://127.0.0.1:1"},
        {"Host": "127.0.0.1:{port}", "Origin": "http://127.0.0.1:{port}.evil.example"},
        {"Host": "127.0.0.1:{port}", "Origin": "null"},
        {"Host": "127.0.0.1:{port}", "Origin": ""},
    ],
)
def test_others_are_not(port: int, method: str, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=port) for name, value in headers.items()}
    status, text = ask(port, method, "/api/studies/1", **sent)
    assert status == 403
    assert "Host" in text or "Origin" in text
    assert studies(port) == ["found"]


def test_there_must_be_studies(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path / 'studies.db'}", f"journal://{tmp_path / 'journal'}"):
        with pytest.raises(ResurgeError, match="there are no studies at"):
            studies_app(url)


def test_what_is_no_database_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_text("no database " * 100)
    with pytest.raises(ResurgeError, match=r"studies\.db cannot be used: .*not a database"):
        studies_app(f"sqlite:///{tmp_path / 'studies.db'}")


def test_a_port_in_use_is_said(
    storage: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RESURGE_MLFLOW", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ResurgeError, match=rf"port {port} cannot be used .*--port"):
            serve(studies_app(storage), port, lambda: pytest.fail("nothing is open"))
        with pytest.raises(ResurgeError, match=rf"port {port} cannot be used .*--port"):
            ui(tmp_path, port)
        assert capsys.readouterr().out == "", "no address that is another's"
