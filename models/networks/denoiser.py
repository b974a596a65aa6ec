"""Which network denoises: the one place that knows the families."""

from typing import Any

from torch import nn

from models.networks.dit import DiT
from models.networks.sizes import DIT_SIZES, UNET_SIZES
from models.networks.unet import UNet


def build_denoiser(plan: dict[str, Any], latent_shape: tuple[int, ...], latent_channels: int, patch: int) -> nn.Module:
    """The network of a plan row, with `forward(x, t)` on latents (N, C, *latent_shape).

    Args:
        plan: row with `family` and `size`.
        latent_shape: spatial shape of a latent.
        latent_channels: C.
        patch: side of a transformer's token.
    """
    if plan["family"] == "dit":
        return DiT(latent_shape, latent_channels, DIT_SIZES[plan["size"]], patch)
    return UNet(len(latent_shape), latent_channels, UNET_SIZES[plan["size"]])


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers in a network."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
