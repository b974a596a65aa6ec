"""MedLoRD's light ControlNet (arXiv 2503.13211; Zhang et al. 2023): a narrow copy of a U-Net's encoder reads a mask."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from monai.networks.nets.controlnet import ControlNet, ControlNetConditioningEmbedding
from torch import Tensor, nn

from models.networks.control import Controlled
from models.networks.sizes import UNetSize
from models.networks.unet import UNet


class LightControlNet(Controlled):
    """MONAI's ControlNet with a share of the U-Net's channels, added to the skips and the middle of a frozen U-Net.

    MONAI's own adds its features as they are, which needs the U-Net's channels; here the convolutions of size 1 that
    start at zero also widen them. A new branch therefore changes nothing.

    Args:
        base: a trained U-Net, which stays as it is.
        size: of that U-Net.
        labels: of the masks.
        image_shape: of the masks.
        ratio: channels of the branch over those of the U-Net.
        channels: of the mask's embedding; each level but the first halves the mask.
        initial_stride: of the embedding's first convolution; 2 keeps full-size features out of the memory.

    Raises:
        ValueError: if the image is no multiple of what the embedding makes smaller.
    """

    base: UNet

    def __init__(
        self,
        base: UNet,
        size: UNetSize,
        labels: int,
        image_shape: tuple[int, ...],
        ratio: float = 0.5,
        channels: Sequence[int] = (32, 64),
        initial_stride: int = 2,
    ) -> None:
        super().__init__(base, labels, image_shape)
        dims = len(image_shape)
        factor = initial_stride * 2 ** (len(channels) - 1)
        if any(side % factor for side in image_shape):
            raise ValueError(f"control: an image of {tuple(image_shape)} is no multiple of the embedding's {factor}")
        narrow = tuple(max(1, int(ratio * width)) for width in size.channels)
        branch: Any = ControlNet(
            spatial_dims=dims,
            in_channels=base.unet.in_channels,
            num_res_blocks=size.blocks,
            channels=narrow,
            attention_levels=size.attention,
            norm_num_groups=math.gcd(size.groups, *narrow),  # the U-Net's, where they fit
            num_head_channels=tuple(math.gcd(size.head_channels, width) for width in narrow),
            use_flash_attention=True,
        )
        branch.controlnet_cond_embedding = nn.Identity()  # done by `encode`, once for all steps
        widths = zip(skips(narrow, size.blocks), skips(size.channels, size.blocks), strict=True)
        branch.controlnet_down_blocks = nn.ModuleList(widening(dims, inputs, outputs) for inputs, outputs in widths)
        branch.controlnet_mid_block = widening(dims, narrow[-1], size.channels[-1])
        self.branch = branch
        self.embedding = ControlNetConditioningEmbedding(dims, labels, narrow[0], channels)
        self.embedding.conv_in = Convolution(
            dims, labels, channels[0], strides=initial_stride, kernel_size=3, padding=1, adn_ordering="A", act="SWISH"
        )

    def encode(self, mask: Tensor) -> Tensor:  # (N, labels, *image) -> (N, c, *latent)
        """Features of masks; errors as in `Controlled.encode`."""
        self.check(mask)
        features: Tensor = self.embedding(mask.to(self.embedding.conv_out.conv.weight.dtype))
        return features

    def predict(self, x: Tensor, t: Tensor, control: Tensor) -> Tensor:  # (N, C, *latent), (N,), (N, c, *latent)
        """Predict for latents at noise levels with features from `encode`.

        Raises:
            ValueError: if the embedding does not take masks to the size of these latents.
        """
        if control.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"control: the embedding takes masks to {tuple(control.shape[2:])}, and the latent is "
                f"{tuple(x.shape[2:])}; change its channels or initial stride"
            )
        steps = t.to(torch.float32)
        skipped, middle = self.branch(x, timesteps=steps, controlnet_cond=control)
        prediction: Tensor = self.base.unet(
            x, timesteps=steps, down_block_additional_residuals=skipped, mid_block_additional_residual=middle
        )
        return prediction


def skips(channels: Sequence[int], blocks: int) -> list[int]:
    """Channels of the features that a U-Net's encoder hands to its decoder, in the order in which it makes them."""
    halved = [[width] * (blocks + 1) for width in channels[:-1]]  # residual blocks, and what halves the level
    return [channels[0], *(width for level in halved for width in level), *[channels[-1]] * blocks]


def widening(dims: int, inputs: int, outputs: int) -> nn.Module:
    """A convolution of size 1 that starts as zero."""
    layer: nn.Module = Conv["conv", dims](inputs, outputs, 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
