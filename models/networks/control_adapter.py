"""VolDiT's timestep-gated control adapter (arXiv 2603.25181): masks become tokens that steer a frozen transformer."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from models.networks.control import Controlled
from models.networks.dit import Control, DiT, run, zero_linear

INITIAL_SCALE = 0.1  # of the control in every block


class ControlAdapter(Controlled):
    """Adds gate(t) * scale(block) * control(mask) to what each block attends to, after its modulation.

    gate(t) = sigmoid(W e(t) + b) is one number for a sample, from the base's own embedding e of the noise level; W and
    b start at zero, so that it starts at a half. The projection that makes the control starts at zero as well: a new
    adapter changes nothing. Features are normalised before that projection, and nothing is normalised after it, or the
    norm would cancel gate and scale, whatever they are.

    Args:
        base: a trained transformer of 2 or 3 axes, which stays as it is; its `checkpointing` holds here too.
        labels: of the masks.
        image_shape: of the masks; a whole multiple of the transformer's grid of tokens.
        channels: of the mask's encoder, each level half the size of the one before; no more levels are taken than
            lead to the size of a token.

    Raises:
        ValueError: if the transformer has other than 2 or 3 axes, or the image is no multiple of its grid.
    """

    base: DiT

    def __init__(
        self, base: DiT, labels: int, image_shape: tuple[int, ...], channels: Sequence[int] = (8, 16, 32, 64, 128)
    ) -> None:
        super().__init__(base, labels, image_shape)
        self.grid, dims = base.grid, len(base.grid)
        if dims not in (2, 3) or len(image_shape) != dims:
            raise ValueError(f"control: masks of {len(image_shape)} axes cannot steer a transformer of {dims}; 2 or 3")
        if any(side % cells for side, cells in zip(image_shape, base.grid, strict=True)):
            raise ValueError(f"control: an image of {tuple(image_shape)} is no multiple of the tokens, {base.grid}")
        stride = min(side // cells for side, cells in zip(image_shape, base.grid, strict=True))
        channels = channels[: 1 + int(math.log2(stride))]
        self.levels = nn.ModuleList([convolution(dims, labels, channels[0])])
        for fine, coarse in pairwise(channels):
            self.levels.append(nn.Sequential(convolution(dims, fine, fine), convolution(dims, fine, coarse, stride=2)))
        self.project: Any = Conv["conv", dims](channels[-1], base.width, 3, padding=1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.gate = zero_linear(base.width, 1)
        self.scales = nn.Parameter(torch.full((base.depth,), INITIAL_SCALE))

    def encode(self, mask: Tensor) -> Tensor:  # (N, labels, *image) -> (N, T, D)
        """Control tokens of masks; errors as in `Controlled.encode`."""
        self.check(mask)
        features = mask.to(self.scales.dtype)
        for level in self.levels:
            features = run(level, self.base.checkpointing, features)  # (N, c, *image / 2 ** level)
        last = features.movedim(1, -1)  # (N, *coarse, c)
        features = F.layer_norm(last, last.shape[-1:]).movedim(-1, 1)  # (N, c, *coarse)
        control = self.project(features)  # (N, D, *coarse)
        if control.shape[2:] != self.grid:
            mode = "trilinear" if len(self.grid) == 3 else "bilinear"
            control = F.interpolate(control, size=self.grid, mode=mode, align_corners=False)  # (N, D, *grid)
        return control.flatten(2).transpose(1, 2)  # (N, T, D), in the order of `patchify`

    def predict(self, x: Tensor, t: Tensor, control: Tensor) -> Tensor:  # (N, C, *latent), (N,), (N, T, D)
        """Predict for latents at noise levels with control tokens from `encode`."""
        prediction: Tensor = self.base(x, t, Control(control, self.strength(t)))
        return prediction

    def strength(self, t: Tensor) -> Tensor:  # (N,) -> (N, depth)
        """Of the control in each block, at noise levels."""
        gate = torch.sigmoid(self.gate(self.base.embed_level(t)))  # (N, 1)
        return gate * self.scales


def convolution(dims: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution and its activation, with He's start: PyTorch's own leaves a tenth of the mask in the features."""
    layer: Any = Conv["conv", dims](inputs, outputs, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.SiLU())
