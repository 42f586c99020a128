"""Q16 and the aesthetic score: what stands on CLIP's embeddings."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from orchestrator.core.errors import ResurgeError
from tests.workers.metrics.tiny_models import WIDTH, noise_images, pictures_of
from workers.data.pinned import Source
from workers.judging.clip import load_clip
from workers.metrics.aesthetic import Aesthetic
from workers.metrics.q16 import Q16

IMAGES = noise_images(5)


@pytest.fixture
def embeddings(clip_folder):
    return load_clip(Source(str(clip_folder))).images(IMAGES)


def saved(path, **tensors):
    save_file({name.replace("__", "."): value for name, value in tensors.items()}, path)
    return str(path)


def q16(clip_folder, path):
    return Q16(Q16.Settings(model=str(clip_folder), prompts=path))


def aesthetic(clip_folder, path):
    return Aesthetic(Aesthetic.Settings(model=str(clip_folder), head=path))


def test_q16_is_the_nearer_of_two_prompts(clip_folder, embeddings, tmp_path):
    """The second prompt is the first picture's own embedding, so that one is inappropriate."""
    prompts = torch.stack([embeddings[1] * 3, embeddings[0] * 0.1])
    metric = q16(clip_folder, saved(tmp_path / "prompts.safetensors", prompts=prompts))
    score = metric.score_images(pictures_of(IMAGES))
    assert score.values[:2] == [1, 0]
    unit = prompts / prompts.norm(dim=1, keepdim=True)
    scale = load_clip(Source(str(clip_folder))).scale
    gaps = scale * (embeddings @ (unit[1] - unit[0]))
    expected = (1 / (1 + np.exp(-gaps.numpy()))).mean()
    assert score.metrics["probability.erased"] == pytest.approx(expected, abs=1e-5)
    assert score.values == (gaps > 0).double().tolist()


def test_q16_needs_two_prompts_of_the_models_width(clip_folder, tmp_path):
    three = saved(tmp_path / "three.safetensors", prompts=torch.ones(3, WIDTH))
    with pytest.raises(ResurgeError, match=r"one tensor \(2, width\)"):
        q16(clip_folder, three).score_images(pictures_of(IMAGES))
    wide = saved(tmp_path / "wide.safetensors", prompts=torch.ones(2, WIDTH + 1))
    with pytest.raises(ResurgeError, match="for embeddings of 9 numbers"):
        q16(clip_folder, wide).score_images(pictures_of(IMAGES))


def test_the_aesthetic_head_is_linear_layers_in_order(clip_folder, embeddings, tmp_path):
    draw = torch.Generator().manual_seed(0)
    shapes = {2: (4, WIDTH), 10: (1, 4)}  # 10 comes after 2, though not in the alphabet
    tensors = {}
    for number, (outputs, inputs) in shapes.items():
        tensors[f"layers__{number}__weight"] = torch.randn(outputs, inputs, generator=draw)
        tensors[f"layers__{number}__bias"] = torch.randn(outputs, generator=draw)
    metric = aesthetic(clip_folder, saved(tmp_path / "head.safetensors", **tensors))
    hidden = embeddings @ tensors["layers__2__weight"].T + tensors["layers__2__bias"]
    expected = hidden @ tensors["layers__10__weight"].T + tensors["layers__10__bias"]
    score = metric.score_images(pictures_of(IMAGES))
    assert score.values == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    assert score.metrics["erased"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_the_aesthetic_head_of_one_layer(clip_folder, embeddings, tmp_path):
    weight, bias = torch.ones(1, WIDTH), torch.tensor([5.0])
    path = saved(tmp_path / "head.safetensors", weight=weight, bias=bias)
    score = aesthetic(clip_folder, path).score_images(pictures_of(IMAGES))
    assert score.values == pytest.approx((embeddings.sum(1) + 5).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"weight": torch.ones(1, WIDTH)}, "a weight and a bias"),
        ({"weight": torch.ones(2, WIDTH), "bias": torch.ones(2)}, "one output but has 2"),
        ({"weight": torch.ones(1, 5), "bias": torch.ones(1)}, "for embeddings of 5 numbers"),
    ],
)
def test_a_head_of_another_form(clip_folder, tmp_path, tensors, match):
    path = saved(tmp_path / "head.safetensors", **tensors)
    with pytest.raises(ResurgeError, match=match):
        aesthetic(clip_folder, path).score_images(pictures_of(IMAGES))


def test_a_file_of_another_format(clip_folder, tmp_path):
    path = tmp_path / "head.safetensors"
    path.write_text("nothing")
    with pytest.raises(ResurgeError, match="must be a safetensors file"):
        aesthetic(clip_folder, str(path)).score_images(pictures_of(IMAGES))
