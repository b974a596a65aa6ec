"""Work done by a stage: how often, how much, how many operations."""

import copy
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Work(TypedDict, total=False):
    """What a stage function returns: counts for its record."""

    images_seen: int
    samples: int
    voxels: int
    flops: int
    parameters: int


def count_flops(network: nn.Module, *shapes: tuple[int, ...], method: str = "forward", train: bool = False) -> int:
    """Floating-point operations of one call, by running it without data.

    On the `meta` device attention falls back to plain matrix products, which PyTorch's counter knows; on a CPU it
    would count attention as nothing.

    Args:
        network: counted in a copy; the original is not touched.
        shapes: of the inputs.
        method: what is called.
        train: count the backward pass too.
    """
    counted: Any = copy.deepcopy(network).to("meta").to(torch.float32)
    inputs: list[Tensor] = [torch.empty(shape, device="meta", requires_grad=train) for shape in shapes]
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(train):
        output = getattr(counted, method)(*inputs)
        if train:
            parts = output if isinstance(output, tuple) else (output,)
            torch.stack([part.sum() for part in parts]).sum().backward()
    return int(counter.get_total_flops())
