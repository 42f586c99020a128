"""`make chaos`: a seeded random sequence of events over sweeps of tiny stages.

Prints every event, and in the end the stages lost, run again and wrong, against the same sweep
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
from pathlib import Path
from random import Random

from tests.cluster.campaign import Campaign, Verdict, compare, tiny, undisturbed
from tests.cluster.events import ON_A_DISK, ON_S3, Event, Scene, title
from tests.cluster.lab import Lab, can_have_hosts, lab, wait_until
from tests.cluster.services import Services, services

DISK = "192m"
AMOUNTS = {"bucket": 3, "disk": 8}
"""Unlearnings for each event, so that the sweep is not over before all have happened."""
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


def disturb(scene: Scene, events: Sequence[Event]) -> int:
    """Submit the campaign's sweep and have the events happen to it; how many did."""
    campaign, done = scene.campaign, 0
    campaign.submit()
    for event in events:
        before = campaign.recorded()
        wait_until(
            lambda: campaign.recorded() > before or is_over(campaign),  # noqa: B023
            "the sweep to go on",
            END_TIMEOUT_S,
        )
        if is_over(campaign):
            break
        begun_s, what = time.monotonic(), event(scene)
        done += 1
        print(
            f"{done:3d}  {title(event)}: {what} ({time.monotonic() - begun_s:.0f} s; "
            f"{campaign.recorded()} of {len(campaign.plan.stages)} stages recorded)",
            flush=True,
        )
    wait_until(lambda: is_over(campaign), "the sweep to end", END_TIMEOUT_S)
    return done


def is_over(campaign: Campaign) -> bool:
    """Whether every stage has a record."""
    return campaign.recorded() == len(campaign.plan.stages)


def round_on(
    place: Lab,
    shared: Services,
    name: str,
    store: str,
    events: Sequence[Event],
    chance: Random,
    disk: Path | None = None,
) -> tuple[int, Verdict]:
    """One sweep with its events."""
    text = tiny(name, amounts=max(6, AMOUNTS[name] * len(events)))
    truth = undisturbed(text, _made(place.root / name))
    campaign = Campaign(place, text, store)
    print(f"{name}: {len(campaign.plan.stages)} stages in {store}", flush=True)
    happened = disturb(Scene(place, shared, campaign, chance, disk), events)
    return happened, compare(campaign, truth)


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
        lab(Path(folder), {"OMP_NUM_THREADS": "1"}) as place,
        services(place) as shared,
        small_disk(Path(folder) / "disk") as disk,
    ):
        os.environ |= {k: v for k, v in place.settings.items() if k.startswith("AWS_")}
        os.environ["AWS_ENDPOINT_URL_S3"] = shared.s3
        place.start()
        bucket = "s3://resurge/store"
        rounds = [round_on(place, shared, "bucket", bucket, on_s3, chance)]
        rounds.append(
            round_on(place, shared, "disk", str(disk / "store"), on_disk, chance, disk=disk)
        )
    events = sum(happened for happened, _ in rounds)
    verdicts = [verdict for _, verdict in rounds]
    total = {
        name: sum(getattr(verdict, name) for verdict in verdicts)
        for name in ("stages", "lost", "again", "twice", "wrong")
    }
    print(
        f"seed {asked.seed}: {events} events over {total['stages']} stages\n"
        f"stages lost: {total['lost']}\n"
        f"stages run twice: {total['again']} that were in flight, {total['twice']} others\n"
        f"wrong records: {total['wrong']}"
    )
    sys.exit(1 if total["lost"] or total["wrong"] or total["twice"] else 0)


if __name__ == "__main__":
    main()
