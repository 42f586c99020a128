"""What happens to clusters: each event does its harm, and then what an operator would do."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.integration.cluster.campaign import Campaign
from tests.integration.cluster.lab import Host, Lab, wait_until
from tests.integration.cluster.services import Services

OUTAGE_S = 15.0


@dataclass
class Scene:
    """Where it happens. `disk` is the folder of a small disk on which the store is, if it is."""

    lab: Lab
    services: Services
    campaign: Campaign
    chance: Random
    disk: Path | None = None

    def worker(self) -> Host:
        """One of the workers, by chance."""
        return self.chance.choice(list(self.lab.workers))


def worker_process_dies(scene: Scene) -> str:
    """kill -9 of one actor's process."""
    for host in scene.chance.sample(list(scene.lab.workers), len(scene.lab.workers)):
        pids = host.processes("ray::RayWorker")
        if pids:
            os.kill(pids[0], signal.SIGKILL)
            return f"process {pids[0]} on {host.name}"
    return "no worker was up"


def host_leaves_the_network(scene: Scene) -> str:
    """The cable is out until the cluster takes the host for dead; then it joins again."""
    host, before = scene.worker(), scene.lab.nodes()
    host.disconnect()
    wait_until(lambda: scene.lab.nodes() < before, f"{host.name} to be missed")
    host.connect()
    host.restart_ray()
    return host.name


def node_gets_sigterm(scene: Scene) -> str:
    """As from a batch system or a cloud that takes the machine back."""
    host = scene.worker()
    host.signal(signal.SIGTERM)
    wait_until(lambda: not host.processes("raylet"), f"{host.name} to leave")
    host.restart_ray()
    return host.name


def head_dies(scene: Scene) -> str:
    """kill -9 of everything on the head; Ray is started again, and the sweep submitted again."""
    for host in (scene.lab.hosts["head"], *scene.lab.workers):
        host.stop()
    scene.lab.start()
    scene.campaign.submit()
    return "submitted again"


def mlflow_stops(scene: Scene) -> str:
    """Its server is away for a while."""
    scene.services.stop_mlflow()
    time.sleep(OUTAGE_S)
    scene.services.start_mlflow()
    return f"for {OUTAGE_S:g} s"


def s3_answers_500(scene: Scene) -> str:
    """The bucket's server is broken for a while."""
    proxy = scene.services.proxy
    proxy.failures = many = 10**9
    time.sleep(OUTAGE_S)
    refused, proxy.failures = many - proxy.failures, 0
    return f"for {OUTAGE_S:g} s, {refused} requests"


def disk_is_full(scene: Scene) -> str:
    """Something else fills the store's disk, and is cleared away after a while."""
    assert scene.disk is not None
    filler = scene.disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:  # until there is no room
            stream.write(b"0" * 65536)
    time.sleep(OUTAGE_S)
    filler.unlink()
    return f"for {OUTAGE_S:g} s"


Event = Callable[[Scene], str]

ANYWHERE: tuple[Event, ...] = (
    worker_process_dies,
    host_leaves_the_network,
    node_gets_sigterm,
    head_dies,
    mlflow_stops,
)
ON_S3: tuple[Event, ...] = (*ANYWHERE, s3_answers_500)
ON_A_DISK: tuple[Event, ...] = (*ANYWHERE, disk_is_full)


def title(event: Event) -> str:
    """'head dies'."""
    return event.__name__.replace("_", " ")
