"""Two real processes train one model over gloo, as several GPUs of a worker would."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from orchestrator.core.registry import find
from tests.processes import title
from workers.data.prepared import read_examples, write_examples
from workers.datasets.related import Related
from workers.diffusion.latents import encode_images
from workers.editing.pipeline import WarmPipeline
from workers.recipes import FinetuneSettings
from workers.runtime.causes import FailedElsewhere, cause_of
from workers.runtime.parts import in_parts
from workers.training.checkpoints import load_tensors, save_tensors
from workers.training.finetune import Trainer
from workers.training.loop import LossNotFinite
from workers.training.spread import SpreadTrainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("calls", "none_left")]

RECIPES = {
    # Of a batch of five one process takes two pictures and the other three.
    "full": {"batch_size": 5, "accumulation": 2, "caption_dropout": 0.5, "ema_decay": 0.9},
    "text encoder": {"train_text_encoder": True, "batch_size": 5},
    "lora": {"adapter": "lora", "learning_rate": 1e-2, "schedule": "cosine", "steps": 6},
    # Of a batch of six one process takes the pictures of the data set, the other the class's.
    "dreambooth": {"batch_size": 3, "prior_weight": 0.5, "prior_prompt": "a shape"},
}


def recipe(**values):
    return FinetuneSettings(**({"learning_rate": 1e-3, "batch_size": 4} | values))


@pytest.fixture
def warm(calls):
    cls = find("base", "tiny")
    return WarmPipeline(cls(cls.Settings()), "cpu")


@pytest.fixture
def dataset(tmp_path) -> Path:
    path = tmp_path / "dataset.parquet"
    write_examples(path, Related(Related.Settings(size=12)).examples("star", 32).named("related"))
    return path


@pytest.fixture
def spread(warm, dataset) -> Callable[..., SpreadTrainer]:
    """Make a trainer of two processes, from the base."""

    def make(settings, path=dataset, seed=0, prior=None):
        warm.reset()
        return SpreadTrainer(warm, settings, path, seed, 2, prior)

    return make


def helpers() -> list[psutil.Process]:
    """The processes that were spawned here and are there now."""
    return [p for p in psutil.Process().children() if "spawn_main" in title(p)]


@pytest.fixture
def none_left() -> Iterator[None]:
    yield
    gc.collect()
    assert helpers() == []


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_end_where_one_does(spread, warm, dataset, name):
    settings, examples = recipe(**RECIPES[name]), read_examples(dataset)
    prior = encode_images(warm.pipe, examples)[:3] * 0.5 if settings.prior_weight else None
    alone = Trainer(warm.pipe, settings, examples, 0, prior)
    alone.train_to(6)
    alone.finish()
    expected = warm.changed()

    together = spread(settings, prior=prior)
    together.train_to(6)
    together.finish()
    found = warm.changed()

    assert together.losses == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in alone.losses]
    assert found.keys() == expected.keys()
    base = warm.base_state()
    moved = math.sqrt(sum(float((expected[n] - base[n]).square().sum()) for n in expected))
    apart = math.sqrt(sum(float((expected[n] - found[n]).square().sum()) for n in expected))
    assert moved > 0
    assert apart < 1e-3 * moved


def test_two_processes_learn_the_token_that_one_does(spread, warm, dataset):
    settings = recipe(
        adapter="textual_inversion", placeholder="<mug>", initializer="circle", caption="a <mug>"
    )
    alone = Trainer(warm.pipe, settings, read_examples(dataset), 0)
    begun = alone.beside()[0].value
    alone.train_to(4)
    [expected] = alone.finish()

    together = spread(settings)
    together.train_to(4)
    [found] = together.finish()

    assert warm.changed() == {}
    moved, apart = expected.value - begun, expected.value - found.value
    assert moved.norm() > 0 and apart.norm() < 1e-3 * moved.norm()


def test_it_goes_on_from_what_it_saved_to_the_same_bits(spread, warm, tmp_path):
    settings = recipe(ema_decay=0.9)
    first = spread(settings)
    first.train_to(2)
    with first.evaluation():
        assert warm.changed()
    tensors, values = first.state()
    save_tensors(tmp_path / "state.safetensors", tensors)
    first.train_to(5)
    first.finish()
    expected = warm.changed()

    second = spread(settings)
    second.load_state(load_tensors(tmp_path / "state.safetensors"), values)
    second.train_to(5)
    second.finish()

    assert [step for step, _ in second.losses] == [1, 2, 3, 4, 5]
    assert second.losses == first.losses
    found = warm.changed()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_state_that_is_due_is_saved_on_the_way_and_one_process_can_go_on_from_it(
    spread, warm, dataset
):
    settings = recipe()
    trainer = spread(settings)
    saved, told = [], []
    trainer.train_to(
        3,
        progress=lambda done, total, _: told.append((done, total)),
        is_due=lambda: True,
        save=lambda: saved.append(trainer.state()),
    )
    assert [values["trainer"]["step"] for _, values in saved] == [1, 2]
    assert told == [(1, 3), (2, 3), (3, 3)]
    expected = trainer.losses

    assert len(helpers()) == 2
    trainer = None
    gc.collect()
    assert helpers() == []
    warm.reset()
    alone = Trainer(warm.pipe, settings, read_examples(dataset), 0)
    alone.load_state(*saved[1])
    alone.train_to(3)
    assert alone.losses == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in expected]


def test_batches_in_parts_are_parted_in_each_process(spread, warm, dataset):
    settings = recipe(batch_size=8)
    whole = Trainer(warm.pipe, settings, read_examples(dataset), 0)
    whole.train_to(1)
    with in_parts(2):
        parted = spread(settings)
    parted.train_to(1)
    parted.finish()
    assert parted.losses[0][1] == pytest.approx(whole.losses[0][1], rel=1e-5)


def test_a_loss_that_is_not_finite_is_the_workers_own_error(spread):
    trainer = spread(recipe(learning_rate=1e30))
    with pytest.raises(LossNotFinite, match=r"lower finetune.learning_rate") as caught:
        trainer.train_to(9)
    assert cause_of(caught.value) == "nan"
    steps = [step for step, _ in caught.value.curve]
    assert steps == list(range(1, len(steps) + 1)) and 1 <= len(steps) < 9
    assert f"step {len(steps) + 1};" in str(caught.value)
    assert "_backward" not in str(caught.value)
    assert "in train_to" in "".join(caught.value.__notes__)


def test_a_process_that_fails_says_why(spread, tmp_path):
    with pytest.raises(FailedElsewhere, match=r"nowhere\.parquet") as caught:
        spread(recipe(), tmp_path / "nowhere.parquet")
    assert cause_of(caught.value) == "bug"
    assert "read_examples" in "".join(caught.value.__notes__)


def test_a_process_that_is_killed_is_the_cause_though_the_other_complains(spread):
    trainer = spread(recipe())
    trainer.train_to(1)
    helpers()[1].send_signal(signal.SIGKILL)
    with pytest.raises(FailedElsewhere, match="killed by signal 9") as caught:
        trainer.train_to(5)
    assert cause_of(caught.value) == "oom"


ALONE = """
import sys, time
from pathlib import Path
from orchestrator.core.registry import find
from tests.processes import title
from workers.editing.pipeline import WarmPipeline
from workers.recipes import FinetuneSettings
from workers.training.spread import SpreadTrainer

if __name__ == "__main__":
    cls = find("base", "tiny")
    warm = WarmPipeline(cls(cls.Settings()), "cpu")
    trainer = SpreadTrainer(warm, FinetuneSettings(batch_size=2), Path(sys.argv[1]), 0, 2)
    print("ready", flush=True)
    trainer.train_to(10**9)
"""


def test_it_ends_with_a_worker_that_is_killed(dataset, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(ALONE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    worker = subprocess.Popen(
        [sys.executable, str(script), str(dataset)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    children = psutil.Process(worker.pid).children()
    worker.kill()
    worker.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    worker.stdout.close()
    assert len(children) >= 2
    assert alive == []
