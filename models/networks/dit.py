"""The diffusion transformer (Peebles and Xie 2023) for any number of axes.

Patches are cut by reshaping alone, so the number of axes is an argument: 2 for slices, 3 for volumes (VolDiT), 4 for
volumes over time (CardioDiT, whose axes are D, H, W, T). Every token attends to every token.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.networks.sizes import DiTSize

QUERIES = 256  # at once, where weights of attention are dropped on a CPU


class Control(NamedTuple):
    """What blocks add to the tokens that they attend to."""

    tokens: Tensor  # (N, T, D)
    strength: Tensor  # (N, depth), of each block; in a block (N, 1, 1), of this one


class DiT(nn.Module):
    """Latents to tokens, adaLN-Zero blocks, tokens to latents.

    Args:
        latent_shape: shape of the latents along each axis, such as (16, 16) or (12, 12, 12) or (6, 64, 64, 8); each
            side a multiple of that axis' patch.
        latent_channels: C.
        size: depth, width, heads.
        patch: sides of a token in latent pixels, one number for all axes or one each, such as (1, 4, 4, 2).
        dropout: share of attention weights, of their projection and of the MLP that training drops.
        checkpointing: keep only what enters a block, and compute the inside again for the backward pass: a third more
            operations, and memory for one block's activations in place of all.

    Raises:
        ValueError: if there is not one patch for each axis, or a side is not a multiple of its patch.
    """

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        latent_channels: int,
        size: DiTSize,
        patch: int | Sequence[int],
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        self.patch = patch_sides(patch, len(self.latent_shape))
        if any(side % part for side, part in zip(self.latent_shape, self.patch, strict=True)):
            raise ValueError(f"diffusion.patch: {patch} does not divide the latent, which is {self.latent_shape}")
        self.grid = tuple(side // part for side, part in zip(self.latent_shape, self.patch, strict=True))
        self.width, self.depth = size.width, size.depth
        self.checkpointing = checkpointing
        token = latent_channels * math.prod(self.patch)
        self.embed = nn.Linear(token, size.width)
        self.register_buffer("positions", sincos_positions(self.grid, size.width), persistent=False)
        self.embed_time = nn.Sequential(nn.Linear(256, size.width), nn.SiLU(), nn.Linear(size.width, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.heads, dropout) for _ in range(size.depth))
        self.modulate = nn.Sequential(nn.SiLU(), zero_linear(size.width, 2 * size.width))
        self.project = zero_linear(size.width, token)

    def forward(self, x: Tensor, t: Tensor, control: Control | None = None) -> Tensor:
        """Predict for latents at noise levels counted in timesteps.

        Args:
            x: (N, C, *latent).
            t: (N,).
            control: from a control adapter.

        Returns:
            (N, C, *latent).

        Raises:
            ValueError: if the latents have another shape than the model's.
        """
        if x.shape[2:] != self.latent_shape:
            raise ValueError(f"latent: has shape {tuple(x.shape[2:])}, and this transformer is for {self.latent_shape}")
        tokens = self.embed(patchify(x, self.patch)) + self.positions  # (N, T, D), T = tokens of the grid
        condition = self.embed_level(t)  # (N, D)
        for i, block in enumerate(self.blocks):
            of_block = control and Control(control.tokens, control.strength[:, i, None, None])
            tokens = run(block, self.checkpointing, tokens, condition, of_block)  # (N, T, D)
        shift, scale = self.modulate(condition).chunk(2, dim=1)  # (N, D) each
        tokens = self.project(modulated(tokens, shift, scale))  # (N, T, C * voxels of a patch)
        return unpatchify(tokens, self.patch, self.grid)

    def embed_level(self, t: Tensor) -> Tensor:  # (N,) -> (N, D)
        """The noise level as all blocks see it."""
        embedded: Tensor = self.embed_time(sincos(t, 256).to(self.embed.weight.dtype))
        return embedded


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the condition; gates start at zero (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.drop = nn.Dropout(dropout)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulate = nn.Sequential(nn.SiLU(), zero_linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, control: Control | None = None) -> Tensor:  # (N, T, D), (N, D)
        """One step of the residual stream. A control comes after the norm, which would undo its strength."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(condition)[:, None].chunk(6, dim=2)  # (N, 1, D)
        attended = modulated(x, shift1[:, 0], scale1[:, 0])  # (N, T, D)
        if control is not None:
            attended = attended + control.strength * control.tokens
        x = x + gate1 * self.attend(attended)
        return x + gate2 * self.feed(modulated(x, shift2[:, 0], scale2[:, 0]))

    def attend(self, x: Tensor) -> Tensor:  # (N, T, D) -> (N, T, D)
        """Self-attention among tokens: heads stand before tokens, or each token would attend to its own heads."""
        n, t, d = x.shape
        q, k, v = (
            self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        )  # (N, heads, T, D / heads)
        attended = attention(q, k, v, self.drop.p if self.training else 0.0)  # (N, heads, T, D / heads)
        projected: Tensor = self.drop(self.out(attended.transpose(1, 2).reshape(n, t, d)))
        return projected

    def feed(self, x: Tensor) -> Tensor:  # (N, T, D) -> (N, T, D)
        """The MLP."""
        widen, activate, narrow = self.mlp
        narrowed: Tensor = self.drop(narrow(self.drop(activate(widen(x)))))
        return narrowed


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:  # (N, heads, T, d) each
    """Attention of all tokens to all, without ever holding all T x T weights.

    PyTorch has kernels for that, but on CPUs none that drops weights: there, queries go in portions, and the backward
    pass computes the weights of each again.
    """
    if not dropout or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    attend = F.scaled_dot_product_attention
    parts = [checkpoint(attend, part, k, v, None, dropout, use_reentrant=False) for part in q.split(QUERIES, dim=2)]
    return torch.cat(parts, dim=2)


def run(module: nn.Module, checkpointing: bool, *arguments: Any) -> Tensor:
    """Call a module; with checkpointing, and where gradients are wanted, keep its arguments in place of its inside."""
    wanted = checkpointing and torch.is_grad_enabled()
    output: Tensor = checkpoint(module, *arguments, use_reentrant=False) if wanted else module(*arguments)
    return output


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as zero, so that every block starts as the identity (adaLN-Zero)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:  # (N, T, D), (N, D), (N, D) -> (N, T, D)
    """Layer norm whose affine part is given by the condition (adaLN)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def patch_sides(patch: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A patch as one side for each of `dims` axes.

    Raises:
        ValueError: if it has another number of sides, or one below 1.
    """
    sides = (patch,) * dims if isinstance(patch, int) else tuple(patch)
    if len(sides) != dims:
        raise ValueError(f"diffusion.patch: {list(sides)} has {len(sides)} sides, and the latent has {dims} axes")
    if any(side < 1 for side in sides):
        raise ValueError(f"diffusion.patch: {list(sides)} has a side below 1")
    return sides


def patchify(x: Tensor, patch: int | Sequence[int]) -> Tensor:
    """Cut (N, C, *latent) into tokens (N, T, C * voxels of a patch), the last axis fastest."""
    n, c, *sides = x.shape
    dims = len(sides)
    parts = patch_sides(patch, dims)
    cut = (piece for side, part in zip(sides, parts, strict=True) for piece in (side // part, part))
    x = x.reshape(n, c, *cut)  # (N, C, g1, p1, g2, p2, ...)
    grid_axes = [2 + 2 * axis for axis in range(dims)]
    patch_axes = [3 + 2 * axis for axis in range(dims)]
    return x.permute(0, *grid_axes, 1, *patch_axes).reshape(n, -1, c * math.prod(parts))


def unpatchify(tokens: Tensor, patch: int | Sequence[int], grid: tuple[int, ...]) -> Tensor:
    """Undo `patchify`: tokens (N, T, C * voxels of a patch) on `grid` to (N, C, *latent)."""
    n, dims = tokens.shape[0], len(grid)
    parts = patch_sides(patch, dims)
    x = tokens.reshape(n, *grid, -1, *parts)  # (N, g1, g2, ..., C, p1, p2, ...)
    pairs = (axis for pair in zip(range(1, 1 + dims), range(2 + dims, 2 + 2 * dims), strict=True) for axis in pair)
    latent = (side * part for side, part in zip(grid, parts, strict=True))
    return x.permute(0, 1 + dims, *pairs).reshape(n, -1, *latent)


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
