import pytest
import torch

from workers.judging.distances import (
    frechet,
    frechet_of_gaussians,
    kernel_distance,
    perceptual,
    rbf_distance,
)


def normal(count, width=6, seed=0):
    return torch.randn(
        count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def covariance(width, seed):
    rows = normal(width + 3, width, seed)
    return rows.T @ rows


def test_frechet_of_gaussians_whose_covariances_commute():
    """‖μ₁ - μ₂‖² + Σ (σ₁ - σ₂)² of two diagonal ones."""
    first, second = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([4.0, 2.0, 0.5]).double()
    means = torch.zeros(3).double(), torch.tensor([1.0, -2.0, 0.0]).double()
    found = frechet_of_gaussians(means[0], first.square().diag(), means[1], second.square().diag())
    assert found == pytest.approx(5 + 9 + 0 + 6.25)


def test_frechet_of_gaussians_in_the_plane():
    """In two dimensions Tr A^½ = (Tr A + 2 det A^½)^½, also of Σ₁ Σ₂, which is not symmetric."""
    one, other = covariance(2, 0), covariance(2, 1)
    product = one @ other
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = one.trace() + other.trace() - 2 * cross
    mean = torch.zeros(2).double()
    assert frechet_of_gaussians(mean, one, mean, other) == pytest.approx(float(expected))


def test_frechet_of_samples_goes_to_that_of_their_gaussians():
    shift, stretch = 2.0, 3.0
    x, y = normal(20_000), normal(20_000, seed=1) * stretch + shift
    assert frechet(x, y) == pytest.approx(6 * (shift**2 + (stretch - 1) ** 2), rel=0.03)


def test_frechet_of_a_set_with_itself_is_0_also_with_few_pictures():
    for count in (4, 100):
        assert frechet(normal(count), normal(count)) == pytest.approx(0, abs=1e-6)


def test_frechet_is_symmetric():
    x, y = normal(50), normal(60, seed=1) @ covariance(6, 2)
    assert frechet(x, y) == pytest.approx(frechet(y, x))


@pytest.mark.parametrize(
    "distance", [frechet, kernel_distance, lambda x, y: rbf_distance(x, y, 10.0)]
)
def test_a_distance_grows_with_the_noise(distance):
    x = normal(300)
    found = [distance(x, x + amount * normal(300, seed=1)) for amount in (0.5, 1.0, 2.0, 4.0)]
    assert found == sorted(found)
    assert found[-1] > found[0]


@pytest.mark.parametrize("distance", [kernel_distance, lambda x, y: rbf_distance(x, y, 1.0)])
def test_samples_of_one_distribution_are_at_0_on_average(distance):
    found = torch.tensor(
        [distance(normal(20, seed=2 * i), normal(30, seed=2 * i + 1)) for i in range(200)]
    )
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean()) < 3 * error
    assert found.min() < 0 < found.max()  # not cut off at 0


def test_kernel_distance_of_two_points_each():
    """Written out for d = 1: k(a, b) = (ab + 1)³."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [-1.0]])
    within = (0 * 1 + 1) ** 3 + (2 * -1 + 1) ** 3
    across = (1 + 1 + 3**3 + 0**3) / 4
    assert kernel_distance(x, y) == pytest.approx(within - 2 * across)


def test_rbf_distance_of_two_points_each():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    kernel = {d: torch.tensor(-(d**2) / 8).exp() for d in (1, 2, 3, 4)}  # σ = 2
    across = (kernel[2] + kernel[4] + kernel[1] + kernel[3]) / 4
    expected = kernel[1] + kernel[2] - 2 * across
    assert rbf_distance(x, y, 2.0) == pytest.approx(float(expected))


def test_perceptual_distance_by_hand():
    """One layer of two channels and two positions: orthogonal at the first, equal at the second."""
    ours = [torch.tensor([[[[3.0, 1.0]], [[0.0, 1.0]]]])]
    theirs = [torch.tensor([[[[0.0, 5.0]], [[2.0, 5.0]]]])]
    weights = [torch.tensor([0.5, 2.0])]
    assert perceptual(ours, theirs, weights).tolist() == pytest.approx([(0.5 + 2.0) / 2])
