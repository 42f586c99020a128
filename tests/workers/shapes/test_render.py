from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from workers.shapes.render import OUTLINES, Scene, random_scene, render
from workers.shapes.vocabulary import ALL_SHAPES, COLORS, FILLS, RGB, SHAPES

CENTERED = Scene("circle", "blue", "solid", 16, 16, 24, 0, (230, 230, 230))


def background_share(image: np.ndarray, scene: Scene) -> float:
    return float((image == scene.background).all(axis=2).mean())


def test_same_scene_gives_the_same_picture():
    assert np.array_equal(render(CENTERED), render(CENTERED))


def test_same_seed_gives_the_same_scenes():
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    assert [random_scene(first) for _ in range(5)] == [random_scene(second) for _ in range(5)]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_every_shape_and_fill_covers_part_of_the_picture(shape, fill):
    scene = replace(CENTERED, shape=shape, fill=fill)
    image = render(scene)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert 0.3 < background_share(image, scene) < 0.95


def test_size_in_pixels_scales_the_same_scene():
    small, large = render(CENTERED), render(CENTERED, size_px=64)
    shrunk = large.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert large.shape == (64, 64, 3)
    assert np.abs(shrunk - small).mean() < 2


@pytest.mark.parametrize("fill", FILLS)
def test_shapes_differ_from_one_another(fill):
    images = {name: render(replace(CENTERED, shape=name, fill=fill)) for name in ALL_SHAPES}
    for first, second in combinations(ALL_SHAPES, 2):
        difference = np.abs(images[first].astype(int) - images[second]).mean()
        assert difference > 4, (first, second)


@pytest.mark.parametrize("color", COLORS)
def test_color_is_painted(color):
    assert tuple(render(replace(CENTERED, color=color))[16, 16]) == RGB[color]


def test_outlined_is_hollow_and_striped_has_two_shades():
    outlined = replace(CENTERED, fill="outlined")
    assert tuple(render(outlined)[16, 16]) == outlined.background
    striped = render(replace(CENTERED, fill="striped"))[12:20, 12:20].reshape(-1, 3)
    assert striped[:, 2].max() > 2 * striped[:, 2].min()


def test_random_scenes_stay_inside_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = random_scene(rng)
        for center in (scene.x, scene.y):
            assert scene.size / 2 <= center <= 32 - scene.size / 2


def test_random_scenes_keep_what_is_given_and_draw_no_novel_shape():
    rng = np.random.default_rng(0)
    scene = random_scene(rng, "bolt", "red", "striped")
    assert (scene.shape, scene.color, scene.fill) == ("bolt", "red", "striped")
    assert {random_scene(rng).shape for _ in range(200)} == set(SHAPES)


def test_outlines_fit_their_square():
    for name, outline in OUTLINES.items():
        points = np.array(outline)
        assert np.abs(points).max() <= 1.06, name
