import pytest
import torch

from workers.metrics.weight_distance import WeightDistance

ATTN1, ATTN2 = "unet.a.attn1.to_q.weight", "unet.a.attn2.to_k.weight"


def score(base, unlearned, final):
    def state(values):
        return {ATTN1: torch.tensor(values[:2]), ATTN2: torch.tensor(values[2:])}

    metric = WeightDistance(WeightDistance.Settings())
    return metric.score_weights(state(base), state(unlearned), state(final)).metrics


def test_known_distances():
    metrics = score([0.0, 0, 0, 0], [3.0, 0, 0, 4], [3.0, 0, 1, 4])
    assert metrics["unlearned_to_base"] == pytest.approx(5)
    assert metrics["moved"] == pytest.approx(1)
    assert metrics["to_base"] == pytest.approx(26**0.5)
    assert metrics["undone"] == pytest.approx(0)
    assert metrics["cosine"] == pytest.approx(0)
    assert metrics["attn1.unlearned_to_base"] == pytest.approx(3)
    assert metrics["attn2.unlearned_to_base"] == pytest.approx(4)


def test_going_half_way_back_undoes_half():
    metrics = score([1.0, 0, 0, 0], [3.0, 0, 0, 4], [2.0, 0, 0, 2])
    assert metrics["undone"] == pytest.approx(0.5)
    assert metrics["cosine"] == pytest.approx(-1)
    assert metrics["attn2.undone"] == pytest.approx(0.5)


def test_going_back_to_the_base_undoes_all():
    metrics = score([1.0, 2, 3, 4], [2.0, 2, 3, 7], [1.0, 2, 3, 4])
    assert metrics["undone"] == pytest.approx(1)
    assert metrics["to_base"] == pytest.approx(0)


def test_without_unlearning_the_ratios_are_left_out():
    metrics = score([1.0, 2, 3, 4], [1.0, 2, 3, 4], [1.0, 2, 3, 5])
    assert metrics["moved"] == pytest.approx(1)
    assert not any(name.endswith(("undone", "cosine")) for name in metrics)


def test_a_model_that_did_not_move_has_no_direction():
    metrics = score([0.0, 0, 0, 0], [1.0, 0, 0, 0], [1.0, 0, 0, 0])
    assert metrics["undone"] == 0
    assert "cosine" not in metrics
