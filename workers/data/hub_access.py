"""Reading from the Hugging Face hub, and what to say where it cannot be reached."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from orchestrator.core.errors import ResurgeError
from workers.data.pinned import CONFIG, Source, read_config

PATIENCE_S = 3.0
"""How long planning waits for a hub that does not answer, once a process."""
_NO_WAY_THERE = frozenset(
    {
        "ConnectError", "ConnectionError", "ConnectTimeout", "LocalEntryNotFoundError",
        "NetworkError", "OfflineModeIsEnabled", "ProxyError", "ReadTimeout", "TimeoutException",
        "TransportError", "gaierror",
    }
)  # fmt: skip
"""Names of classes, for the hub's clients have changed the library that they are made with."""


@contextmanager
def asking_the_hub(source: Source, kind: Literal["model", "dataset"] = "model") -> Iterator[None]:
    """Read a source from the hub without a line for each try; a folder is read as it is.

    Raises:
        ResurgeError: the hub cannot be reached, and not all of it is here.
    """
    if source.path.exists():
        yield
        return
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except ResurgeError:
        raise
    except Exception as error:  # the readers raise whatever they trip over
        if not _is_out_of_reach(error):
            raise
        raise out_of_reach(source, kind) from error
    finally:
        log.setLevel(before)


def config_of(source: Source) -> dict[str, Any] | None:
    """A model's config.json, fetched like the model itself; None if there is none to be had.

    Raises:
        DataError: it is damaged.
    """
    if source.path.exists():
        return source.config()
    from huggingface_hub import hf_hub_download

    try:
        with asking_the_hub(source):
            file = hf_hub_download(source.name, CONFIG, revision=source.revision)
    except Exception:  # who loads the model says what is wrong with the way there
        return None
    return read_config(Path(file))


def config_ahead(source: Source) -> dict[str, Any] | None:
    """The same without waiting: of a folder, from the cache, or from a hub that answers at once.

    None where it cannot be known yet; that is no fault, for a worker may know more.

    Raises:
        DataError: it is damaged.
    """
    if source.path.exists():
        return source.config()
    from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache

    here = try_to_load_from_cache(source.name, CONFIG, revision=source.revision)
    if isinstance(here, str):
        return read_config(Path(here))
    return None if is_offline_mode() else _answered(source, constants.ENDPOINT)


@cache
def _answered(source: Source, hub: str) -> dict[str, Any] | None:
    """What a hub has, asked once: of one that does not answer nothing more is asked."""
    if hub in _silent:
        return None
    found: list[dict[str, Any] | None] = []
    # A thread, because nothing else ends a look-up of the hub's name that hangs.
    asking = threading.Thread(target=lambda: found.append(_get(source, hub)), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    if not found:
        _silent.add(hub)
        return None
    return found[0]


_silent: set[str] = set()


def _get(source: Source, hub: str) -> dict[str, Any] | None:
    from huggingface_hub import get_session, get_token

    url = f"{hub}/{source.name}/resolve/{source.revision}/{CONFIG}"
    try:
        token = get_token()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = get_session().get(url, headers=headers, timeout=PATIENCE_S)
        found = json.loads(answer.text) if answer.status_code == 200 else None
    except Exception as error:  # the hub's clients raise whatever they trip over
        if _is_out_of_reach(error):
            _silent.add(hub)
        return None
    return found if isinstance(found, dict) else None


def _is_out_of_reach(error: BaseException) -> bool:
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:
        if _NO_WAY_THERE.intersection(cls.__name__ for cls in type(at).__mro__):
            return True
        seen.add(id(at))
        at = at.__cause__ or at.__context__
    return False


def out_of_reach(source: Source, kind: Literal["model", "dataset"] = "model") -> ResurgeError:
    """What to say of a repository that is neither here nor to be had."""
    from huggingface_hub import constants, is_offline_mode

    why = " (HF_HUB_OFFLINE is set)" if is_offline_mode() else ""
    which = "" if kind == "model" else " --repo-type dataset"
    return ResurgeError(
        f"cannot read {source.name}@{source.revision}: the Hugging Face hub cannot be reached"
        f"{why}, and the cache {constants.HF_HUB_CACHE} does not hold all of it. Where there is a "
        "network, "
        f"run `hf download {source.name}{which} --revision {source.revision} --local-dir FOLDER`, "
        "copy FOLDER to this machine and name it in the repository's place, without a revision; or "
        "copy the cache and set HF_HOME to its folder"
    )
