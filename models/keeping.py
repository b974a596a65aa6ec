"""Activations outside the working memory: written and read back in parts, in host memory or in a temporary file."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from models.slabs import Rows


class Kept(Protocol):
    """Some rows of a tensor at a time."""

    def write(self, rows: Rows, slab: Tensor) -> None:  # (N, C, *slab)
        """Keep these rows."""

    def read(self, rows: Rows, like: Tensor) -> Tensor:  # (N, C, *slab)
        """A copy of these rows, on the device and in the precision of `like`."""

    def close(self) -> None:
        """Give up memory or file."""


class KeptInMemory:
    """A tensor, usually of the host while slabs are worked on by a GPU."""

    def __init__(self, tensor: Tensor, axis: int) -> None:
        self.tensor, self.axis = tensor, axis

    def write(self, rows: Rows, slab: Tensor) -> None:
        self.tensor.narrow(2 + self.axis, rows[0], rows[1] - rows[0]).copy_(slab)

    def read(self, rows: Rows, like: Tensor) -> Tensor:
        part = self.tensor.narrow(2 + self.axis, rows[0], rows[1] - rows[0])
        return torch.empty(part.shape, dtype=like.dtype, device=like.device).copy_(part)

    def close(self) -> None:
        del self.tensor


class KeptInFile:
    """A temporary file without a name, which is gone with the process, however that ends.

    It is read and written by plain calls: pages of a memory map would count as resident memory of the process.
    In the file, the axis that slabs are cut along comes right after the channels, so that the rows of a channel are one
    piece.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, axis: int, folder: str | Path) -> None:
        self.axis, self.dtype = axis, dtype
        self.shape = tuple(torch.empty(shape, device="meta").movedim(2 + axis, 2).shape)  # (N, C, rows, *rest)
        self.row_bytes = torch.Size(self.shape[3:]).numel() * dtype.itemsize
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (`close` does)

    def write(self, rows: Rows, slab: Tensor) -> None:
        self._pass(os.pwritev, rows, slab.to("cpu", self.dtype).movedim(2 + self.axis, 2).contiguous())

    def read(self, rows: Rows, like: Tensor) -> Tensor:
        slab = torch.empty((*self.shape[:2], rows[1] - rows[0], *self.shape[3:]), dtype=self.dtype)
        self._pass(os.preadv, rows, slab)
        return slab.movedim(2, 2 + self.axis).to(like.device, like.dtype)

    def close(self) -> None:
        self.file.close()

    def _pass(self, call: Callable[..., int], rows: Rows, slab: Tensor) -> None:  # (N, C, rows, *rest), contiguous
        """Read or write the piece of each channel, which may take several calls."""
        pieces = slab.flatten(0, 1).flatten(1).view(torch.uint8).numpy()  # (N * C, bytes)
        for channel, piece in enumerate(pieces):
            offset, left = (channel * self.shape[2] + rows[0]) * self.row_bytes, memoryview(piece)
            while left:
                done = call(self.file.fileno(), [left], offset)
                offset, left = offset + done, left[done:]
