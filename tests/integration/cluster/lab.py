"""Hosts with addresses of their own on this machine: network namespaces on one bridge.

Each host runs real `ray start` processes. The bridge's own address is that of the services that
all hosts use: an S3 endpoint, MLflow on PostgreSQL. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
RAY_PORT, DASHBOARD_PORT = 6379, 8265
TIMEOUT_S = 120.0
POLL_S = 0.5


def can_have_hosts() -> bool:
    """Whether this user may make network namespaces here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"rs-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    if made:
        _ip("netns", "del", name)
    return made


def wait_until(is_true: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Look again and again.

    Raises:
        TimeoutError: it did not become true.
    """
    end_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > end_s:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(POLL_S)


@dataclass
class Host:
    """A machine, as far as the network goes."""

    lab: Lab
    name: str
    address: str
    gpus: int = 0
    ray: subprocess.Popen[bytes] | None = None
    began: int = 0

    @property
    def namespace(self) -> str:
        return f"{self.lab.id}-{self.name}"

    @property
    def cable(self) -> str:
        return f"{self.lab.id}{self.name}"

    def command(self, *words: str | Path) -> list[str]:
        """The command, to be run on this host, which has Ray's folder for itself: its hosts would
        delete each other's files.
        """
        ray = self.lab.ray_folder
        own = Path(f"{ray}-{self.name}")
        for folder in (ray, own):
            folder.mkdir(exist_ok=True)
        mount = f'mount --bind {own} {ray} && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", mount, "sh", *map(str, words)]

    def environment(self, **more: str) -> dict[str, str]:
        """What its user has set."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        home = self.lab.root / "homes" / self.name
        home.mkdir(parents=True, exist_ok=True)
        own = self.lab.head_settings if self.name in ("head", "user") else {}
        kept["PATH"] = f"{BIN}{os.pathsep}{kept.get('PATH', '/usr/bin:/bin')}"
        return {**kept, "HOME": str(home), **self.lab.settings, **own, **more}

    def start_ray(self) -> None:
        """Join the cluster, or be its head; until `ray start` has said so."""
        head = self.lab.hosts["head"]
        common = ["--node-ip-address", self.address, "--block", "--disable-usage-stats"]
        if self is head:
            where = ["--head", "--port", str(RAY_PORT), "--dashboard-host", self.address]
            where += ["--dashboard-port", str(DASHBOARD_PORT), "--num-cpus", "1", "--num-gpus", "0"]
            where += ["--include-dashboard", "true"]
        else:
            where = ["--address", f"{head.address}:{RAY_PORT}", "--num-cpus", "2"]
            where += ["--num-gpus", str(self.gpus)]
        self.began += 1
        log = self.log.open("wb")
        self.ray = subprocess.Popen(
            self.command(BIN / "ray", "start", *common, *where),
            stdout=log,
            stderr=log,
            env=self.environment(RAY_TMPDIR=str(self.lab.ray_folder)),
            cwd=self.lab.root,
            start_new_session=True,
        )

    @property
    def log(self) -> Path:
        return self.lab.root / f"ray-{self.name}-{self.began}.log"

    def processes(self, containing: str = "") -> list[int]:
        """Its processes whose command line contains that."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True
        )
        return [pid for pid in map(int, listed.stdout.split()) if containing in _line(pid)]

    def signal(self, number: signal.Signals, containing: str = "") -> int:
        """Send a signal to such processes; how many there were."""
        pids = self.processes(containing)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(pids)

    def stop(self) -> None:
        """Power off: everything at once."""
        while self.signal(signal.SIGKILL):
            time.sleep(0.05)
        if self.ray is not None:
            self.ray.wait()
            self.ray = None

    def restart_ray(self) -> None:
        """Stop what is left, start again, and wait until the cluster has it as a new node."""
        self.stop()
        before = self.lab.alive()
        self.start_ray()

        def is_new() -> bool:
            return any(node[0] == self.address for node in self.lab.alive() - before)

        wait_until(is_new, f"{self.name} to join again (log: {self.log})")

    def disconnect(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self.cable, "down")

    def connect(self) -> None:
        """Put it back."""
        _ip("link", "set", self.cable, "up")


@dataclass
class Lab:
    """A head, workers, and a place to submit from, on a network of their own."""

    root: Path
    settings: dict[str, str]
    head_settings: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    id: str = field(default_factory=lambda: f"rs{secrets.token_hex(2)}")
    subnet: str = field(default_factory=lambda: f"10.{77 + secrets.randbelow(100)}.7")

    @property
    def address(self) -> str:
        """That of the services."""
        return f"{self.subnet}.1"

    @property
    def ray_folder(self) -> Path:
        """Short: sockets below it have long names, and there is a limit."""
        return Path("/tmp") / self.id

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def dashboard(self) -> str:
        return f"http://{self.hosts['head'].address}:{DASHBOARD_PORT}"

    def plug_in(self, gpus: Mapping[str, int]) -> None:
        """Make the network and a host for each name, with so many GPUs."""
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.settings |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_raylet_start_wait_time_s": "120",
            # Ray's own 15 lets tests that run beside these starve the workers.
            "RAY_worker_niceness": "0",
        }
        _ip("link", "add", self.id, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self.id)
        _ip("link", "set", self.id, "up")
        for number, (name, count) in enumerate(gpus.items(), start=2):
            self._add(Host(self, name, f"{self.subnet}.{number}", count))

    def _add(self, host: Host) -> None:
        self.hosts[host.name] = host
        inside = ("netns", "exec", host.namespace, "ip")
        _ip("netns", "add", host.namespace)
        _ip(
            "link",
            "add",
            host.cable,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            host.namespace,
        )
        _ip("link", "set", host.cable, "master", self.id)
        _ip("link", "set", host.cable, "up")
        _ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip(*inside, "link", "set", device, "up")

    def start(self) -> None:
        """Start Ray everywhere, the head first, and wait for all to be there."""
        self.hosts["head"].start_ray()
        wait_until(lambda: self.nodes() == 1, f"the head (log: {self.hosts['head'].log})")
        for number, host in enumerate(self.workers, start=2):
            host.start_ray()
            wait_until(lambda: self.nodes() == number, f"{host.name} (log: {host.log})")  # noqa: B023

    @property
    def workers(self) -> Sequence[Host]:
        return [host for host in self.hosts.values() if host.gpus]

    def wait_for_nodes(self) -> None:
        """Until every worker has joined."""
        wait_until(lambda: self.nodes() == 1 + len(self.workers), "the workers to join")

    def nodes(self) -> int:
        """How many nodes are alive."""
        return len(self.alive())

    def alive(self) -> set[tuple[str, str]]:
        """(address, id) of the live nodes, by Ray's own dashboard; none if it does not answer."""
        request = urllib.request.Request(
            f"{self.dashboard}/api/v0/nodes",  # the head's own list: no node's agent need answer
            headers={"Authorization": f"Bearer {self.token.read_text()}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]["result"]
        except (OSError, urllib.error.URLError, ValueError, KeyError):
            return set()
        return {(node["node_ip"], node["node_id"]) for node in found if node["state"] == "ALIVE"}

    def tear_down(self) -> None:
        """Stop everything and leave nothing."""
        for host in self.hosts.values():
            host.stop()
            _ip("netns", "del", host.namespace)
        _ip("link", "del", self.id)
        for folder in self.ray_folder.parent.glob(f"{self.id}*"):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lab(root: Path, settings: Mapping[str, str], workers: int = 2) -> Iterator[Lab]:
    """A network with a host `head`, `worker1`, … and `user`; Ray is not started yet."""
    gpus = {"head": 0, **{f"worker{n}": 1 for n in range(1, workers + 1)}, "user": 0}
    made = Lab(root, dict(settings))
    try:
        made.plug_in(gpus)
        yield made
    finally:
        made.tear_down()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
