"""Setting damage aside: a record with its objects, so that its stage is not done any more, or
another document of the store.

quarantine/<name>-<8 hex>/reason.json, record.json, objects/…
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import uuid

from orchestrator.core.errors import StoreError, StoreUnavailable
from orchestrator.store.files import Files, NotAFile
from orchestrator.store.paths import OBJECTS, QUARANTINE, RECORDS, is_path, json_path, name_in

log = logging.getLogger("resurge.store")


def set_aside(files: Files, path: str, data: bytes | None, reason: str) -> str | None:
    """Move the document that was read as `data` out of the way; the folder that it is in now.

    `data` is None of what is no file. None if there is another document by now, or none: somebody
    else has set it aside, and perhaps made it again, which must stay.
    """
    try:
        folder = _move_aside(files, path, data, reason)
    except StoreUnavailable:
        raise
    except StoreError as error:  # a store that is only read
        log.warning("%s is damaged (%s) and cannot be set aside: %s", path, reason, error)
        return None
    if folder is not None:
        log.warning("%s was set aside in %s: %s", path, folder, reason)
    return folder


def _move_aside(files: Files, path: str, data: bytes | None, reason: str) -> str | None:
    is_record = path == json_path(RECORDS, name_in(path))
    try:
        now = files.read_bytes(path)
        if now is None or now != data:
            return None
        mark = hashlib.sha256(now).hexdigest()[:8]
    except NotAFile:
        if data is not None:
            return None
        mark = uuid.uuid4().hex[:8]
    folder = f"{QUARANTINE}/{name_in(path)}-{mark}"
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    why = {"path": path, "reason": reason, "set_aside": when}
    files.write(f"{folder}/reason.json", json.dumps(why, indent=1))
    # The record goes first: without it nobody looks for the objects.
    files.move(path, f"{folder}/record.json" if is_record else f"{folder}/{path}")
    for blob_path in _objects_of(name_in(path), data) if is_record else ():
        files.move(blob_path, f"{folder}/{blob_path}")
    return folder


def _objects_of(key: str, data: bytes | None) -> list[str]:
    """The objects of a damaged record, as far as it can say; what it cannot, `gc` finds."""
    try:
        named = [str(blob["path"]) for blob in json.loads(data or b"")["objects"].values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return [path for path in named if path.startswith(f"{OBJECTS}/{key}-") and is_path(path)]
