"""Losses of an adversarial autoencoder beside the mean absolute error: perceptual, adversarial and spectral."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.audit.features import load_feature_network
from models.work import count_flops

# Where EfficientNet-Lite0 has halved the image 1, 2, 3, 4 times for the last time: index of the layer in the network.
FEATURE_LAYERS = (2, 4, 6, 12)


class PerceptualLoss:
    """How far two images are from each other in the features of an ImageNet network.

    Zhang et al. 2018, equation 1, with all weights 1: features of several layers, each position scaled to unit length,
    mean squared difference. Their learned weights, and SqueezeNet, which the published systems use, would be a
    download; this is the network of the fidelity audit, whose weights come as a package.

    Volumes, and slices over time, are compared in random slices across each axis ("2.5D", as MONAI does), the same ones
    of both.

    Not a module, so that no training takes it for a part of what it trains, averages and writes to checkpoints.

    Args:
        slices: of each volume across each axis; images are always compared whole.
        axes: of the volume, from 0, that slices are cut across; None: all. (2,) compares frames of (H, W, T).
        network: a feature network, from `load_feature_network`.
    """

    def __init__(
        self, slices: int = 4, axes: tuple[int, ...] | None = None, network: nn.Sequential | None = None
    ) -> None:
        layers = list((network or load_feature_network()).children())[: FEATURE_LAYERS[-1] + 1]
        self.network, self.slices, self.axes = nn.ModuleList(layers).eval(), slices, axes

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Mean distance of images or volumes (N, 1, *image) in [-1, 1], a scalar; slices are drawn on the CPU."""
        dims = x.dim() - 2
        if dims == 2:
            return self.distance(x, y)
        axes = range(dims) if self.axes is None else self.axes
        parts = []
        for axis in axes:
            chosen = torch.randperm(x.shape[2 + axis], generator=generator)[: self.slices].to(x.device)
            parts.append(self.distance(*(slices_across(volume, axis, chosen) for volume in (x, y))))
        return torch.stack(parts).mean()

    def flops(self, shape: tuple[int, ...]) -> int:
        """Operations of the network on one image or volume of this shape, before any gradient."""
        if len(shape) == 2:
            return count_flops(nn.Sequential(*self.network), (1, 3, *shape))
        total = 0
        for axis in range(len(shape)) if self.axes is None else self.axes:
            plane = tuple(side for other, side in enumerate(shape) if other != axis)
            total += min(self.slices, shape[axis]) * count_flops(nn.Sequential(*self.network), (1, 3, *plane))
        return total

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean distance of images (N, 1, H, W)."""
        self.network.to(x.device)
        grey = torch.cat([x, y]).add(1).mul(127.5).sub(127).div(128)  # (2 N, 1, H, W), as it was trained
        features, distances = grey.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), []
        for index, layer in enumerate(self.network):
            features = layer(features)
            if index in FEATURE_LAYERS:
                ours, theirs = F.normalize(features.float(), dim=1, eps=1e-6).chunk(2)  # (N, F, h, w) each
                distances.append((ours - theirs).square().sum(1).mean())
        return torch.stack(distances).sum()


def slices_across(volume: Tensor, axis: int, chosen: Tensor) -> Tensor:  # (N, 1, *volume) -> (N * chosen, 1, h, w)
    """Slices of volumes across one of three axes."""
    return volume.index_select(2 + axis, chosen).movedim(2 + axis, 1).flatten(0, 1)


class Criterion(NamedTuple):
    """What makes a discriminator, and what makes a generator against it, from numbers that are high for real."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # of real, of reconstructed -> scalar
    generator: Callable[[Tensor], Tensor]  # of reconstructed -> scalar


CRITERIA = {
    # Mao et al. 2017, equation 9: what the released codes use, whose library bends the verdicts beforehand.
    "least_squares": Criterion(
        lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        lambda fake: (fake - 1).square().mean(),
    ),
    # Lim and Ye 2017, as in the VQ-GAN of Esser et al. 2021.
    "hinge": Criterion(
        lambda real, fake: 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()),
        lambda fake: -fake.mean(),
    ),
}


def warm_up(seen: int, images: int) -> float:
    """Share of the adversarial weight after so many images seen: it rises linearly, over `images`."""
    return min(1.0, seen / images) if images else 1.0


def spectral_loss(x: Tensor, y: Tensor) -> Tensor:  # (N, 1, *image) twice -> scalar
    """Mean squared difference of the amplitudes of all frequencies (Dhariwal et al. 2020, section 3.3, in space).

    MONAI's JukeboxLoss takes the root of squares, whose gradient is not a number where a frequency is missing.
    """
    axes = tuple(range(2, x.dim()))
    amplitudes = (torch.fft.fftn(image.float(), dim=axes, norm="ortho").abs() for image in (x, y))  # (N, 1, *image)
    return F.mse_loss(*amplitudes)
