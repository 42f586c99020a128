import pytest
import torch

from tests.workers.unlearners.golden.drawn import draw_stored
from tests.workers.unlearners.golden.released import erasure, weights
from workers.diffusion.text import embed
from workers.erasure import negative_guidance
from workers.erasure.stops import as_sdd_released
from workers.unlearners.sdd import SDD


@pytest.fixture
def gradient_norms(monkeypatch):
    """Of every step, before clipping."""
    seen, clip = [], torch.nn.utils.clip_grad_norm_

    def watched(*args):
        seen.append(clip(*args))
        return seen[-1]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    return seen


def settings(golden):
    names = (
        "batch_size", "clip_norm", "ema_decay", "iterations", "learning_rate", "sampler_steps",
        "start_guidance", "weight_decay",
    )  # fmt: skip
    return SDD.Settings(variant="released", **{n: golden.settings[n] for n in names})


def test_the_whole_training(shapes, released, monkeypatch, gradient_norms):
    with released("sdd") as golden:
        before = weights(shapes)
        given = [golden.input(name) for name in ("start", "k", "t", "x_t")]
        seen = draw_stored(monkeypatch, *given)
        asked = erasure(shapes, golden.settings["concept"], [golden.settings["prompt"]])
        (edit,) = SDD(settings(golden)).unlearn(asked).edits
        golden.compare_exactly("t", torch.tensor(seen.t))
        golden.compare("x_t", torch.cat(seen.x_t))
        golden.compare("loss", torch.stack(seen.losses))
        golden.compare("gradient_norm", torch.stack(gradient_norms))
        golden.compare_changes("student", before, weights(shapes))
        average = {name.removeprefix("unet."): value for name, value in edit.values.items()}
        golden.compare_changes("ema", before, average, within=1e-5)


def test_drawing_where_no_step_would_be_pure_noise(shapes, released, monkeypatch):
    with released("sdd") as golden:
        k = golden.input("draw.k")
        start = golden.input("draw.start").expand(len(k), -1, -1, -1)
        seen = draw_stored(monkeypatch, start, k, torch.zeros_like(k), start)
        text, empty = embed(shapes, [golden.settings["prompt"], ""])
        asked = erasure(shapes, golden.settings["concept"], [])
        for step in range(len(k)):
            negative_guidance.draw(
                asked, settings(golden), shapes.unet, text[None], empty, step,
                as_sdd_released,
            )  # fmt: skip
        golden.compare("draw.x", torch.cat(seen.x_t))
