"""Activation checkpointing of MONAI's networks: inside a block nothing is kept for the backward pass.

Only what enters a block is kept, and its inside is computed once more when gradients are wanted: a third more work.
"""

from functools import partial
from typing import Any

import torch
from monai.networks.blocks import SpatialAttentionBlock
from monai.networks.nets.autoencoderkl import AEKLResBlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, SpatialTransformer
from torch import nn
from torch.utils.checkpoint import checkpoint

BLOCKS = (AEKLResBlock, DiffusionUNetResnetBlock, SpatialAttentionBlock, SpatialTransformer)


def recomputed(kind: Any) -> Any:
    """The same kind of block, checkpointed where gradients are wanted."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = partial(kind.forward, self)
        return (
            checkpoint(run, *args, use_reentrant=False, **kwargs) if torch.is_grad_enabled() else run(*args, **kwargs)
        )

    return type(f"Recomputed{kind.__name__}", (kind,), {"forward": forward})


RECOMPUTED: dict[type, Any] = {kind: recomputed(kind) for kind in BLOCKS}


def recompute_blocks(network: nn.Module) -> nn.Module:
    """Checkpoint each residual and attention block of a network, in place. Weights keep their names.

    Raises:
        ValueError: if the network has no such block.
    """
    blocks = [module for module in network.modules() if type(module) in RECOMPUTED]
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no blocks of MONAI's to checkpoint")
    for block in blocks:
        block.__class__ = RECOMPUTED[type(block)]  # another `forward` of the instance would be shared by its copies
    return network
