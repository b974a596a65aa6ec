"""The diffusion transformer (Peebles and Xie 2023) for any number of spatial dimensions.

Patches are cut by reshaping alone, so the number of axes is an argument: 2 for slices, 3 for volumes (VolDiT).
"""

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.sizes import DiTSize


class DiT(nn.Module):
    """Latents to tokens, adaLN-Zero blocks, tokens to latents.

    Args:
        latent_shape: spatial shape of the latents, such as (16, 16) or (12, 12, 12); each side a multiple of `patch`.
        latent_channels: C.
        size: depth, width, heads.
        patch: side of a token in latent pixels.

    Raises:
        ValueError: if a side is not a multiple of the patch.
    """

    def __init__(self, latent_shape: tuple[int, ...], latent_channels: int, size: DiTSize, patch: int) -> None:
        super().__init__()
        if any(side % patch for side in latent_shape):
            raise ValueError(f"diffusion.patch: {patch} does not divide the latent, which is {latent_shape}")
        self.patch = patch
        self.grid = tuple(side // patch for side in latent_shape)
        token = latent_channels * patch ** len(latent_shape)
        self.embed = nn.Linear(token, size.width)
        self.register_buffer("positions", sincos_positions(self.grid, size.width), persistent=False)
        self.embed_time = nn.Sequential(nn.Linear(256, size.width), nn.SiLU(), nn.Linear(size.width, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.modulate = nn.Sequential(nn.SiLU(), zero_linear(size.width, 2 * size.width))
        self.project = zero_linear(size.width, token)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # (N, C, *latent), (N,) -> (N, C, *latent)
        """Predict for latents `x` at noise levels `t`, counted in timesteps."""
        tokens = self.embed(patchify(x, self.patch)) + self.positions  # (N, T, D), T = tokens of the grid
        condition = self.embed_time(sincos(t, 256).to(tokens.dtype))  # (N, D)
        for block in self.blocks:
            tokens = block(tokens, condition)  # (N, T, D)
        shift, scale = self.modulate(condition).chunk(2, dim=1)  # (N, D) each
        tokens = self.project(modulated(tokens, shift, scale))  # (N, T, C * patch ** dims)
        return unpatchify(tokens, self.patch, self.grid)


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the condition; gates start at zero (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulate = nn.Sequential(nn.SiLU(), zero_linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # (N, T, D), (N, D) -> (N, T, D)
        """One step of the residual stream."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(condition)[:, None].chunk(6, dim=2)  # (N, 1, D)
        x = x + gate1 * self.attend(modulated(x, shift1[:, 0], scale1[:, 0]))
        return x + gate2 * self.mlp(modulated(x, shift2[:, 0], scale2[:, 0]))

    def attend(self, x: Tensor) -> Tensor:  # (N, T, D) -> (N, T, D)
        """Self-attention among tokens: heads stand before tokens, or each token would attend to its own heads."""
        n, t, d = x.shape
        q, k, v = (
            self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        )  # (N, heads, T, D / heads)
        attended = F.scaled_dot_product_attention(q, k, v)  # (N, heads, T, D / heads)
        return self.out(attended.transpose(1, 2).reshape(n, t, d))


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as zero, so that every block starts as the identity (adaLN-Zero)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:  # (N, T, D), (N, D), (N, D) -> (N, T, D)
    """Layer norm whose affine part is given by the condition (adaLN)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut (N, C, *latent) into tokens (N, T, C * patch ** dims), the last axis fastest."""
    n, c, *sides = x.shape
    dims = len(sides)
    x = x.reshape(n, c, *(part for side in sides for part in (side // patch, patch)))  # (N, C, g1, p, g2, p, ...)
    grid_axes = [2 + 2 * axis for axis in range(dims)]
    patch_axes = [3 + 2 * axis for axis in range(dims)]
    return x.permute(0, *grid_axes, 1, *patch_axes).reshape(n, -1, c * patch**dims)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, ...]) -> Tensor:
    """Undo `patchify`: tokens (N, T, C * patch ** dims) on `grid` to (N, C, *latent)."""
    n, dims = tokens.shape[0], len(grid)
    x = tokens.reshape(n, *grid, -1, *(patch,) * dims)  # (N, g1, g2, ..., C, p, p, ...)
    pairs = (axis for pair in zip(range(1, 1 + dims), range(2 + dims, 2 + 2 * dims), strict=True) for axis in pair)
    return x.permute(0, 1 + dims, *pairs).reshape(n, -1, *(side * patch for side in grid))


def sincos(position: Tensor, width: int) -> Tensor:  # (N,) -> (N, width)
    """Sinusoidal embedding (Vaswani et al. 2017, section 3.5), cosines first as in DiT."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=position.device) / (width // 2))
    angles = position.to(torch.float32)[:, None] * frequencies  # (N, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos_positions(grid: tuple[int, ...], width: int) -> Tensor:  # (T, width)
    """Fixed positions of tokens: the width is shared evenly by the axes; what is left over stays zero."""
    share = width // len(grid) // 2 * 2
    coordinates = torch.tensor(list(product(*(range(side) for side in grid))), dtype=torch.float32)  # (T, dims)
    embedded = torch.cat([sincos(axis, share) for axis in coordinates.T], dim=1)  # (T, share * dims)
    return F.pad(embedded, (0, width - embedded.shape[1]))
