import pytest
import torch

from workers.diffusion.rng import generator, integers, normal, shuffled


def test_same_place_gives_same_numbers_whatever_was_drawn_before():
    first = normal((5,), 1, 2, "noise")
    torch.manual_seed(9)
    torch.randn(100)
    assert torch.equal(first, normal((5,), 1, 2, "noise"))


@pytest.mark.parametrize("place", [(2, 2, "noise"), (1, 3, "noise"), (1, 2, "time")])
def test_seed_step_and_stream_each_change_the_numbers(place):
    assert not torch.equal(normal((5,), 1, 2, "noise"), normal((5,), *place))


def test_neighbouring_places_do_not_run_into_each_other():
    assert generator(1, 11, "a").initial_seed() != generator(11, 1, "a").initial_seed()


def test_integers_stay_below_their_bound():
    drawn = integers(7, 1000, 0, 0, "t")
    assert drawn.dtype == torch.int64
    assert (drawn.min().item(), drawn.max().item()) == (0, 6)


@pytest.mark.parametrize(("high", "count"), [(3, 1), (3, 2), (2, 5)])
def test_shuffled_numbers_are_all_drawn_equally_often_in_random_order(high, count):
    steps = 30 * high
    drawn = torch.cat([shuffled(high, count, 0, step, "texts") for step in range(steps)])
    assert torch.equal(drawn.bincount(), torch.full((high,), steps * count // high))
    passes = drawn.view(-1, high)
    assert all(one.sort().values.tolist() == list(range(high)) for one in passes)
    assert len({tuple(one.tolist()) for one in passes}) > 1
