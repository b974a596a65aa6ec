"""Diversity of a set of images: mean MS-SSIM over pairs (low: varied; 1: all the same).

Small perturbations saturate MS-SSIM and it can miss a collapse to few modes (Wasserstein-distance
diversity, BVM 2026), so it is never the only figure. Own code, since pytorch-msssim refuses images below
161 pixels and importing MONAI's takes longer than the audit of a small run; a test holds it against
MONAI's.
"""

from itertools import combinations
from math import comb
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.audit.views import Array, Images

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2, finest scale first
WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
VOXELS_AT_ONCE = 1 << 21


def ms_ssim_scales(shape: tuple[int, ...]) -> int:
    """Scales used for images of a shape: as many of the five as leave room for the 11-pixel window.

    176 pixels and more on the shortest side give 5, 128 gives 4, 64 gives 3, 32 gives 2.
    """
    shortest = min(shape)
    return max(1, sum(shortest >> scale >= WINDOW for scale in range(len(WEIGHTS))))


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of each pair, (B, 1, H, W) or (B, 1, D, H, W) in [0, 1] -> (B,): Wang et al. 2003, eq. 7.

    With fewer than five scales their weights are scaled to add up to one. Below 11 pixels the window
    shrinks to the largest odd size that fits. Negative structure terms count as zero.
    """
    dims = x.ndim - 2
    shape = tuple(x.shape[2:])
    weights = torch.tensor(WEIGHTS[: ms_ssim_scales(shape)])
    weights = weights / weights.sum()
    shortest = min(shape)
    window = _gaussian(min(WINDOW, shortest - 1 + shortest % 2))
    pool = functional.avg_pool2d if dims == 2 else functional.avg_pool3d
    terms = []
    for scale in range(len(weights)):
        similarity, structure = _ssim(x, y, window)
        last = scale == len(weights) - 1
        terms.append((similarity if last else structure).relu())
        x, y = (x, y) if last else (pool(x, 2), pool(y, 2))
    return torch.prod(torch.stack(terms) ** weights[:, None], dim=0)  # (B,)


def _ssim(x: Tensor, y: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Mean SSIM (B,) and mean of its contrast-structure part (B,): Wang et al. 2004, eq. 13, range 1."""
    blurred = _blur(torch.cat([x, y, x * x, y * y, x * y], dim=1), window)  # (B, 5, ...)
    mean_x, mean_y, xx, yy, xy = blurred.unbind(1)
    c1, c2 = K1**2, K2**2
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def _gaussian(size: int) -> Tensor:
    positions = torch.arange(size) - size // 2
    kernel = torch.exp(-(positions**2) / (2 * SIGMA**2))
    return kernel / kernel.sum()  # (size,)


def _blur(images: Tensor, window: Tensor) -> Tensor:
    """Gaussian filter axis by axis, without padding."""
    channels, dims = images.shape[1], images.ndim - 2
    convolve = functional.conv2d if dims == 2 else functional.conv3d
    for axis in range(dims):
        shape = [1] * dims
        shape[axis] = len(window)
        kernel = window.view(1, 1, *shape).expand(channels, *[-1] * (dims + 1))
        images = convolve(images, kernel, groups=channels)
    return images


def draw_pairs(count: int, pairs: int, seed: int = 0) -> list[tuple[int, int]]:
    """`pairs` different pairs out of `count` images, or all there are; the same for the same arguments."""
    if comb(count, 2) <= pairs:
        return list(combinations(range(count), 2))
    generator = np.random.default_rng(seed)
    drawn: dict[tuple[int, int], None] = {}
    while len(drawn) < pairs:
        first, second = sorted(generator.choice(count, size=2, replace=False).tolist())
        drawn[first, second] = None
    return list(drawn)


@torch.inference_mode()
def mean_pairwise_ms_ssim(images: Images, pairs: int, seed: int = 0) -> float | None:
    """Mean MS-SSIM over random pairs of images in [-1, 1]; None for fewer than two.

    Of sequences (H, W, T) are compared as wholes, time as a third axis: two that look alike and beat out of step are
    not alike. Of stacks over time the mean is also over slices, each compared with the same slice of the other.
    """
    drawn = draw_pairs(len(images), pairs, seed)
    if not drawn:
        return None
    batch = max(1, VOXELS_AT_ONCE // cast(int, np.prod(images.shape)))
    values = []
    for start in range(0, len(drawn), batch):
        some = np.array(drawn[start : start + batch])
        values.append(ms_ssim(_unit(images.blocks(some[:, 0])), _unit(images.blocks(some[:, 1]))))
    return float(torch.cat(values).mean())


def _unit(blocks: Array) -> Tensor:  # (R, B, *block) in [-1, 1] -> (R B, 1, *block) in [0, 1], for SSIM's constants
    flat = np.array(blocks, np.float32).reshape(-1, 1, *blocks.shape[2:])
    return torch.from_numpy(flat).clamp(-1, 1).add(1).div(2)
