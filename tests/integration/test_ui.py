"""`resurge ui` in a real browser: the runs, a resurgence curve and the images are there to see."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("calls")]

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 60_000


@pytest.fixture
def site(tmp_path: Path, small: str) -> Iterator[str]:
    """The UI's address, after a small sweep was run."""
    (tmp_path / "small.yaml").write_text(small)
    resurge = str(Path(sys.executable).parent / "resurge")
    brief = ("unlearn=nudge", "seeds=1", "finetune.learning_rate=1e-3", "evaluate.controls=false")
    subprocess.run([resurge, "run", "small.yaml", *brief], cwd=tmp_path, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [resurge, "ui", "--port", str(port)], cwd=tmp_path, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(server, address)
        yield address
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def wait_until_up(server: subprocess.Popen[bytes], address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=1)
        except (urllib.error.URLError, TimeoutError):
            try:
                server.wait(timeout=0.3)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError("the UI ended early") from None
        return
    raise AssertionError("the UI did not come up")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1800})
        page.set_default_timeout(WAIT_MS)
        yield page
        page.screenshot(path=tmp_path / "last.png")
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_runs_a_curve_and_the_images(site: str, page: Any) -> None:
    runs = f"{site}/#/experiments/1/runs?workflowType=machine_learning"
    page.goto(runs)
    page.get_by_role("link", name="small", exact=True).last.wait_for()

    chosen = quote("params.`unlearn.method` = 'nudge'")
    page.goto(f"{runs}&searchFilter={chosen}")
    # The sweep's run, one trajectory, and a trial for each of its three step counts.
    page.wait_for_function("document.body.innerText.includes('5 matching runs')")

    page.goto(f"{site}/#/experiments/1/runs/{trajectory_id(site)}/model-metrics")
    for curve in ("resurgence", "train_loss"):
        page.get_by_text(curve, exact=True).first.wait_for()
    page.locator("img[src*='artifact'], img[src^='blob:']").first.wait_for()
    charts = page.locator(".js-plotly-plot")
    charts.nth(4).wait_for()  # each is drawn when its data have come
    assert charts.count() >= 5


def trajectory_id(site: str) -> str:
    """The id of the run that has the curves, as MLflow's own API gives it."""
    body = {"experiment_ids": ["1"], "filter": "tags.`resurge.kind` = 'trajectory'"}
    request = urllib.request.Request(
        f"{site}/api/2.0/mlflow/runs/search",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        (run,) = json.load(answer)["runs"]
    return str(run["info"]["run_id"])
