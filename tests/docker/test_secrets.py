"""docker/secrets.sh and docker/entrypoint.sh, as the real scripts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[2] / "docker"


def make_secrets(folder: Path) -> str:
    done = subprocess.run(
        [DOCKER / "secrets.sh", folder], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def values(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "secrets").iterdir()}


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DOCKER / "entrypoint.sh", *command],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environment},
    )


def test_secrets_are_random_private_and_never_printed(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    said = make_secrets(one) + make_secrets(two)
    for name, value in values(one).items():
        assert (one / "secrets" / name).stat().st_mode & 0o777 == 0o600
        assert len(value.strip()) >= 20
        assert value != values(two)[name]
        assert value.strip() not in said
    assert (one / "secrets").stat().st_mode & 0o777 == 0o700


def test_a_second_run_keeps_what_is_there(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    before = values(tmp_path)
    (tmp_path / ".env").open("a").write("RESURGE_WORKER_CPUS=8\n")
    make_secrets(tmp_path)
    assert values(tmp_path) == before
    settings = (tmp_path / ".env").read_text().splitlines()
    assert "RESURGE_WORKER_CPUS=8" in settings
    assert sum(line.startswith("RESURGE_UID=") for line in settings) == 1


def test_the_files_belong_to_the_user_that_the_images_are_built_for(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    uid = int((tmp_path / ".env").read_text().split("=")[1])
    assert uid != 0
    assert {path.stat().st_uid for path in (tmp_path / "secrets").iterdir()} == {uid}


def test_the_s3_server_knows_the_very_keys_that_its_clients_have(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    found = values(tmp_path)
    [identity] = json.loads(found["s3_identities"])["identities"]
    assert identity["credentials"] == [
        {
            "accessKey": found["s3_access_key"].strip(),
            "secretKey": found["s3_secret_key"].strip(),
        }
    ]


@pytest.mark.parametrize("text", ["se cret$'\"\\`*\n", "no newline at the end"])
def test_a_file_becomes_a_variable_as_it_is(tmp_path: Path, text: str) -> None:
    secret = tmp_path / "password"
    secret.write_text(text)
    done = run(["printenv", "PGPASSWORD"], PGPASSWORD_FILE=str(secret))
    assert done.stdout == text.rstrip("\n") + "\n"
    assert done.stderr == ""


def test_the_file_names_do_not_reach_the_program(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("x\n")
    assert "_FILE" not in run(["env"], PGPASSWORD_FILE=str(secret)).stdout


def test_without_secrets_the_command_simply_runs() -> None:
    done = run(["echo", "a b", "c"])
    assert (done.returncode, done.stdout) == (0, "a b c\n")


def test_a_missing_secret_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    done = run(["echo", "no"], PGPASSWORD_FILE=str(tmp_path / "absent"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "PGPASSWORD_FILE" in done.stderr
    assert "secrets.sh" in done.stderr
