"""MS-SSIM against MONAI's, at its bounds, and for images too small for five scales."""

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ms_ssim

from models.audit.diversity import WEIGHTS, draw_pairs, mean_pairwise_ms_ssim, ms_ssim, ms_ssim_scales
from models.audit.views import Images
from tests.models.audit.pictures_of import blobs


@pytest.mark.parametrize("shape", [(176, 180), (64, 64), (32, 40), (32, 32, 44)])
def test_same_as_monai(shape: tuple[int, ...]) -> None:
    x, y = ((torch.from_numpy(blobs(2, shape, seed)) + 1) / 2 for seed in (0, 1))
    weights = np.array(WEIGHTS[: ms_ssim_scales(shape)])
    theirs = compute_ms_ssim(x, y, spatial_dims=len(shape), data_range=1.0, weights=weights / weights.sum())
    torch.testing.assert_close(ms_ssim(x, y), theirs[:, 0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (7, 8), (16, 16, 16)])
def test_one_for_identical_and_less_for_others(shape: tuple[int, ...]) -> None:
    x, y = ((torch.from_numpy(blobs(2, shape, seed)) + 1) / 2 for seed in (0, 1))
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(2))
    assert (ms_ssim(x, y) < 0.95).all()
    torch.testing.assert_close(ms_ssim(x, y), ms_ssim(y, x))


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((256, 256), 5), ((176, 400), 5), ((128, 128), 4), ((64, 64), 3), ((32, 64, 64), 2), ((8, 8), 1)],
)
def test_scales(shape: tuple[int, ...], scales: int) -> None:
    assert ms_ssim_scales(shape) == scales


def test_pairs_are_different_and_repeatable() -> None:
    pairs = draw_pairs(20, 64)
    assert len(set(pairs)) == 64
    assert all(first < second for first, second in pairs)
    assert pairs == draw_pairs(20, 64)
    assert draw_pairs(3, 64) == [(0, 1), (0, 2), (1, 2)]
    assert draw_pairs(1, 64) == []


def test_mean_over_pairs() -> None:
    images = blobs(3, (32, 32))
    unit = (torch.from_numpy(images) + 1) / 2
    expected = ms_ssim(unit[[0, 0, 1]], unit[[1, 2, 2]]).mean()
    assert mean_pairwise_ms_ssim(Images(images), 64) == pytest.approx(float(expected))
    assert mean_pairwise_ms_ssim(Images(np.repeat(images[:1], 4, axis=0)), 64) == pytest.approx(1)
    assert mean_pairwise_ms_ssim(Images(images[:1]), 64) is None


def test_sequences_are_compared_over_time() -> None:
    """A single slice over time is a block of three axes; the same frames in another order are not alike."""
    pair = blobs(2, (16, 18, 12))
    unit = (torch.from_numpy(pair) + 1) / 2
    assert mean_pairwise_ms_ssim(Images(pair, moving=True), 64) == pytest.approx(float(ms_ssim(unit[:1], unit[1:])))
    out_of_step = np.concatenate([pair[:1], np.roll(pair[:1], 6, axis=-1)])
    value = mean_pairwise_ms_ssim(Images(out_of_step, moving=True), 64)
    assert value is not None
    assert value < 0.9


def test_stacks_over_time_are_compared_slice_by_slice() -> None:
    """The mean over slices of what each would have as a sequence of its own."""
    stacks = blobs(3, (2, 16, 18, 12))
    slices = [mean_pairwise_ms_ssim(Images(stacks[:, :, place], moving=True), 64) for place in (0, 1)]
    assert mean_pairwise_ms_ssim(Images(stacks, moving=True), 64) == pytest.approx(np.mean(slices))
    assert mean_pairwise_ms_ssim(Images(np.repeat(stacks[:1], 3, axis=0), moving=True), 64) == pytest.approx(1)
