"""Which network denoises: the one place that knows the families and builds the published generators."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.networks.control import Controlled
from models.networks.control_adapter import ControlAdapter
from models.networks.controlnet import LightControlNet
from models.networks.dit import DiT, patch_sides
from models.networks.presets import CONTROLS, PRESETS, RECIPES, SYSTEMS, preset_named
from models.networks.sizes import DEPTHS, DIT_SIZES, UNET_SIZES, DiTSize, UNetSize
from models.networks.unet import UNet
from models.recompute import with_checkpointing


def build_denoiser(
    plan: dict[str, Any],
    latent_shape: tuple[int, ...],
    latent_channels: int,
    patch: int | Sequence[int],
    checkpointing: bool = False,
) -> nn.Module:
    """The network of a plan row, with `forward(x, t)` on latents (N, C, *latent_shape).

    Args:
        plan: row with `family` and `size`: a size of the family, or the name of a published generator.
        latent_shape: of a latent: 2 or 3 axes, or (D, H, W, T), of which a U-Net convolves (H, W, T).
        latent_channels: C.
        patch: side of a transformer's token, or its sides; a published generator has its own.
        checkpointing: keep no activations inside blocks for the backward pass but compute them anew.

    Raises:
        ValueError: if the network cannot take latents of this shape.
    """
    family, name = plan["family"], plan["size"]
    if name in PRESETS:
        network = build_preset(name, latent_shape, latent_channels)
    elif family == "dit":
        network = DiT(latent_shape, latent_channels, DIT_SIZES[name], patch)
    else:
        network = build_unet(UNET_SIZES[name], latent_shape, latent_channels, DEPTHS[family])
    return with_checkpointing(network) if checkpointing else network


def build_unet(size: UNetSize, latent_shape: tuple[int, ...], latent_channels: int, depth: str | None) -> nn.Module:
    """A U-Net over 2 or 3 axes, or over the (H, W, T) of (D, H, W, T) with D as `depth` says; see `DepthFolded`."""
    if len(latent_shape) < 4:
        return UNet(len(latent_shape), latent_channels, size)
    inputs = latent_channels * latent_shape[0] if depth == "channels" else latent_channels
    return DepthFolded(UNet(3, inputs, size), depth or "samples")


def multiples(plan: dict[str, Any], axes: int, patch: int | Sequence[int]) -> tuple[int, ...]:
    """What the sides of a latent must be multiples of, for the network of a plan row; arguments as `build_denoiser`'s.

    Raises:
        ValueError: if the patch has another number of sides than the latent has axes.
    """
    preset = PRESETS.get(plan["size"])
    if plan["family"] == "dit":
        return patch_sides(preset.patch or 1 if preset else patch, axes)
    size = preset.size if preset else UNET_SIZES[plan["size"]]
    assert isinstance(size, UNetSize)  # of any family but the transformers'
    halved = (2 ** (len(size.channels) - 1),) * min(axes, 3)
    return halved if axes < 4 else (1, *halved)


def build_preset(
    name: str,
    latent_shape: tuple[int, ...] | None = None,
    latent_channels: int | None = None,
    checkpointing: bool = False,
) -> nn.Module:
    """The denoiser of a published generator, with `forward(x, t)` on latents (N, C, *latent_shape).

    Args:
        name: of `PRESETS`.
        latent_shape: shape of a latent; None: as published.
        latent_channels: C; None: as published.
        checkpointing: of a transformer, see `DiT`.

    Raises:
        ValueError: if there is no such preset, or it cannot take latents of this shape.
    """
    preset = preset_named(name)
    system, size = SYSTEMS[preset.system], preset.size
    shape = system.latent if latent_shape is None else tuple(latent_shape)
    if len(shape) != len(system.latent):
        raise ValueError(f"preset: {name} takes latents of {len(system.latent)} axes, and {shape} has {len(shape)}")
    channels = latent_channels or system.latent_channels
    if isinstance(size, DiTSize):
        return DiT(shape, channels, size, preset.patch or 1, RECIPES[preset.system].dropout, checkpointing)
    return build_unet(size, shape, channels, preset.depth)


def build_control(name: str, base: nn.Module, labels: int, image_shape: tuple[int, ...]) -> Controlled:
    """The branch that makes a published generator follow masks, beside its trained denoiser.

    Args:
        name: of `PRESETS`.
        base: from `build_preset`, trained.
        labels: of the masks.
        image_shape: of the masks and images.

    Raises:
        ValueError: if the preset has no control, or the image does not go with the base.
    """
    preset = preset_named(name)
    recipe = CONTROLS.get(preset.system)
    if recipe is None:
        raise ValueError(f"preset: {name} follows no masks; those of {' and '.join(CONTROLS)} do")
    if isinstance(base, DiT) and recipe.ratio is None:
        return ControlAdapter(base, labels, image_shape, recipe.channels)
    if isinstance(base, UNet) and isinstance(preset.size, UNetSize) and recipe.ratio is not None:
        return LightControlNet(
            base, preset.size, labels, image_shape, recipe.ratio, recipe.channels, recipe.initial_stride
        )
    raise ValueError(f"preset: the trained network is no {name}")


class DepthFolded(nn.Module):
    """A U-Net over (H, W, T) for latents over (D, H, W, T), as in the baselines of CardioDiT.

    Args:
        unet: over three axes.
        depth: `samples`: every slice is on its own and knows of no other; `channels`: all slices are channels of one
            image, and the U-Net has D times as many.
    """

    def __init__(self, unet: nn.Module, depth: str) -> None:
        super().__init__()
        self.unet, self.depth = unet, depth

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # (N, C, D, H, W, T), (N,) -> (N, C, D, H, W, T)
        """Predict for latents `x` at noise levels `t`, counted in timesteps."""
        n, c, d = x.shape[:3]
        if self.depth == "channels":
            merged: Tensor = self.unet(x.flatten(1, 2), t)  # (N, C * D, H, W, T)
            return merged.unflatten(1, (c, d))
        slices: Tensor = self.unet(x.transpose(1, 2).flatten(0, 1), t.repeat_interleave(d))  # (N * D, C, H, W, T)
        return slices.unflatten(0, (n, d)).transpose(1, 2)


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers in a network."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
