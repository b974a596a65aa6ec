"""Layers on a part of a volume: which rows of its input a layer needs for some rows of its output, and how it runs.

A row is one place along the axis that a volume is cut along. `models/tracing.py` finds these layers in a network,
`models/streaming.py` puts them together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rows = tuple[int, int]  # first, and one past the last

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONVOLVE_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Layer:
    """A layer of one or more inputs that have the same rows; here one that works voxel by voxel.

    Args:
        function: of slabs (N, C, *slab) of the inputs, in order.
    """

    convolves = False  # backends lay input and output of a convolution out anew, which takes their memory once more
    enlarges = False  # whether its output has more voxels than its input

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def needs(self, rows: Rows) -> Rows:
        """Rows of the input for `rows` of the output; they may reach beyond the volume, where there are zeros."""
        return rows

    def run(self, slabs: list[Tensor], first: int, size: int, rows: Rows) -> Tensor:
        """`rows` of the output.

        Args:
            slabs: of each input, what there is of `needs(rows)` in the volume.
            first: row at which the slabs begin.
            size: rows of the whole input.
            rows: of the output.
        """
        return self.function(*slabs)


class Convolution(Layer):
    """A convolution with zero padding, of any stride and dilation.

    Output row o sees input rows o * stride - padding + dilation * k for each k of the kernel.
    """

    convolves = True

    def __init__(self, layer: Any, axis: int) -> None:
        self.layer, self.axis = layer, axis
        self.stride, self.padding = layer.stride[axis], layer.padding[axis]
        self.reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)

    def needs(self, rows: Rows) -> Rows:
        return rows[0] * self.stride - self.padding, (rows[1] - 1) * self.stride - self.padding + self.reach + 1

    def run(self, slabs: list[Tensor], first: int, size: int, rows: Rows) -> Tensor:
        x, layer = padded(slabs[0], self.axis, first, size, self.needs(rows)), self.layer  # (N, C, *slab)
        padding = [0 if axis == self.axis else amount for axis, amount in enumerate(layer.padding)]
        convolve = CONVOLVE[x.ndim - 2]
        return convolve(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


class TransposedConvolution(Layer):
    """A transposed convolution: input row i reaches output rows i * stride - padding + dilation * k."""

    convolves = True

    def __init__(self, layer: Any, axis: int) -> None:
        self.layer, self.axis = layer, axis
        self.stride, self.padding = layer.stride[axis], layer.padding[axis]
        self.reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        self.enlarges = max(layer.stride) > 1

    def needs(self, rows: Rows) -> Rows:
        # Where the kernel is shorter than the stride, some output rows see no input: the row before them stands in
        first = min(-((self.reach - rows[0] - self.padding) // self.stride), (rows[0] + self.padding) // self.stride)
        return first, (rows[1] - 1 + self.padding) // self.stride + 1

    def run(self, slabs: list[Tensor], first: int, size: int, rows: Rows) -> Tensor:
        x, layer = slabs[0], self.layer  # (N, C, *slab)
        begins = first * self.stride - self.padding  # output row where the product of the slab begins
        ends = begins + (x.shape[2 + self.axis] - 1) * self.stride + self.reach + 1
        padding, beyond = list(layer.padding), list(layer.output_padding)
        padding[self.axis], beyond[self.axis] = 0, max(0, rows[1] - ends)
        convolve = CONVOLVE_TRANSPOSED[x.ndim - 2]
        y = convolve(x, layer.weight, layer.bias, layer.stride, padding, beyond, layer.groups, layer.dilation)
        return y.narrow(2 + self.axis, rows[0] - begins, rows[1] - rows[0])


class NearestUpsampling(Layer):
    """Every voxel repeated `factors` times along each axis."""

    def __init__(self, factors: Sequence[int], axis: int) -> None:
        self.factors, self.axis = tuple(factors), axis
        self.enlarges = max(factors) > 1

    def needs(self, rows: Rows) -> Rows:
        factor = self.factors[self.axis]
        return rows[0] // factor, (rows[1] - 1) // factor + 1

    def run(self, slabs: list[Tensor], first: int, size: int, rows: Rows) -> Tensor:
        y = F.interpolate(slabs[0], scale_factor=[float(factor) for factor in self.factors])  # (N, C, *slab)
        return y.narrow(2 + self.axis, rows[0] - first * self.factors[self.axis], rows[1] - rows[0])


class ZeroPadding(Layer):
    """Zeros around a volume, `amounts` as `F.pad` takes them: last axis first, before and after."""

    def __init__(self, amounts: Sequence[int], axis: int, dims: int) -> None:
        self.amounts, self.axis = [*amounts, *(0,) * (2 * dims - len(amounts))], axis
        self.before = self.amounts[2 * (dims - 1 - axis)]

    def needs(self, rows: Rows) -> Rows:
        return rows[0] - self.before, rows[1] - self.before

    def run(self, slabs: list[Tensor], first: int, size: int, rows: Rows) -> Tensor:
        x = padded(slabs[0], self.axis, first, size, self.needs(rows))  # (N, C, *slab)
        along = 2 * (x.ndim - 3 - self.axis)
        return F.pad(x, [0 if place in (along, along + 1) else amount for place, amount in enumerate(self.amounts)])


class Normalisation(Layer):
    """Group normalisation by statistics of the whole volume, which `moments` has when it has seen every row."""

    def __init__(self, layer: nn.GroupNorm, axis: int) -> None:
        self.layer, self.moments = layer, Moments(layer.num_groups, axis)

    def run(self, slabs: list[Tensor], first: int, size: int, rows: Rows) -> Tensor:
        x, layer = slabs[0], self.layer  # (N, C, *slab)
        each = layer.num_channels // layer.num_groups
        mean, variance = (
            part.to(x.device).repeat_interleave(each, dim=1) for part in self.moments.mean_and_variance()
        )  # (N, C)
        scale = (variance + layer.eps).rsqrt()  # (N, C)
        shift = -mean * scale
        if layer.affine:
            scale, shift = scale * layer.weight.double(), shift * layer.weight.double() + layer.bias.double()
        shape = (*scale.shape, *(1,) * (x.ndim - 2))
        return torch.addcmul(shift.float().view(shape), x, scale.float().view(shape)).to(x.dtype)


class Moments:
    """Count, mean and sum of squared deviations of each group, in float64, added to row by row.

    Merged by Chan et al. 1983, "Algorithms for computing the sample variance", equations 1.5: nothing cancels.
    """

    def __init__(self, groups: int, axis: int) -> None:
        self.groups, self.axis = groups, axis
        self.reset()

    def reset(self) -> None:
        """Forget the last volume."""
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, slab: Tensor) -> None:  # (N, C, *slab)
        """Count in some rows. Row by row, since a float64 copy of a slab would double the working memory."""
        for row in slab.unbind(2 + self.axis):  # (N, C, *rest)
            values = row.reshape(len(row), self.groups, -1).double()  # (N, groups, values of a row)
            n = values.shape[2]
            mean = values.mean(2)  # (N, groups)
            squares = (values - mean[..., None]).square_().sum(2)  # (N, groups)
            delta, total = mean - self.mean.to(mean), self.count + n
            self.squares = self.squares.to(mean) + squares + delta**2 * (self.count * n / total)
            self.mean = self.mean.to(mean) + delta * (n / total)
            self.count = total

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:  # (N, groups) each
        """Of all rows seen; the variance is the biased one, as in group normalisation."""
        return self.mean, self.squares / self.count


def clipped(rows: Rows, size: int) -> Rows:
    """Those of the rows that lie in a volume of `size` rows, or the row nearest to them where none does."""
    first = min(max(rows[0], 0), size - 1)
    return first, max(min(rows[1], size), first + 1)


def padded(x: Tensor, axis: int, first: int, size: int, wanted: Rows) -> Tensor:
    """The `wanted` rows of a slab that begins at row `first`, zeros for those outside a volume of `size` rows."""
    before, after = max(0, min(0, wanted[1]) - wanted[0]), max(0, wanted[1] - max(size, wanted[0]))
    inside = x.narrow(2 + axis, min(max(wanted[0], 0), size) - first, wanted[1] - wanted[0] - before - after)
    if not before and not after:
        return inside
    return F.pad(inside, [*(0,) * (2 * (x.ndim - 3 - axis)), before, after])
