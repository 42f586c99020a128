"""Reading from the Hugging Face hub, and what to say where it cannot be reached."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from orchestrator.core.errors import ResurgeError

if TYPE_CHECKING:
    from workers.data.pinned import Source

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
