"""Work done by a stage: how often, how much, how many operations."""

import copy
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Work(TypedDict, total=False):
    """What a stage function returns: counts for its record."""

    images_seen: int  # of a training: by all its attempts, each image once; flops and voxels are of these
    images_resumed: int  # of images_seen, by earlier attempts
    resumed_from: list[str]  # `Trained.resumed_from`
    checkpoints: int  # written by the attempt that finished
    checkpoint_s: float  # in which it wrote them
    samples: int
    voxels: int
    flops: int
    parameters: int


# A backward pass forms two products for each one of the forward pass: with respect to inputs and to weights.
TRAINING_PASSES = 3


def count_flops(network: nn.Module, *shapes: tuple[int, ...], method: str = "forward") -> int:
    """Floating-point operations of one call without gradients, by running it without data.

    On the `meta` device attention falls back to plain matrix products, which PyTorch's counter knows; on a CPU it
    would count attention as nothing.

    Args:
        network: counted in a copy; the original is not touched.
        shapes: of the inputs.
        method: what is called.
    """
    counted: Any = copy.deepcopy(network).to("meta")
    inputs: list[Tensor] = [torch.empty(shape, device="meta") for shape in shapes]
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        getattr(counted, method)(*inputs)
    return int(counter.get_total_flops())
