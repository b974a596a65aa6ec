"""The vector-quantised autoencoder of VolDiT, CardioDiT and MedLoRD: images, volumes and slices over time.

Encoder and decoder are MONAI's (Tudosiu et al. 2022): strided convolutions and residual units, without normalisation
and without attention. So what a voxel becomes depends on its neighbourhood alone: a network trained on crops encodes
volumes of any size that its strides divide.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets.vqvae import Decoder, Encoder
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.networks.quantiser import Quantised, Quantiser


@dataclass(frozen=True)
class VQGANSize:
    """Levels from the image inwards, and the codebook."""

    channels: tuple[int, ...]  # of each level
    strides: tuple[tuple[int, ...], ...]  # of each level, for each dimension: 2 halves it, 1 keeps it
    codes: int
    code_channels: int = 8
    residual_units: int = 2  # of each level
    residual_channels: tuple[int, ...] | None = None  # inside the units of each level; None: as `channels`
    decay: float = 0.99
    commitment: float = 0.25
    restart_below: float = 0.03  # ours: the published ones let dead codes lie


# The released configurations; axes are (D, H, W), of CardioDiT (H, W, T). It was released with two compressions: its
# public samples are of the first, that halves all axes twice; `cardiodit-8x` is eightfold in space, fourfold in time.
HALVE, HALVE_IN_SPACE = (2, 2, 2), (2, 2, 1)
VQGAN_SIZES = {
    "voldit": VQGANSize((128, 256, 512), (HALVE,) * 3, codes=4096),
    "cardiodit": VQGANSize((128, 256), (HALVE,) * 2, codes=16384, residual_channels=(256, 256)),
    "cardiodit-8x": VQGANSize((128, 256, 256), (HALVE, HALVE, HALVE_IN_SPACE), codes=4096),
    "medlord": VQGANSize((128, 256), (HALVE,) * 2, codes=16384, decay=0.95),
    "medlord-8x": VQGANSize((128, 256, 512), (HALVE,) * 3, codes=16384, decay=0.98),
}


class VQGAN(nn.Module):
    """One-channel images to latents at the codes of a codebook, and back.

    Diffusion sees quantised latents, and what it makes is quantised before it is decoded: `latents_of` and `images_of`.

    Args:
        size: levels and codebook; its strides say how many dimensions there are. Time is a dimension like any other.
        checkpointing: keep no activations inside blocks for the backward pass but compute them anew.

    Raises:
        ValueError: if the levels do not agree with each other.
    """

    def __init__(self, size: VQGANSize, checkpointing: bool = False) -> None:
        super().__init__()
        checked(size)
        dims, levels = len(size.strides[0]), len(size.channels)
        residual = size.residual_channels or size.channels
        shared: dict[str, Any] = {
            "spatial_dims": dims,
            "channels": size.channels,
            "num_res_layers": size.residual_units,
            "num_res_channels": residual,
            "dropout": 0.0,
            "act": "RELU",
        }
        down: Any = [convolution(strides) for strides in size.strides]
        up: Any = [(*convolution(strides), (0,) * dims) for strides in reversed(size.strides)]
        self.encoder = Encoder(in_channels=1, out_channels=size.code_channels, downsample_parameters=down, **shared)
        self.decoder = Decoder(
            in_channels=size.code_channels, out_channels=1, upsample_parameters=up, output_act=None, **shared
        )
        self.quantiser = Quantiser(size.codes, size.code_channels, size.decay, size.commitment, size.restart_below)
        self.checkpointing, self.latent_channels = checkpointing, size.code_channels
        self.downsampling = tuple(
            math.prod(size.strides[level][axis] for level in range(levels)) for axis in range(dims)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, 1, *image) -> (N, 1, *image), scalar
        """Reconstruction, and the commitment loss."""
        quantised = self.quantise(self.encode(x))
        return self.decode(quantised.latents), quantised.loss

    def encode(self, x: Tensor) -> Tensor:  # (N, 1, *image) -> (N, C, *latent)
        """Latents before they are quantised.

        Raises:
            ValueError: if the downsampling does not divide a side.
        """
        shape = tuple(x.shape[2:])
        if len(shape) != len(self.downsampling) or any(s % f for s, f in zip(shape, self.downsampling, strict=True)):
            raise ValueError(
                f"an image of {shape} does not divide by the autoencoder's downsampling {self.downsampling}"
            )
        return self.through(self.encoder.blocks, x)

    def quantise(self, latents: Tensor) -> Quantised:  # (N, C, *latent)
        """Latents at the nearest codes, the codes, the commitment loss."""
        quantised: Quantised = self.quantiser(latents)
        return quantised

    def decode(self, latents: Tensor) -> Tensor:  # (N, C, *latent) -> (N, 1, *image)
        """Images of latents, taken as they are."""
        return self.through(self.decoder.blocks, latents)

    def latents_of(self, x: Tensor) -> Tensor:  # (N, 1, *image) -> (N, C, *latent)
        """Quantised latents: what diffusion learns."""
        return self.quantise(self.encode(x)).latents

    def images_of(self, latents: Tensor) -> Tensor:  # (N, C, *latent) -> (N, 1, *image)
        """Images of latents that lie beside the codes, as generated ones do."""
        return self.decode(self.quantise(latents).latents)

    def through(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """One block after the other; where activations are not kept, all that stays of a block is its input."""
        again = self.checkpointing and torch.is_grad_enabled()
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x


def convolution(strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]:
    """Stride, kernel, dilation and padding in MONAI's order: 4 wide where a dimension is halved, 1 where it is kept."""
    return strides, tuple(4 if s == 2 else 1 for s in strides), 1, tuple(1 if s == 2 else 0 for s in strides)


def checked(size: VQGANSize) -> None:
    """Refuse sizes that no network has."""
    if not size.channels or len(size.strides) != len(size.channels):
        raise ValueError(
            f"autoencoder.strides: {len(size.strides)} levels, but autoencoder.channels {len(size.channels)}"
        )
    if size.residual_channels is not None and len(size.residual_channels) != len(size.channels):
        raise ValueError("autoencoder.residual_channels: has to give a number for each of autoencoder.channels")
    if len({len(strides) for strides in size.strides}) != 1 or not {1, 2}.issuperset(sum(size.strides, ())):
        raise ValueError("autoencoder.strides: each level has a 1 or a 2 for each dimension")
