"""Where to compute, and how precisely."""

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def best_device() -> torch.device:
    """The first GPU that this process may see, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str) -> str:
    """`bf16`, `fp16` or `fp32`; `auto` is bf16 where the hardware computes in it, since emulating it is slow."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()  # the only question of this kind that PyTorch answers for CPUs
    return "bf16" if native else "fp32"


def autocast(precision: str) -> AbstractContextManager[None]:
    """Mixed precision on the best device, for inference."""
    dtype = DTYPES[resolve_precision(precision)]
    return torch.autocast(best_device().type, dtype=dtype, enabled=dtype != torch.float32)


def training_precision(precision: str, depths: Iterable[int]) -> str:
    """As `resolve_precision`, but float32 where PyTorch 2.13.0 would train 3D networks on garbage.

    On CPUs its bfloat16 gradient of a 3x3x3 convolution's weights is undefined memory when the input is 2 voxels deep.

    Args:
        precision: of the config.
        depths: of the images at each level of a 3D network; empty for 2D.
    """
    resolved = resolve_precision(precision)
    if resolved == "bf16" and best_device().type == "cpu" and 2 in depths:
        logger.info("a level is two voxels deep: training in float32, bfloat16 gradients are undefined there")
        return "fp32"
    return resolved
