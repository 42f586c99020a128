"""Where studies live: SQLite, another database, or a journal on a shared folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.core.errors import ResurgeError
from orchestrator.core.places import JOURNAL, file_of
from orchestrator.core.redact import passwords_of, redact, redact_urls

BUSY_TIMEOUT_S = 60


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


def unusable(url: str, error: BaseException | None) -> ResurgeError:
    """A driver that is not installed, a server that is away, a file that is no database: each
    raises something of its own.
    """
    if isinstance(error, ResurgeError):
        return error
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    what = redact(what, also=passwords_of(url))
    return ResurgeError(f"the studies at {shown_url(url)} cannot be used: {what}")


@contextlib.contextmanager
def using(url: str) -> Iterator[None]:
    """Inside, what a driver raises of a storage that was opened is an error of ours.

    Raises:
        ResurgeError: it was damaged, is locked, full or gone.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, OSError) as error:
        raise unusable(url, error.__cause__ if _says_nothing(error) else error) from error


def _says_nothing(error: Exception) -> bool:
    """Optuna's own says that something was raised; what, says its cause."""
    return isinstance(error, StorageInternalError) and isinstance(error.__cause__, Exception)


def shown_url(url: str) -> str:
    """A database's URL without its password; one that lacks its scheme may have one, too."""
    return redact_urls(url) if "://" in url else redact_urls(f"db://{url}").removeprefix("db://")
