"""Distances against closed forms and against other ways to compute them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from models.audit.features import Features
from models.audit.fidelity import (
    frechet_between,
    frechet_distance,
    kernel_distance,
    kernel_distance_between,
)

Matrix = NDArray[np.float64]


def rows_with(mean: Matrix, covariance: Matrix, count: int, seed: int = 0) -> Matrix:
    """Rows whose sample mean and covariance (N - 1) are exactly the given ones."""
    noise = np.random.default_rng(seed).standard_normal((count, len(mean)))
    noise -= noise.mean(0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T).reshape(len(mean), -1))).T
    return white @ np.linalg.cholesky(covariance).T + mean


@given(
    means=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    deviations=st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)),
)
@settings(max_examples=30, deadline=None)
def test_frechet_of_two_normals(means: tuple[float, float], deviations: tuple[float, float]) -> None:
    """In one dimension: (m1 - m2)^2 + (s1 - s2)^2."""
    x, y = (
        rows_with(np.array([mean]), np.array([[deviation**2]]), 12, seed)
        for seed, (mean, deviation) in enumerate(zip(means, deviations, strict=True))
    )
    expected = (means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-9)


def test_frechet_of_diagonal_covariances() -> None:
    """Independent axes add up."""
    deviations = np.array([[1.0, 2.0, 0.5], [3.0, 0.2, 0.5]])
    means = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, -1.0]])
    x, y = (rows_with(means[i], np.diag(deviations[i] ** 2), 40 + i, i) for i in (0, 1))
    expected = np.sum((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2)
    assert frechet_distance(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_against_a_matrix_root(seed: int) -> None:
    """Heusel et al. eq. 6 word for word, with SciPy's root of the product."""
    generator = np.random.default_rng(seed)
    roots = generator.standard_normal((2, 8, 8))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(8)
    means = generator.standard_normal((2, 8))
    x, y = (rows_with(means[i], covariances[i], 30, seed + i) for i in (0, 1))
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_with_fewer_rows_than_dimensions() -> None:
    """Padding with constant columns changes nothing, and equal sets are at distance zero."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((9, 4)), generator.standard_normal((7, 4)) + 1
    wide_x, wide_y = (np.pad(rows, ((0, 0), (0, 200))) for rows in (x, y))
    assert frechet_distance(wide_x, wide_y) == pytest.approx(frechet_distance(x, y))
    assert frechet_distance(wide_x, wide_x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))
    assert frechet_distance(wide_x, wide_x[::-1] + 2 * np.eye(204)[0]) == pytest.approx(4)


def test_kernel_distance_by_hand() -> None:
    """d = 1, k(a, b) = (ab + 1)^3; x = {0, 1}, y = {1, 2}: 1 + 27 - 2 (1 + 1 + 8 + 27) / 4 = 9.5."""
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert kernel_distance(x, y) == pytest.approx(9.5)


def test_kernel_distance_is_unbiased() -> None:
    """Over many pairs of tiny samples it averages to zero for one distribution, and not for two."""
    generator = np.random.default_rng(0)
    same = np.array([kernel_distance(*generator.standard_normal((2, 5, 3))) for _ in range(2000)])
    assert abs(same.mean()) < 4 * same.std() / np.sqrt(len(same))
    assert same.min() < 0
    apart = [
        kernel_distance(generator.standard_normal((5, 3)), generator.standard_normal((5, 3)) + 1) for _ in range(500)
    ]
    assert np.mean(apart) > 10 * same.std() / np.sqrt(len(same))


def in_planes(values: Matrix, items: list[int], planes: list[int]) -> Features:
    return Features(values.astype(np.float32), np.array(items), np.array(planes))


def test_planes_are_averaged_and_the_error_is_a_jackknife() -> None:
    """Two planes of four volumes, two slices each: the same as doing it the long way round."""
    generator = np.random.default_rng(0)
    items, planes = [volume for volume in range(4) for _ in range(2)] * 2, [0] * 8 + [1] * 8
    x = in_planes(generator.standard_normal((16, 5)), items, planes)
    y = in_planes(generator.standard_normal((16, 5)) + 0.5, items, planes)
    pairs = list(zip(x.by_plane(), y.by_plane(), strict=True))
    assert frechet_between(x, y) == pytest.approx(np.mean([frechet_distance(a.values, b.values) for a, b in pairs]))
    distance, error = kernel_distance_between(x, y)
    assert distance == pytest.approx(np.mean([kernel_distance(a.values, b.values) for a, b in pairs]))
    without = [
        np.mean([kernel_distance(a.values[a.items != volume], b.values) for a, b in pairs]) for volume in range(4)
    ]
    assert error == pytest.approx(np.sqrt(3 / 4 * np.sum((np.array(without) - np.mean(without)) ** 2)))


def test_two_samples_have_no_error() -> None:
    values = np.random.default_rng(0).standard_normal((4, 3))
    features = in_planes(values, [0, 0, 1, 1], [0, 0, 0, 0])
    assert kernel_distance_between(features, features)[1] is None


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_one_image_is_too_few(distance) -> None:
    with pytest.raises(ValueError, match="at least 2 images on each side, got 1"):
        distance(np.ones((1, 3)), np.ones((5, 3)))
