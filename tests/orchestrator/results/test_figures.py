import numpy as np
import pytest
from PIL import Image

from orchestrator.core.errors import ResurgeError
from orchestrator.plan.plan import make_plan
from orchestrator.results.figures import figure
from orchestrator.results.pictures import Shown, cell, grid
from orchestrator.store.store import Store
from orchestrator.sweepfile.load import parse
from tests.orchestrator import synthetic
from tests.orchestrator.results.test_chains import TEXT, commit


@pytest.fixture(scope="module")
def plan():
    return synthetic.make_plan(steps=(50, 100), seeds=(0,))


@pytest.fixture(scope="module")
def store(plan, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    synthetic.commit(store, plan)
    return store


def share_of_ink(path):
    pixels = np.asarray(Image.open(path).convert("L"))
    return (pixels < 250).mean()


def test_the_figure_is_the_curves_and_the_images(plan, store, tmp_path):
    figure(plan, store, tmp_path / "out" / "both.png")
    untuned = synthetic.make_plan(steps=(0,), seeds=(0,))
    synthetic.commit(store, untuned)
    figure(untuned, store, tmp_path / "curves.png")
    both, curves = (Image.open(tmp_path / name) for name in ("out/both.png", "curves.png"))
    assert both.width == curves.width
    assert both.height > 1.5 * curves.height > 0
    assert share_of_ink(tmp_path / "out" / "both.png") > 0.05


def test_nothing_to_draw_is_said(plan, tmp_path):
    with pytest.raises(ResurgeError, match="nothing to draw yet"):
        figure(plan, Store(tmp_path), tmp_path / "figure.png")


def test_an_unfinished_sweep_is_drawn_as_far_as_it_is(plan, tmp_path):
    store = Store(tmp_path / "store")
    synthetic.commit(store, plan, {s.digest for s in plan.trials[0].stages()})
    figure(plan, store, tmp_path / "figure.png")
    assert share_of_ink(tmp_path / "figure.png") > 0.02


def test_small_images_grow_by_whole_factors_and_stay_sharp():
    image = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8))
    grown = cell(image, 96)
    assert grown.size == (96, 96)
    assert set(np.unique(grown)) == {0, 255}


def test_large_images_shrink():
    assert cell(Image.new("RGB", (512, 256)), 96).size == (96, 48)


def test_a_grid_of_many_images_stays_small():
    row = [Shown("a star", Image.new("RGB", (512, 512)))] * 50
    assert max(grid([row] * 50).size) <= 8 * 100 + 4


GROUPS = """
    {role: erased, prompt: "a {concept}"}, {role: other, concept: circle, prompt: a ring},
    {role: synonym, concept: star, prompt: a spark}"""


def drawn(tmp_path, name, method="uce", order="simultaneous", rows=GROUPS):
    """The size of the figure of a sweep of two concepts."""
    text = TEXT.replace("METHOD", method).replace("ORDER", order)
    text = text.replace("evaluate: {", f"evaluate: {{set: {{inline: {{rows: [{rows}]}}}}, ")
    found, store = make_plan(parse(text)), Store(str(tmp_path / name))
    commit(store, found)
    figure(found, store, tmp_path / f"{name}.png")
    with Image.open(tmp_path / f"{name}.png") as image:
        return image.size


def test_a_group_has_a_row_of_panels_and_so_has_the_way(calls, tmp_path):
    plain = drawn(tmp_path, "plain", rows='{role: erased, prompt: "a {concept}"}')
    groups = drawn(tmp_path, "groups")
    way = drawn(tmp_path, "way", order="continual")
    assert plain[0] == groups[0] == way[0]
    assert plain[1] < groups[1] < way[1]


def test_many_methods_stand_below_each_other(calls, tmp_path):
    few = drawn(tmp_path, "few", method="{uce: {erase_scale: [0.5, 1.0]}}")
    many = drawn(tmp_path, "many", method="{uce: {erase_scale: [0.5, 0.6, 0.7, 0.8, 0.9]}}")
    assert few[0] == many[0]
    assert few[1] * 1.5 < many[1]


def test_a_sweep_that_fine_tunes_nowhere_is_dots(calls, tmp_path):
    text = TEXT.replace("METHOD", "uce").replace("ORDER", "[simultaneous, continual]")
    text = text.replace("  - finetune: {dataset: dots, steps: [0, 1, 2]}\n", "")
    found, store = make_plan(parse(text)), Store(str(tmp_path / "store"))
    commit(store, found)
    figure(found, store, tmp_path / "dots.png")
    assert share_of_ink(tmp_path / "dots.png") > 0.005
