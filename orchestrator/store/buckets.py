"""Files in a bucket: s3:// with the endpoint and the credentials of the environment, and gs://."""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.core.errors import StoreError
from orchestrator.store.paths import Entry

# Short, and few: `Patience` is what waits. A hanging server is noticed by its silence. A second
# attempt, so that one lost part does not begin an upload of gigabytes again.
CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S, ATTEMPTS = 5, 30, 2
CHUNK_BYTES = 1 << 20


class Bucket:
    """Objects below a bucket's prefix. Paths are relative; errors are pyarrow's.

    An object is written in one move: it is there when its last byte is. Empty folders that other
    tools leave as markers are no files.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        parts = urlsplit(location)
        self.root = f"{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")

    @cached_property
    def _fs(self) -> Any:
        """Made when it is first used, because finding the region may need the network."""
        import pyarrow.fs as pafs

        if not self._location.startswith("s3://"):
            return pafs.FileSystem.from_uri(self._location)[0]
        bucket = self.root.partition("/")[0]
        fs = _s3(bucket)
        # Without its bucket a store would look empty, and everything would be computed again.
        if fs.get_file_info(bucket).type == pafs.FileType.NotFound:
            raise StoreError(
                f"there is no bucket {bucket!r} at {_endpoint() or 'AWS'}. Make it first, or check "
                "AWS_ENDPOINT_URL_S3 and the name; Resurge never makes a bucket"
            )
        return fs

    def names(self, folder: str) -> list[str]:
        import pyarrow.fs as pafs

        selector = pafs.FileSelector(self._at(folder), allow_not_found=True)
        return [info.base_name for info in self._fs.get_file_info(selector)]

    def tops(self) -> list[str]:
        """What is right below the root."""
        import pyarrow.fs as pafs

        selector = pafs.FileSelector(self.root, allow_not_found=True)
        return [info.base_name for info in self._fs.get_file_info(selector)]

    def walk(self, folder: str) -> list[Entry]:
        import pyarrow.fs as pafs

        selector = pafs.FileSelector(self._at(folder), allow_not_found=True, recursive=True)
        found = self._fs.get_file_info(selector)
        return [self._entry(info) for info in found if info.type == pafs.FileType.File]

    def info(self, path: str) -> Entry | None:
        import pyarrow.fs as pafs

        info = self._fs.get_file_info(self._at(path))
        return self._entry(info) if info.type == pafs.FileType.File else None

    def read(self, path: str) -> bytes:
        with self._fs.open_input_stream(self._at(path)) as stream:
            return bytes(stream.read())

    def write(self, path: str, data: bytes) -> None:
        with self._fs.open_output_stream(self._at(path)) as stream:
            stream.write(data)

    def put(self, source: Path, path: str) -> None:
        """Copy a local file here. Not by pyarrow's `copy_files`, which drops the error of a failed
        upload and returns as if all were well.
        """
        with source.open("rb") as local, self._fs.open_output_stream(self._at(path)) as stream:
            shutil.copyfileobj(local, stream, CHUNK_BYTES)

    def fetch(self, path: str, target: Path) -> None:
        """Copy to a local file."""
        with self._fs.open_input_stream(self._at(path)) as stream, target.open("wb") as local:
            shutil.copyfileobj(stream, local, CHUNK_BYTES)

    def move(self, path: str, to: str) -> None:
        self._fs.move(self._at(path), self._at(to))

    def delete(self, path: str) -> None:
        self._fs.delete_file(self._at(path))

    def delete_folder(self, folder: str) -> None:
        self._fs.delete_dir(self._at(folder))

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _entry(self, info: Any) -> Entry:
        return Entry(info.path.removeprefix(f"{self.root}/"), info.size, info.mtime.timestamp())


def check_location(location: str) -> None:
    """Raise if a store's URI carries what belongs into the environment.

    Raises:
        StoreError: without the secret; a sweep file and its location go into records and MLflow.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("s3", "gs"):
        raise StoreError(
            "a store is a folder, file:///folder, s3://bucket/prefix or gs://bucket/prefix, but "
            f"got something of the scheme {parts.scheme!r}"
        )
    plain = f"{parts.scheme}://{parts.netloc.rpartition('@')[2].partition(':')[0]}{parts.path}"
    if ":" in parts.netloc or (parts.scheme == "s3" and location != plain):
        raise StoreError(
            f"the store {plain} carries more than a bucket and a prefix in its URI. Write "
            f"{plain} alone: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and "
            "AWS_ENDPOINT_URL_S3 belong into the environment"
        )
    if not parts.netloc:
        raise StoreError(f"{plain!r} names no bucket: write {parts.scheme}://bucket/prefix")


def _s3(bucket: str) -> Any:
    import pyarrow.fs as pafs

    endpoint = _endpoint()
    scheme, _, host = (endpoint or "https://").partition("://")
    key, secret = (os.environ.get(f"AWS_{n}") for n in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    if bool(key) != bool(secret):
        there, missing = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")[:: 1 if key else -1]
        raise StoreError(f"AWS_{there} is set and AWS_{missing} is not: set both, or none")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        # Without keys pyarrow looks where AWS's own tools look.
        access_key=key or None,
        secret_key=secret or None,
        session_token=(os.environ.get("AWS_SESSION_TOKEN") or None) if key else None,
        region=region,
        scheme=scheme,
        endpoint_override=host or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=SILENCE_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # One request a small object, instead of the three of an upload in parts.
        allow_delayed_open=True,
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
    )


def _endpoint() -> str | None:
    """The S3 server's address, without a trailing slash; None is AWS itself."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if url := os.environ.get(name):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
                raise StoreError(
                    f"{name} must be http://host:port or https://host:port, without credentials"
                )
            return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    return None
