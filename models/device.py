"""Where to compute, and how precisely."""

from contextlib import AbstractContextManager

import torch

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
