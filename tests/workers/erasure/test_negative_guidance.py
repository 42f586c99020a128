"""Where x_t may be taken on the way from noise, and at which time steps it is evaluated."""

import pytest

from tests.workers.unlearners.golden.released import erasure
from workers.diffusion.text import embed
from workers.erasure.negative_guidance import draw
from workers.erasure.stops import as_in_2023, as_sdd_released, at_the_samplers_steps, drawing_passes

FIFTY = range(981, 0, -20)
"""Of DDIM with 50 steps on 1000 time steps."""


def level(stop):
    """The time step at which x_t stands: a step from τ goes to τ - 20; nothing walked: 981."""
    return stop.walked[-1] - 20 if stop.walked else 981


def test_at_the_samplers_steps_it_is_evaluated_where_it_stands():
    stops = at_the_samplers_steps(FIFTY, 20)
    assert [len(stop.walked) for stop in stops] == list(range(50))
    assert all(list(stop.evaluated) == [level(stop)] for stop in stops)


def test_as_in_2023_the_first_step_is_left_out_and_t_is_above_where_it_stands():
    stops = as_in_2023(FIFTY, 20)
    assert [len(stop.walked) for stop in stops] == [49, *range(49, 0, -1)]
    assert all(stop.walked[0] == 961 for stop in stops)
    assert [stop.evaluated for stop in stops] == [range(20 * j, 20 * j + 20) for j in range(50)]
    for stop in stops[2:]:
        assert [t - level(stop) for t in stop.evaluated] == list(range(39, 59))


def test_as_sdd_released_t_is_within_the_step_and_none_is_all():
    all_steps, *stops = as_sdd_released(FIFTY, 20)
    assert all_steps == (FIFTY, range(980, 1000))
    assert [len(stop.walked) for stop in stops] == list(range(1, 50))
    assert all(level(stop) in stop.evaluated and len(stop.evaluated) == 20 for stop in stops)


@pytest.mark.parametrize(
    ("stops", "passes"),
    [(at_the_samplers_steps, 2 * 24.5), (as_in_2023, 2 * 25.48), (as_sdd_released, 2 * 25.5)],
)
def test_drawing_costs_two_passes_a_step_on_average_over_the_stops(stops, passes):
    assert drawing_passes(50, 100, stops) == round(100 * passes)


class Asked:
    start_guidance, sampler_steps = 3.0, 4


def test_drawings_of_one_step_differ_by_stream_and_rows_at_one_t_by_noise(pipe):
    empty, asked = embed(pipe, [""])[0], erasure(pipe, "star", ["a star"])

    def drawn(count, step, **streams):
        text = empty.expand(count, -1, -1)
        return draw(asked, Asked(), pipe.unet, text, empty, step, as_in_2023, **streams)

    x, t = drawn(1, 0)
    others = [drawn(1, 0, stream=f" {n}") for n in range(4)]
    assert len({t, *(u for _, u in others)}) == 5
    y, same = drawn(2, 0, noise=" of what is retained")
    assert same == t and y.shape == (2, *x.shape[1:])
    assert not (y[:1] == x).all()
