"""optuna-dashboard on a search's studies, for this machine's own browser and nobody else.

It asks for no password and answers whatever Host and Origin it is asked with: a page of another
site could remove a study, by a name of its own that it lets point to this machine.

    python -m orchestrator.study.dashboard URL [--host 0.0.0.0] [--port 8080]

serves it in a container, whose own port is published on its machine's loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import file_of, refuse_used
from orchestrator.study.storage import open_storage, unusable

LOOPBACK = ("127.0.0.1", "localhost", "::1")
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: a line for every picture helps nobody."""


def studies_app(storage: str) -> WSGIApp:
    """The dashboard of the studies, behind a check of who asks.

    Raises:
        ResurgeError: there are no studies yet, or they cannot be read.
    """
    place = file_of(storage)
    if place is not None and not place.exists():
        raise ResurgeError(f"there are no studies at {place} yet; `resurge search` makes them")
    try:
        opened = open_storage(storage)
    except Exception as error:
        raise unusable(storage, error) from error
    from optuna_dashboard import wsgi

    return for_this_machine(wsgi(opened))


def serve(app: WSGIApp, port: int, ready: Callable[[], None], host: str = "127.0.0.1") -> None:
    """Answer until Ctrl-C.

    Args:
        ready: called once the port is open.

    Raises:
        ResurgeError: the port is in use.
    """
    refuse_used(port, host)
    with (
        make_server(host, port, app, _Server, _Quiet) as server,
        contextlib.suppress(KeyboardInterrupt),
    ):
        ready()
        server.serve_forever()


def for_this_machine(app: WSGIApp) -> WSGIApp:
    """Refuse (403) what is asked of another name than this machine's, or by a page of another."""

    def checked(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        problem = None
        if _name(f"//{host}") not in LOOPBACK:
            problem = f"Host {host!r} is not this machine: ask 127.0.0.1"
        elif origin is not None and origin.partition("://")[2] != host:
            problem = f"Origin {origin!r} is another page than {host!r}"
        if problem is None:
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [problem.encode("utf-8", "replace")]

    return checked


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def main() -> None:
    """The dashboard as a program of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("storage", help="the studies' database, or journal:///path")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()
    try:
        serve(studies_app(given.storage), given.port, lambda: None, given.host)
    except ResurgeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
