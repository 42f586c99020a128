"""The images, really built and run without Docker: buildah builds, podman with runc runs.

Both are Debian packages and need no daemon, but root. The official python image may be out of
reach, so a stand-in of its name is made with debootstrap: the same Debian with Debian's own
Python 3.11. Everything lives in one folder, which is removed at the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.docker.composefile import DOCKER, Settings, secret_files

ROOT = DOCKER.parent
PROGRAMS = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
}
SUITE = "bookworm"
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
PIP_SETTINGS = ("cert", "find-links", "index-url", "trusted-host")
"""The machine's own way to its package index, which the build needs as well."""

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def missing() -> list[str]:
    """The Debian packages that are to be installed first."""
    return [package for program, package in PROGRAMS.items() if not shutil.which(program)]


def pip_settings() -> dict[str, str]:
    """Those of PIP_SETTINGS that pip has here, from files or the environment."""
    said = run(sys.executable, "-m", "pip", "config", "list").stdout
    found = re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", said, re.M)
    return {key: value for key, value in found if key in PIP_SETTINGS}


def run(
    *command: str | Path, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run it; on failure show what it said."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}\n{done.stdout[-8000:]}{done.stderr[-8000:]}")
    return done


class Engine:
    """Images and containers in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        # No limits that this machine does not grant.
        (folder / "containers.conf").write_text("[containers]\ndefault_ulimits = []\n")
        self.environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}

    def _run(
        self, program: str, *words: str | Path, check: bool
    ) -> subprocess.CompletedProcess[str]:
        storage = ["--root", self.folder / "storage", "--runroot", self.folder / "run"]
        options = [*storage, "--storage-driver", "overlay"]
        return run(program, *options, *words, check=check, env=self.environment)

    def buildah(self, *words: str | Path) -> str:
        return self._run("buildah", *words, check=True).stdout

    def attempt(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of podman that may fail."""
        how = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        return self._run("podman", *how, *words, check=False)

    def podman(self, *words: str | Path) -> str:
        """A command of podman that must not."""
        done = self.attempt(*words)
        assert done.returncode == 0, f"podman {words}: {done.stdout[-8000:]}{done.stderr[-8000:]}"
        return done.stdout

    def logs(self, name: str) -> str:
        """All that a container printed."""
        done = self.attempt("logs", name)
        return done.stdout + done.stderr

    def stand_in(self) -> None:
        """Make the image that the Dockerfiles start from, under its name."""
        name = re.search(r"^ARG PYTHON_IMAGE=(.*)$", (DOCKER / "head.Dockerfile").read_text(), re.M)
        root = self.folder / "base"
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, root)
        # The official image's Python is its own, so pip may install there; and it is `python`.
        for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        if CERTIFICATES.exists():
            shutil.copy(CERTIFICATES, root / str(CERTIFICATES)[1:])
        lines = [f"{key} = {value}\n" for key, value in pip_settings().items()]
        (root / "etc/pip.conf").write_text("[global]\n" + "".join(lines))
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", container, root, "/")
        self.buildah("commit", "--rm", container, f"docker.io/library/{name[1]}")
        shutil.rmtree(root)

    def build(self, role: str) -> None:
        """docker/ROLE.Dockerfile, every line of it, as resurge-ROLE:0.1.0."""
        wheels = Path(pip_settings().get("find-links", "none"))
        options = ["--volume", f"{wheels}:{wheels}:ro"] if wheels.is_dir() else []
        self.buildah(
            "build",
            "--isolation",
            "chroot",
            "--network",
            "host",
            "--pull-never",
            "--format",
            "docker",
            *options,
            "--file",
            DOCKER / f"{role}.Dockerfile",
            "--tag",
            f"resurge-{role}:0.1.0",
            ROOT,
        )

    def config(self, role: str) -> dict[str, Any]:
        """What the image says of itself: user, entrypoint, health check, labels."""
        shown = self.buildah("inspect", "--type", "image", f"resurge-{role}:0.1.0")
        return json.loads(shown)["Docker"]["config"]

    def in_image(self, role: str, *command: str, options: Sequence[str] = ()) -> str:
        """What a command prints in a new container without a network."""
        return self.podman(
            "run",
            "--rm",
            "--network=none",
            "--no-healthcheck",
            *options,
            f"resurge-{role}:0.1.0",
            *command,
        )

    def start(self, name: str, service: Settings, where: Host, folder: Path) -> None:
        """Start a service of the compose file in the background, as compose would."""
        options = [
            "--detach",
            "--name",
            name,
            "--network",
            f"ns:/run/netns/{where.namespace}",
            "--no-healthcheck",
            *translate(service, folder),
        ]
        # Nobody answers there, which is said at once; gRPC asks even for names in /etc/hosts.
        options += ["--dns=127.0.0.1"]
        for other, address in where.hosts.items():
            options += ["--add-host", f"{other}:{address}"]
        self.podman("run", *options, service["image"], *service.get("command", ()))

    def wait(self, name: str) -> int:
        """The exit code of a container that ends by itself."""
        return int(self.podman("wait", name).split()[-1])

    def healthy(self, name: str, check: Sequence[str]) -> bool:
        """Run a health check, `[CMD, program, …]`, once, where the container runtime would."""
        assert check[0] == "CMD", check
        return self.attempt("exec", name, *check[1:]).returncode == 0

    def close(self) -> None:
        """End every container, also of a build that was interrupted; remove every file."""
        self.attempt("rm", "--all", "--force", "--volumes", "--time", "5")
        self._run("buildah", "rm", "--all", check=False)
        # Innermost first: the storage of overlays stays mounted when its last user has gone.
        for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
            if mount.split()[1].startswith(f"{self.folder}/"):
                run("umount", mount.split()[1], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


class Host:
    """A network namespace with an address, and the names that it knows."""

    def __init__(self, namespace: str, hosts: dict[str, str]) -> None:
        self.namespace = namespace
        self.hosts = hosts

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run("ip", "netns", "exec", self.namespace, *command, check=check)

    def popen(self, *command: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *map(str, command)], **options
        )


def translate(service: Settings, folder: Path) -> list[str]:
    """A service's keys as podman's options. Limits of the machine are left out."""
    options = ["--read-only", "--read-only-tmpfs=false"] if service.get("read_only") else []
    options += [f"--cap-drop={name}" for name in service.get("cap_drop", ())]
    options += [f"--cap-add={name}" for name in service.get("cap_add", ())]
    options += ["--security-opt=no-new-privileges"] if service.get("security_opt") else []
    options += [f"--env={name}={value}" for name, value in service.get("environment", {}).items()]
    options += [f"--tmpfs={mount}" for mount in service.get("tmpfs", ())]
    options += [f"--volume={volume}" for volume in service.get("volumes", ())]
    options += [
        f"--volume={real}:{seen}:ro" for seen, real in secret_files(service, folder).items()
    ]
    if "shm_size" in service:
        options += [f"--shm-size={service['shm_size']}"]
    return options


@contextmanager
def hosts(names: dict[str, list[str]], network: str) -> Iterator[dict[str, Host]]:
    """Namespaces on one bridge: each key is a host, its values the names it answers to.

    `network` is the first three numbers of their addresses.
    """
    bridge = f"br{os.getpid()}"
    address = {key: f"{network}.{number}" for number, key in enumerate(names, 1)}
    known = {name: address[key] for key, its in names.items() for name in its}
    made = {key: Host(f"resurge-{os.getpid()}-{key}", known) for key in names}
    try:
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "link", "set", bridge, "up")
        for number, (key, host) in enumerate(made.items(), 1):
            veth = f"v{os.getpid()}-{number}"
            run("ip", "netns", "add", host.namespace)
            run(
                "ip",
                "link",
                "add",
                veth,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host.namespace,
            )
            run("ip", "link", "set", veth, "master", bridge, "up")
            host.run("ip", "address", "add", f"{address[key]}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
            host.run("ip", "link", "set", "lo", "up")
            # Leads nowhere; Ray takes the address of the default route for the node's.
            host.run("ip", "route", "add", "default", "dev", "eth0")
        yield made
    finally:
        for host in made.values():
            run("ip", "netns", "delete", host.namespace, check=False)
        run("ip", "link", "delete", bridge, check=False)
