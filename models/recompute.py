"""Activation checkpointing of MONAI's networks: inside a block nothing is kept for the backward pass.

Only what enters a block is kept, and its inside is computed once more when gradients are wanted: a third more work.
"""

from functools import partial
from typing import Any, cast

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
    blocks = [module for module in network.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no blocks of MONAI's to checkpoint")
    for block in blocks:
        # another `forward` of the instance would be shared by its copies
        block.__class__ = RECOMPUTED.get(type(block), type(block))
    return network


def with_checkpointing(network: Any) -> nn.Module:
    """A network that keeps no activations inside its blocks: by its own switch, or block by block of MONAI's."""
    if hasattr(network, "checkpointing"):
        network.checkpointing = True
        return cast(nn.Module, network)
    return recompute_blocks(network)
