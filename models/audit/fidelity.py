"""Frechet and kernel distance between two sets of features, in float64.

Both are biased or noisy for the few images of a small study: read them beside the same distance between
real training and real held-out images, and with the numbers of images that are written next to them.
"""

from typing import cast

import numpy as np
from numpy.typing import NDArray

from models.audit.features import Features

Matrix = NDArray[np.float64]

MIN_ROWS = 2  # a covariance, and an unbiased mean over pairs, need two


def frechet_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Frechet distance between Gaussians fitted to x (N, d) and y (M, d): Heusel et al. 2017, eq. 6.

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), covariances with N - 1.

    With A, B the centred rows over sqrt(N - 1), C_x C_y = A'A B'B has the eigenvalues of (A B')(A B')' and
    zeros, so the trace of its root is the sum of the singular values of A B'. That needs no root of a
    singular d x d matrix (N is mostly far below d = 1280), and is exact.

    Raises:
        ValueError: fewer than two rows.
    """
    left, right = _checked(x), _checked(y)
    shift = left.mean(0) - right.mean(0)
    spread_left, spread_right = _covariance_root(left), _covariance_root(right)
    cross = np.linalg.svd(spread_left @ spread_right.T, compute_uv=False).sum()
    distance = shift @ shift + np.sum(spread_left**2) + np.sum(spread_right**2) - 2 * cross
    return float(max(distance, 0.0))  # rounding alone can take it below zero


def _covariance_root(x: Matrix) -> Matrix:
    """R (min(N, d), d) with R'R = covariance of x."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return centred
    return cast(Matrix, np.linalg.qr(centred, mode="r"))


def _checked(x: NDArray[np.floating]) -> Matrix:
    if len(x) < MIN_ROWS:
        raise ValueError(
            f"a distance between distributions needs at least {MIN_ROWS} images on each side, got {len(x)}"
        )
    return np.asarray(x, np.float64)


def kernel_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Unbiased squared MMD between x (N, d) and y (M, d): Binkowski et al. 2018, section 3.

    The kernel is (x'y / d + 1)^3. Two samples of one distribution give zero on average, so often less.

    Raises:
        ValueError: fewer than two rows.
    """
    return float(_leave_one_out(x, y, np.arange(len(x)))[0])


def _leave_one_out(
    x: NDArray[np.floating], y: NDArray[np.floating], groups: NDArray[np.integer]
) -> tuple[float, Matrix]:
    """Kernel distance with all of x, and (G,) with each group of rows left out (NaN if one row stays)."""
    left, right = _checked(x), _checked(y)
    within_x, across, within_y = _kernel(left, left), _kernel(left, right), _kernel(right, right)
    n, m = len(left), len(right)
    np.fill_diagonal(within_x, 0.0)
    total_y = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    member = np.asarray(groups)[None, :] == np.unique(groups)[:, None]  # (G, N)
    member = np.concatenate([np.zeros((1, n), bool), member]).astype(np.float64)  # first: nothing left out
    sizes = member.sum(1)
    lost = 2 * member @ within_x.sum(1) - np.einsum("gi,ij,gj->g", member, within_x, member, optimize=True)
    kept = n - sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x = (within_x.sum() - lost) / (kept * (kept - 1))
        mean_across = (across.sum() - member @ across.sum(1)) / (kept * m)
    distances = np.where(kept >= MIN_ROWS, mean_x + total_y - 2 * mean_across, np.nan)
    return float(distances[0]), distances[1:]


def _kernel(x: Matrix, y: Matrix) -> Matrix:
    return (x @ y.T / x.shape[1] + 1) ** 3


def frechet_between(generated: Features, real: Features) -> float:
    """Frechet distance, mean over the planes (one in 2D, three in 3D)."""
    pairs = zip(generated.by_plane(), real.by_plane(), strict=True)
    return float(np.mean([frechet_distance(left.values, right.values) for left, right in pairs]))


def kernel_distance_between(generated: Features, real: Features) -> tuple[float, float | None]:
    """Kernel distance, mean over the planes, and its jackknife standard error over the generated images.

    The error leaves out one image, or one volume with all its slices, at a time: the root of
    (G - 1) / G sum (t_g - mean)^2. It says what other samples of the same model would change, and nothing
    about other patients. None for fewer than three.
    """
    pairs = zip(generated.by_plane(), real.by_plane(), strict=True)
    results = [_leave_one_out(left.values, right.values, left.items) for left, right in pairs]
    distance = float(np.mean([full for full, _ in results]))
    without = np.mean([left_out for _, left_out in results], axis=0)  # (G,)
    if len(without) < 3 or not np.isfinite(without).all():
        return distance, None
    count = len(without)
    return distance, float(np.sqrt((count - 1) / count * np.sum((without - without.mean()) ** 2)))
