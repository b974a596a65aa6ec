"""Model sizes as one table: what `size` in the matrix means for each family."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class UNetSize:
    """Channels of each level; every level but the first halves the latent. Attention at the levels marked."""

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    blocks: int  # residual blocks a level
    head_channels: int
    groups: int = 16  # of the norms


@dataclass(frozen=True)
class DiTSize:
    """Depth in blocks, width of a token, attention heads."""

    depth: int
    width: int
    heads: int


# XS to L of the transformer are those of VolDiT (arXiv 2603.25181, released configurations). No published table gives
# U-Nets by size: ours have about as many parameters in 3D as the transformer beside them.
#
#                        channels              attention                     blocks  head
UNET_SIZES = {
    "nano": UNetSize((32, 64),             (False, True),                1, 32),
    "tiny": UNetSize((48, 96),             (False, True),                1, 32),
    "XS":   UNetSize(( 64, 128, 192),      (False, False, True),         1, 32),
    "S":    UNetSize(( 96, 160, 256),      (False, False, True),         1, 32),
    "B":    UNetSize((128, 288, 416),      (False, False, True),         2, 32),
    "L":    UNetSize((256, 576, 928),      (False, False, True),         2, 32),
}  # fmt: skip

#                     depth  width  heads
DIT_SIZES = {
    "nano": DiTSize(  4,     128,   4),
    "tiny": DiTSize(  5,     160,   5),
    "XS":   DiTSize(  6,     384,   6),
    "S":    DiTSize( 12,     384,   6),
    "B":    DiTSize( 12,     768,  12),
    "L":    DiTSize( 24,    1152,  16),
}  # fmt: skip

# CardioDiT (arXiv 2603.25194, released configurations): sizes differ in depth alone.
CARDIODIT_SIZES = {
    "S":    DiTSize(  8,     768,  12),
    "B":    DiTSize( 12,     768,  12),
    "L":    DiTSize( 16,     768,  12),
}  # fmt: skip

# MedLoRD (arXiv 2503.13211, released configuration).
MEDLORD_SIZE = UNetSize((64, 128, 256, 512), (False, False, True, True), 2, 32, groups=32)

SIZES = tuple(DIT_SIZES)  # of the matrix

# Families of the matrix, and how their U-Nets take the D of stacks over time, (D, H, W, T): as channels of one image,
# or each slice on its own, ignorant of the others. These two are the baselines of CardioDiT's study.
DEPTHS = {"unet": "channels", "unet-slices": "samples", "dit": None}
FAMILIES = tuple(DEPTHS)


def downsampling(axes: int, dims: str, settings: dict[str, Any]) -> tuple[int, ...]:
    """How many pixels of an image a latent of the config's autoencoder stands for, along each of its axes.

    Args:
        axes: of what the autoencoder sees: 2 for images, 3 for volumes and for slices over time.
        dims: `2d` or `3d`, whose values hold.
        settings: the config's `autoencoder`.

    Raises:
        ValueError: if `autoencoder.strides` do not go with the axes or the levels.
    """
    levels = len(settings["channels"][dims])
    if settings["kind"] == "kl":
        return (2 ** (levels - 1),) * axes
    strides = settings["strides"] or [[2] * axes] * levels
    if len(strides) != levels:
        raise ValueError(f"autoencoder.strides: {len(strides)} levels, but autoencoder.channels.{dims} has {levels}")
    if any(len(level) != axes for level in strides):
        raise ValueError(f"autoencoder.strides: each level needs a stride for each of the {axes} axes of its images")
    return tuple(math.prod(level[axis] for level in strides) for axis in range(axes))
