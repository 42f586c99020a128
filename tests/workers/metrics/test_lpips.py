import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from orchestrator.core.errors import ResurgeError
from tests.workers.metrics.tiny_models import noise_images, pictures_of
from tests.workers.metrics.worlds import noisy, rendered
from workers.metrics.lpips import Lpips

HEARTS = rendered(20, shape="heart")
CHANNELS = (3, 64, 192, 384, 256, 256)
LAYERS = zip((0, 3, 6, 8, 10), CHANNELS, CHANNELS[1:], (11, 5, 3, 3, 3), strict=False)


def metric(features="judge"):
    return Lpips(Lpips.Settings(features=str(features)))


def values(ours, theirs, features="judge"):
    return metric(features).score_images(pictures_of(ours), pictures_of(theirs)).values


@pytest.fixture(scope="module")
def tensors():
    draw = torch.Generator().manual_seed(0)
    found = {}
    for place, (number, inputs, outputs, side) in enumerate(LAYERS):
        weight = torch.randn(outputs, inputs, side, side, generator=draw)
        found[f"features.{number}.weight"] = weight / (inputs * side**2) ** 0.5
        found[f"features.{number}.bias"] = torch.zeros(outputs)
        found[f"lin{place}.model.1.weight"] = torch.rand(1, outputs, 1, 1, generator=draw)
    return found


@pytest.fixture(scope="module")
def alexnet(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.safetensors"
    save_file(tensors, path)
    return path


def test_the_base_is_at_0_and_noise_takes_away_from_it():
    found = [sum(values(noisy(HEARTS, amount), HEARTS)) for amount in (0, 10, 40, 120)]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found == sorted(found)
    assert found[1] > 0


def test_each_picture_is_compared_with_its_own():
    mixed = [*noisy(HEARTS[:3], 60), *HEARTS[3:]]
    found = values(mixed, HEARTS)
    assert min(found[:3]) > 0
    assert found[3:] == pytest.approx([0] * 17, abs=1e-6)


def test_alexnet_by_its_definition(alexnet, tensors):
    """The first layer's share, written down once more, for weights that are 0 elsewhere."""
    only = {n: t if n[:4] in ("feat", "lin0") else t * 0 for n, t in tensors.items()}
    path = alexnet.with_name("first.safetensors")
    save_file(only, path)
    ours, theirs = noise_images(2, side_px=64), noise_images(2, seed=1, side_px=64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def unit(image):
        pixels = ((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None]
        layer = functional.conv2d(pixels, tensors["features.0.weight"], stride=4, padding=2).relu()
        return layer / layer.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)

    weight = tensors["lin0.model.1.weight"]
    expected = [
        float(((unit(a) - unit(b)).square() * weight).sum(1).mean())
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert values(ours, theirs, path) == pytest.approx(expected, rel=1e-4)
    assert values(ours, theirs, alexnet)[0] > expected[0]


def test_a_file_without_a_layer(tmp_path, tensors):
    path = tmp_path / "half.safetensors"
    save_file({n: t for n, t in tensors.items() if n != "features.8.bias"}, path)
    with pytest.raises(ResurgeError, match=r"lacks features\.8\.bias"):
        values(noise_images(1, side_px=64), noise_images(1, side_px=64), path)
