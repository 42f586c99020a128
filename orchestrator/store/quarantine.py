"""Setting a damaged record aside, with its objects, so that its stage is not done any more.

quarantine/<16 hex>-<8 hex>/record.json, reason.json, objects/…
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging

from orchestrator.store.files import Files
from orchestrator.store.paths import OBJECTS, QUARANTINE, RECORDS, json_path

log = logging.getLogger("resurge.store")


def set_aside(files: Files, key: str, data: bytes, reason: str) -> str | None:
    """Move the record that was read as `data` out of the way; the folder that it is in now.

    None if there is another record by now, or none: somebody else has set it aside, and perhaps
    made it again, which must stay.
    """
    path = json_path(RECORDS, key)
    if files.read_bytes(path) != data:
        return None
    folder = f"{QUARANTINE}/{key}-{hashlib.sha256(data).hexdigest()[:8]}"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    why = {"key": key, "reason": reason, "set_aside": now}
    files.write(f"{folder}/reason.json", json.dumps(why, indent=1))
    # The record goes first: without it nobody looks for the objects.
    files.move(path, f"{folder}/record.json")
    try:
        named = [str(blob["path"]) for blob in json.loads(data)["objects"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        named = []  # what the record cannot say any more, `gc` finds
    for blob_path in named:
        if blob_path.startswith(f"{OBJECTS}/{key}-") and ".." not in blob_path:
            files.move(blob_path, f"{folder}/{blob_path}")
    log.warning("record %s was set aside in %s: %s", key, folder, reason)
    return folder
