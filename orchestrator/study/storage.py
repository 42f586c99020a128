"""Where studies live: SQLite, another database, or a journal on a shared folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from orchestrator.core.errors import ResurgeError

SQLITE, JOURNAL = "sqlite:///", "journal://"


BUSY_TIMEOUT_S = 60
_SECRET = re.compile(r"(?<=[?&]password=)[^&]+")


def open_storage(url: str) -> BaseStorage:
    """The storage behind a database URL or journal:///path.

    Raises:
        ResurgeError: it is neither. Drivers raise whatever they like: see `unusable`.
    """
    place = file_of(url)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
    if url.startswith(JOURNAL) and place is not None:
        return JournalStorage(JournalFileBackend(str(place)))
    if url.startswith(JOURNAL) or "://" not in url:
        raise ResurgeError(
            f"studies must live at a database URL or journal:///path but got {shown_url(url)!r}"
        )
    if place is not None:
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}})
    return RDBStorage(url)


def file_of(url: str) -> Path | None:
    """The file of a SQLite or journal URL; None for a server."""
    if url.startswith(SQLITE):
        return Path(url.removeprefix(SQLITE).partition("?")[0])
    return Path(url.removeprefix(JOURNAL)) if url.startswith(f"{JOURNAL}/") else None


def unusable(url: str, error: Exception) -> ResurgeError:
    """A driver that is not installed, a server that is away, a file that is no database: each
    raises something of its own.
    """
    if isinstance(error, ResurgeError):
        return error
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    for secret in _secrets(url):
        what = what.replace(secret, "***")
    return ResurgeError(f"the studies at {shown_url(url)} cannot be used: {what}")


def shown_url(url: str) -> str:
    """A database's URL without its password."""
    scheme, sign, rest = url.partition("://") if "://" in url else ("", "", url)
    if not rest.startswith("/"):
        user, at, place = rest.rpartition("@")
        name, colon, _ = user.partition(":")
        rest = f"{name}{':***' if colon else ''}{at}{place}"
    return f"{scheme}{sign}{_SECRET.sub('***', rest)}"


def _secrets(url: str) -> list[str]:
    """The password as it stands in the URL, and as it is meant."""
    rest = url.partition("://")[2] or url
    given = _SECRET.findall(rest)
    if not rest.startswith("/"):
        given.append(rest.rpartition("@")[0].partition(":")[2])
    return [text for one in given if one for text in dict.fromkeys((one, unquote(one)))]
