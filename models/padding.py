"""Sides that a network cannot divide: padded with copies of their last voxels before it, cropped back after it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(shape: Sequence[int], multiples: Sequence[int]) -> tuple[int, ...]:
    """The least shape that holds this one and whose sides are multiples."""
    return tuple(-(-side // multiple) * multiple for side, multiple in zip(shape, multiples, strict=True))


def pad_to(x: Tensor, shape: Sequence[int]) -> Tensor:  # (N, C, *smaller) -> (N, C, *shape)
    """Images made larger at their far ends by repeating the last voxels; as they are where nothing is to be done.

    Repeated voxels and no zeros: an edge that no image has would have to be learnt.
    """
    for axis, side in enumerate(shape, start=2):
        if x.shape[axis] < side:
            x = x.index_select(axis, torch.arange(side, device=x.device).clamp(max=x.shape[axis] - 1))
    return x


def crop_to(x: Tensor, shape: Sequence[int]) -> Tensor:  # (N, C, *larger) -> (N, C, *shape)
    """What `pad_to` added, taken away."""
    return x[(slice(None), slice(None), *(slice(side) for side in shape))]
