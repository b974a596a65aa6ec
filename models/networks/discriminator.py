"""The patch discriminator of a VQ-GAN (Isola et al. 2017): tells real from reconstructed, patch by patch."""

from dataclasses import dataclass

from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn


@dataclass(frozen=True)
class DiscriminatorSize:
    """`layers` convolutions after the first one; all but the last of them halve the image."""

    channels: int = 64  # of the first; each further one has twice as many
    layers: int = 3
    kernel: int = 4


# The released configurations. CardioDiT's gives a kernel of 3, MedLoRD's instance norm, which here serves all: batch
# norm, the default of the code that the others use, would mix real and reconstructed batches in its running means.
DISCRIMINATOR_SIZES = {
    "voldit": DiscriminatorSize(),
    "cardiodit": DiscriminatorSize(kernel=3),
    "medlord": DiscriminatorSize(),
}


class Discriminator(nn.Module):
    """Images to one number for each patch, above zero where it looks real.

    Args:
        spatial_dims: of the images; for slices over time 3.
        size: channels and depth.
        crop: spatial shape of what it will see.

    Raises:
        ValueError: if the crop is too small for so many layers.
    """

    def __init__(self, spatial_dims: int, size: DiscriminatorSize, crop: tuple[int, ...]) -> None:
        super().__init__()
        if any(min(lengths(side, size)) < 1 or lengths(side, size)[-2] < 2 for side in crop):
            raise ValueError(f"autoencoder.discriminator.layers: {size.layers} are too many for a crop of {crop}")
        self.patches = PatchDiscriminator(
            spatial_dims=spatial_dims,
            channels=size.channels,
            in_channels=1,
            num_layers_d=size.layers,
            kernel_size=size.kernel,
            norm="INSTANCE",
        )

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, *image) -> (N, 1, *patches)
        """How real each patch looks."""
        verdicts: Tensor = self.patches(x)[-1]
        return verdicts


def lengths(side: int, size: DiscriminatorSize) -> list[int]:
    """Side of an image after each convolution, all of padding 1 (the last of its kernel's half, rounded down)."""
    found = [side]
    for stride in (2,) * size.layers + (1,):
        found.append((found[-1] + 2 - size.kernel) // stride + 1)
    return [*found[1:], found[-1] + 2 * ((size.kernel - 1) // 2) - size.kernel + 1]
