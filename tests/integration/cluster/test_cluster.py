"""A cluster of several hosts: what is submitted ends with the right records, whatever happens."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from orchestrator.store.store import Store
from tests.integration.cluster.campaign import Campaign, compare, tiny, undisturbed
from tests.integration.cluster.chaos import cluster, disturb, is_over
from tests.integration.cluster.events import ON_S3, Event, Scene, disk_is_full, title
from tests.integration.cluster.lab import ROOT, Lab, can_have_hosts, wait_until
from tests.integration.cluster.services import Services

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not can_have_hosts(), reason="needs root and iproute2"),
]

AMOUNTS = 8
BRIEF = {
    "seeds: 3": "seeds: 1",
    "steps: [0, 50, 100]": "steps: [0, 5, 10]",
    "images_per_prompt: 4": "images_per_prompt: 1",
    "{group: u}": "{group: u, iterations: 10}",
}
"""What is less of the quickstart: all of its methods, data sets and rates are run."""
QUICKSTART_TIMEOUT_S = 1200.0
END_TIMEOUT_S = 600.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Services]]:
    """Three hosts with Ray, a fourth to submit from, S3 and MLflow."""
    with cluster(tmp_path_factory.mktemp("lab")) as (hosts, shared, _):
        yield hosts, shared


@pytest.mark.parametrize("how", ["brief", pytest.param("whole", marks=pytest.mark.long)])
def test_the_quickstart_runs_on_a_cluster(place: tuple[Lab, Services], how: str) -> None:
    hosts, _ = place
    text = (ROOT / "sweeps" / "quickstart.yaml").read_text()
    for whole, brief in BRIEF.items() if how == "brief" else ():
        assert whole in text
        text = text.replace(whole, brief)
    campaign = Campaign(hosts, text, f"s3://resurge/quickstart-{how}")
    with campaign.follow() as following:
        said, _ = following.communicate(timeout=QUICKSTART_TIMEOUT_S)
    assert following.returncode == 0, said
    assert "0 failed · 0 skipped" in said
    assert is_over(campaign)
    code, table = campaign.resurge("results", "quickstart", "--cluster", hosts.dashboard)
    assert code == 0, table
    assert "resurgence" in table
    assert "quickstart" in campaign.resurge("list", "sweeps", "--cluster", hosts.dashboard)[1]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The results of the sweep that the events happen to, when nothing does."""
    return undisturbed(tiny("truth", AMOUNTS), tmp_path_factory.mktemp("truth"))


@pytest.mark.long
@pytest.mark.parametrize("event", [*ON_S3, disk_is_full], ids=title)
def test_whatever_happens_in_mid_sweep_the_results_are_the_undisturbed_ones(
    event: Event, place: tuple[Lab, Services], truth: Store
) -> None:
    hosts, shared = place
    name = event.__name__.replace("_", "-")
    disk = hosts.root / "disk" if event is disk_is_full else None
    store = f"s3://resurge/{name}" if disk is None else str(disk / "store")
    campaign = Campaign(hosts, tiny(name, AMOUNTS), store)
    assert disturb(Scene(hosts, shared, campaign, Random(0), disk), [event]) == 1
    verdict = compare(campaign, truth)
    assert (verdict.lost, verdict.wrong, verdict.rows, verdict.twice) == (0, 0, 0, 0)


@pytest.mark.long
def test_two_sweeps_at_once_run_what_they_share_once(
    place: tuple[Lab, Services], tmp_path: Path
) -> None:
    hosts, _ = place
    store = "s3://resurge/shared"
    both = [Campaign(hosts, tiny(name, amounts=8), store) for name in ("one", "other")]
    assert both[0].plan.stages == both[1].plan.stages, "they share everything"
    for campaign in both:
        campaign.submit()
    for campaign in both:
        wait_until(lambda: is_over(campaign), "the sweeps to end", END_TIMEOUT_S)  # noqa: B023
    begun = [line for name in ("one", "other") for line in lines(hosts, name, " begins")]
    assert len(begun) == len(set(begun)) == len(both[0].plan.stages)
    assert all(lines(hosts, name, " begins") for name in ("one", "other")), "both did some of it"


def test_without_the_token_nothing_answers(place: tuple[Lab, Services]) -> None:
    hosts, _ = place
    campaign = Campaign(hosts, tiny("refused", amounts=1), "s3://resurge/refused")
    wrong = hosts.root / "wrong"
    wrong.write_text("0" * 64)
    for word in ("submit", "status", "logs", "cancel"):
        what = str(campaign.path) if word == "submit" else "refused"
        code, said = campaign.resurge(
            word, what, "--cluster", hosts.dashboard, RAY_AUTH_TOKEN_PATH=str(wrong)
        )
        assert code == 2, said
        assert "token" in said and "Traceback" not in said
    for path in ("/api/jobs/", "/nodes?view=summary", "/logical/actors"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(hosts.dashboard + path, timeout=30)
        assert refused.value.code == 401, path


def test_without_the_password_mlflow_refuses(place: tuple[Lab, Services]) -> None:
    _, shared = place
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert shared.ask_mlflow(path) == 401
    assert shared.ask_mlflow(path, "wrong") == 401
    assert shared.ask_mlflow(path, shared.password) == 200


def lines(hosts: Lab, sweep: str, ending: str) -> list[str]:
    """Lines of a sweep's task logs that end so, without their time."""
    found = []
    for path in (hosts.root / "homes").rglob(f"logs/{sweep}/*.log"):
        text = path.read_text(errors="replace")
        found += [line[20:] for line in text.splitlines() if line.endswith(ending)]
    return found
