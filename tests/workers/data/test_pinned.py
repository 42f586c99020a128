"""A source names the same bytes for ever, or it is told what keeps it from that."""

import hashlib
import os

import pytest

from workers.data.files import digest_of, digest_of_file
from workers.data.pinned import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "revision", "fault"),
    [
        ("owner/name", COMMIT, None),
        ("owner/name", None, "no commit"),
        ("owner/name", "main", "no commit"),
        ("owner/name", COMMIT.upper(), "no commit"),
        ("no/such/folder", COMMIT, "no repository"),
        ("name", None, "no repository"),
    ],
)
def test_a_repository_needs_a_commit(name, revision, fault):
    assert Source(name, revision).fault() == fault
    assert Source(name, revision).fault(or_file=True) == fault


def test_what_is_here_has_no_revision(tmp_path):
    assert Source(str(tmp_path)).fault() is None
    assert Source(str(tmp_path), COMMIT).fault() == "revision of what is here"


def test_a_file_counts_only_where_that_is_allowed(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert Source(str(file)).fault(or_file=True) is None
    assert Source(str(file), COMMIT).fault(or_file=True) == "revision of what is here"
    assert Source(str(file)).fault() == "no repository"


def test_readers_are_given_a_folders_path_or_a_repositorys_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip").mkdir()
    assert Source("~/clip").options() == {
        "pretrained_model_name_or_path": str(tmp_path / "clip"),
        "revision": None,
    }
    assert Source("owner/name", COMMIT).options() == {
        "pretrained_model_name_or_path": "owner/name",
        "revision": COMMIT,
    }


def test_a_folders_digest_is_of_names_and_contents(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.json").write_bytes(b"2")
    (tmp_path / "a.txt").write_bytes(b"1")
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"1", b"2"))
    both = hashlib.sha256(f"a.txt\0{one}\ninner/b.json\0{two}\n".encode()).hexdigest()
    assert digest_of(tmp_path) == Source(str(tmp_path)).digest() == both
    only = hashlib.sha256(f"inner/b.json\0{two}\n".encode()).hexdigest()
    assert digest_of(tmp_path, (".json", ".safetensors")) == only
    alone = hashlib.sha256(f"\0{one}\n".encode()).hexdigest()
    assert digest_of(tmp_path / "a.txt") == alone


def test_a_repositorys_digest_is_its_name_and_commit():
    assert Source("owner/name", COMMIT).digest() == f"owner/name@{COMMIT}"


def test_a_file_that_is_written_again_has_another_digest(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    assert digest_of_file(file) == hashlib.sha256(b"1").hexdigest()
    file.write_bytes(b"2")
    os.utime(file, ns=(0, 0))  # however coarse the file system's clock is
    assert digest_of_file(file) == hashlib.sha256(b"2").hexdigest()
