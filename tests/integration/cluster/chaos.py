"""`make chaos`: a seeded random sequence of events over sweeps of tiny stages.

Prints every event, and in the end the stages lost, run again and wrong, against the same sweeps
that nothing disturbed. Exit code 1 if any was lost or wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.integration.cluster.campaign import Campaign, Verdict, compare, tiny, undisturbed
from tests.integration.cluster.events import ON_A_DISK, ON_S3, Event, Scene, title
from tests.integration.cluster.lab import Lab, can_have_hosts, lab, wait_until
from tests.integration.cluster.services import Services, services

DISK = "192m"
AMOUNTS = 16
"""Unlearnings of one sweep. Should it end before all has happened, another one follows."""
GOES_ON = 20
"""Stages between two events, and before the first."""
END_TIMEOUT_S = 900.0


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, which can be filled."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[Lab, Services, Path]]:
    """Three hosts with Ray, a fourth to submit from, S3 and MLflow, and a small disk; inside, this
    process reaches the bucket too.
    """
    before = dict(os.environ)
    # The disk is there before Ray is: a host does not see what is mounted later.
    with (
        small_disk(folder / "disk") as disk,
        lab(folder, {"OMP_NUM_THREADS": "1"}) as place,
        services(place) as shared,
    ):
        os.environ |= {k: v for k, v in place.settings.items() if k.startswith("AWS_")}
        os.environ["AWS_ENDPOINT_URL_S3"] = shared.s3
        try:
            place.start()
            yield place, shared, disk
        finally:
            os.environ.clear()
            os.environ.update(before)


def disturb(scene: Scene, events: Sequence[Event], number: int = 1) -> int:
    """Submit the campaign's sweep and have the events happen to it, each when it has gone on since
    the one before; how many did before it was over. `number` is what the first is called by.
    """
    campaign, done = scene.campaign, 0
    campaign.submit()
    for event in events:
        enough = campaign.recorded() + GOES_ON
        wait_until(
            lambda: campaign.recorded() >= enough or is_over(campaign),  # noqa: B023
            "the sweep to go on",
            END_TIMEOUT_S,
        )
        if is_over(campaign):
            break
        begun_s, begun_at, what = time.monotonic(), campaign.recorded(), event(scene)
        print(
            f"{number + done:3d}  {title(event)}: {what} ({time.monotonic() - begun_s:.0f} s; from "
            f"{begun_at} to {campaign.recorded()} of {len(campaign.plan.stages)} stages recorded)",
            flush=True,
        )
        done += 1
    wait_until(lambda: is_over(campaign), "the sweep to end", END_TIMEOUT_S)
    return done


def is_over(campaign: Campaign) -> bool:
    """Whether every stage has a record."""
    return campaign.recorded() == len(campaign.plan.stages)


@dataclass
class Chaos:
    """Sweep after sweep, until all the events have happened."""

    lab: Lab
    services: Services
    chance: Random
    happened: int = 0
    verdicts: list[Verdict] = field(default_factory=list)

    def on(self, store: str, events: Sequence[Event], disk: Path | None = None) -> None:
        """The events happen to sweeps whose results go there."""
        left = list(events)
        while left:
            count = len(self.verdicts)
            text = tiny(f"chaos-{count + 1}", AMOUNTS, first=1 + AMOUNTS * count)
            truth = undisturbed(text, _made(self.lab.root / f"truth-{count + 1}"))
            campaign = Campaign(self.lab, text, store)
            print(f"{campaign.sweep.name}: {len(campaign.plan.stages)} stages in {store}")
            scene = Scene(self.lab, self.services, campaign, self.chance, disk)
            happened = disturb(scene, left, self.happened + 1)
            self.happened += happened
            del left[:happened]
            self.verdicts.append(compare(campaign, truth))

    def total(self, name: str) -> int:
        """A number of all verdicts taken together."""
        return sum(getattr(verdict, name) for verdict in self.verdicts)

    def report(self) -> str:
        """What happened and what came of it."""
        return (
            f"{self.happened} events over {self.total('stages')} stages\n"
            f"stages lost: {self.total('lost')}\n"
            f"stages run twice: {self.total('again')} that were in flight, "
            f"{self.total('twice')} others\n"
            f"wrong records: {self.total('wrong')}\n"
            f"wrong rows of the results tables: {self.total('rows')}"
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if not can_have_hosts():
        sys.exit("chaos needs root and iproute2: its hosts are network namespaces")
    chance = Random(asked.seed)
    on_s3 = chance.choices(ON_S3, k=asked.events - asked.events // 3)
    on_disk = chance.choices(ON_A_DISK, k=asked.events // 3)
    with (
        tempfile.TemporaryDirectory(prefix="resurge-chaos-") as folder,
        cluster(Path(folder)) as (place, shared, disk),
    ):
        chaos = Chaos(place, shared, chance)
        chaos.on("s3://resurge/store", on_s3)
        chaos.on(str(disk / "store"), on_disk, disk)
    print(f"seed {asked.seed}: {chaos.report()}")
    sys.exit(1 if any(map(chaos.total, ("lost", "wrong", "rows", "twice"))) else 0)


if __name__ == "__main__":
    main()
