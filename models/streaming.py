"""Autoencoders slab by slab along one axis, for volumes whose activations do not fit a memory.

What comes out equals the whole-volume output to float rounding: nothing is blended, since every slab has all the rows
that it depends on. How many those are follows from the layers, which are found by tracing the network.

Group normalisation needs statistics of the whole volume before its first voxel can be normalised. So a network is
carried out stretch by stretch: up to the input of each normalisation, residual unit and upsampling, that one activation
is computed slab by slab, kept outside the working memory (in a file or in host memory), and counted into the statistics
on its way. The next stretch reads it back with a halo. Against the other exact way, computing everything anew from the
latent up to each normalisation in turn, this costs one write and about two reads per stretch, where that one multiplies
the convolutions (3.4 times for the last level of the default autoencoder, whose four stretches would each begin before
it). A stretch has one or two convolutions, so halos stay at one or two rows, also in networks without normalisation.
Working memory is bounded by the slab alone, what is kept outside by the two or three largest activations.
"""

import math
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, fx, nn

from models.keeping import Kept, KeptInFile, KeptInMemory
from models.slabs import Layer, Normalisation, Rows, clipped
from models.tracing import shapes_of, trace

GB = 1e9
Shapes = dict[fx.Node, torch.Size]


@dataclass(frozen=True)
class Step:
    """One activation on the way to the end of a stretch: computed by a layer, or read from what is kept."""

    node: fx.Node
    layer: Layer | None  # None: read
    finished: tuple[fx.Node, ...]  # activations that no later step reads


@dataclass(frozen=True)
class Pass:
    """How a stretch goes over a volume, and the memory it takes."""

    target: fx.Node  # where the stretch ends
    size: int  # rows of the whole activation there
    rows: int  # of a slab of it
    working_gb: float  # slabs alive at once, with the copies that convolutions make
    kept_gb: float  # of activations outside the working memory meanwhile


@dataclass(frozen=True)
class Plan:
    """How a volume is streamed. Weights and input are in none of the figures."""

    passes: list[Pass]
    shapes: Shapes
    output_gb: float

    @property
    def working_gb(self) -> float:
        """Most memory of slabs being worked on, on the device of the weights."""
        return max(each.working_gb for each in self.passes)

    @property
    def kept_gb(self) -> float:
        """Most that is kept between stretches, in the folder or in host memory."""
        return max(each.kept_gb for each in self.passes)


class Streamed:
    """A network from volumes to volumes, run slab by slab.

    Args:
        network: in evaluation mode, made of convolutions, group normalisations, nearest upsamplings, zero paddings, and
            whatever works voxel by voxel. `decoder_of` and `encoder_of` cut it out of an autoencoder.
        axis: along which slabs are cut, 0 for the first spatial one.
        slab_rows: height of a slab of the output; slabs of smaller activations are lower in proportion.
        working_gb: where `slab_rows` is None, memory of the slabs being worked on: every stretch takes the highest
            slabs that fit. Weights, input, output and what is kept between stretches are not in it.
        folder: for temporary files with what is kept between stretches; None keeps it in host memory.
        kept_as: precision of what is kept, if not that of the network: bfloat16 halves it, and is not exact.

    Raises:
        ValueError: naming the first layer that cannot be run slab by slab, such as attention.
    """

    def __init__(
        self,
        network: nn.Module,
        axis: int = 0,
        slab_rows: int | None = None,
        working_gb: float = 1.0,
        folder: str | Path | None = None,
        kept_as: torch.dtype | None = None,
    ) -> None:
        if slab_rows is not None and slab_rows < 1:
            raise ValueError(f"slab_rows: {slab_rows} is below 1")
        self.axis, self.slab_rows, self.working_gb, self.folder = axis, slab_rows, working_gb, folder
        self.graph, self.layers = trace(network, axis)
        self.weight = next(network.parameters())
        self.kept_as = kept_as or self.weight.dtype
        self.source, *computed, end = self.graph.graph.nodes
        self.output: fx.Node = end.all_input_nodes[0]
        ends = [node for node in computed if node is self.output or ends_a_stretch(node, self.layers)]
        self.stretches = {target: steps_to(target, {self.source, *ends}, self.layers) for target in ends}

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:  # (N, C, *volume) -> (N, C, *volume), on the CPU
        """The output for an input on any device; slabs are worked on where the weights are.

        Raises:
            ValueError: as `plan`, or if the folder has not enough room.
        """
        plan = self.plan(tuple(x.shape))
        self.check_folder(plan)
        for layer in self.layers.values():
            if isinstance(layer, Normalisation):
                layer.moments.reset()
        self._count(self.source, x)
        output = torch.empty(plan.shapes[self.output], dtype=self.weight.dtype)
        kept: dict[fx.Node, Kept] = {self.source: KeptInMemory(x, self.axis)}
        try:
            for place, each in enumerate(plan.passes):
                last = each.target is self.output
                kept[each.target] = KeptInMemory(output, self.axis) if last else self._keep(plan.shapes[each.target])
                for rows in slabs(each.size, each.rows):
                    slab = self._compute(each.target, rows, kept, plan.shapes)  # (N, C, *slab)
                    kept[each.target].write(rows, slab)
                    self._count(each.target, slab)
                for node in set(kept) - self._read_after(place):
                    kept.pop(node).close()
        finally:
            for open_still in kept.values():
                open_still.close()
        return output

    def plan(self, shape: tuple[int, ...]) -> Plan:
        """What will be done for an input (N, C, *volume), and the memory it takes.

        Raises:
            ValueError: if the input does not fit the network, or not even slabs of one row fit `working_gb`.
        """
        shapes = shapes_of(self.graph, shape)
        passes: list[Pass] = []
        for place, target in enumerate(self.stretches):
            rows = self._rows_of_slab(target, shapes)
            kept = (self._read_after(place - 1) & {each.target for each in passes}) | {target}
            kept_bytes = sum(shapes[node].numel() for node in kept - {self.output}) * self.kept_as.itemsize
            working_gb = self._working_bytes(target, rows, shapes) / GB
            passes.append(Pass(target, shapes[target][2 + self.axis], rows, working_gb, kept_bytes / GB))
        return Plan(passes, shapes, shapes[self.output].numel() * self.weight.dtype.itemsize / GB)

    def least_gb(self, shape: tuple[int, ...]) -> float:
        """The least `working_gb` for an input (N, C, *volume): that of slabs of one row."""
        return self._least_gb(shapes_of(self.graph, shape))

    def _least_gb(self, shapes: Shapes) -> float:
        return max(self._working_bytes(target, 1, shapes) for target in self.stretches) / GB

    def _rows_of_slab(self, target: fx.Node, shapes: Shapes) -> int:
        size = shapes[target][2 + self.axis]
        if self.slab_rows is not None:
            return min(size, math.ceil(self.slab_rows * size / shapes[self.output][2 + self.axis]))

        def working(rows: int) -> int:
            return self._working_bytes(target, rows, shapes)

        fits = bisect_right(range(1, size + 1), self.working_gb * GB, key=working)
        if not fits:
            least_gb = self._least_gb(shapes)
            raise ValueError(f"working_gb: {self.working_gb:g} is too little, slabs of one row take {least_gb:.3g} GB")
        return math.ceil(size / math.ceil(size / fits))  # no more slabs than it takes, of even height

    def _working_bytes(self, target: fx.Node, rows: int, shapes: Shapes) -> int:
        """Most memory while one slab, with a halo on both sides, is computed, kept and counted."""
        first = (shapes[target][2 + self.axis] - rows) // 2
        needed = self._needed(target, (first, first + rows), shapes)
        of_row = {
            node: shapes[node].numel() // shapes[node][2 + self.axis] * self.weight.dtype.itemsize for node in needed
        }
        size = {node: of_row[node] * (last - first) for node, (first, last) in needed.items()}
        alive = peak = 0
        for step in self.stretches[target]:
            alive += size[step.node]
            convolves = step.layer is not None and step.layer.convolves
            copies = size[step.node] + size[step.node.all_input_nodes[0]] if convolves else 0
            peak = max(peak, alive + copies)
            alive -= sum(size[node] for node in step.finished)
        return max(peak, 2 * size[target] + 5 * of_row[target])  # laid out to be kept, and one row of it in float64

    def _needed(self, target: fx.Node, rows: Rows, shapes: Shapes) -> dict[fx.Node, Rows]:
        """Rows of each activation of a stretch that `rows` of its end depend on: the halo comes from here."""
        needed = {target: rows}
        for step in reversed(self.stretches[target]):
            for source in step.node.all_input_nodes if step.layer else ():
                assert step.layer is not None
                wanted = clipped(step.layer.needs(needed[step.node]), shapes[source][2 + self.axis])
                others = needed.get(source, wanted)
                needed[source] = min(wanted[0], others[0]), max(wanted[1], others[1])
        return needed

    def _compute(self, target: fx.Node, rows: Rows, kept: dict[fx.Node, Kept], shapes: Shapes) -> Tensor:
        """Rows of the end of a stretch."""
        needed = self._needed(target, rows, shapes)
        alive: dict[fx.Node, Tensor] = {}
        for step in self.stretches[target]:
            node, layer = step.node, step.layer
            if layer is None:
                alive[node] = kept[node].read(needed[node], self.weight)  # (N, C, *slab)
                continue
            sources = node.all_input_nodes
            size = shapes[sources[0]][2 + self.axis]
            first, last = clipped(layer.needs(needed[node]), size)
            inputs = [alive[each].narrow(2 + self.axis, first - needed[each][0], last - first) for each in sources]
            alive[node] = layer.run(inputs, first, size, needed[node])  # (N, C, *slab)
            del inputs
            for finished in step.finished:
                del alive[finished]
        return alive[target]

    def _count(self, node: fx.Node, slab: Tensor) -> None:
        """Into the statistics of each normalisation that reads an activation."""
        for user in node.users:
            layer = self.layers.get(user)
            if isinstance(layer, Normalisation):
                layer.moments.add(slab)

    def _read_after(self, place: int) -> set[fx.Node]:
        """Activations that the stretches after this one read."""
        later = list(self.stretches.values())[place + 1 :]
        return {step.node for steps in later for step in steps if step.layer is None}

    def _keep(self, shape: torch.Size) -> Kept:
        if self.folder is None:
            return KeptInMemory(torch.empty(shape, dtype=self.kept_as), self.axis)
        return KeptInFile(tuple(shape), self.kept_as, self.axis, self.folder)

    def check_folder(self, plan: Plan) -> None:
        """Refuse a plan whose files would not fit the folder.

        Raises:
            ValueError: naming the folder.
        """
        if self.folder is None:
            return
        free_gb = shutil.disk_usage(self.folder).free / GB
        if free_gb < plan.kept_gb:
            raise ValueError(
                f"{self.folder}: {free_gb:.1f} GB are free, streaming this volume takes {plan.kept_gb:.1f} GB"
            )


def ends_a_stretch(node: fx.Node, layers: dict[fx.Node, Layer]) -> bool:
    """Whether an activation is kept: a normalisation has to know all of it, it is smallest here, or has two readers.

    The input of a residual unit has two. Kept, it ends the halo: those of several units in one stretch would add up.
    """
    users = [layers[user] for user in node.users if user in layers]
    return len(users) > 1 or any(isinstance(layer, Normalisation) or layer.enlarges for layer in users)


def steps_to(target: fx.Node, kept: set[fx.Node], layers: dict[fx.Node, Layer]) -> list[Step]:
    """The steps of a stretch, in the order of the network's own forward pass, kept activations read when first used."""
    inside, waiting = {target}, [target]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in inside and source not in kept:
                inside.add(source)
                waiting.append(source)
    order: list[fx.Node] = []
    for node in [node for node in layers if node in inside]:
        order += [source for source in node.all_input_nodes if source not in order]
        order.append(node)
    last_use = {source: node for node in order if node in inside for source in node.all_input_nodes}
    return [
        Step(
            node,
            layers[node] if node in inside else None,
            tuple(source for source, user in last_use.items() if user is node and node in inside),
        )
        for node in order
    ]


def slabs(size: int, rows: int) -> Iterator[Rows]:
    """All rows of a volume, some at a time."""
    for first in range(0, size, rows):
        yield first, min(first + rows, size)


def decoder_of(autoencoder: nn.Module) -> nn.Module:
    """From latents (N, C, *latent) to images (N, 1, *image): what `decode` of an autoencoder does.

    A quantising autoencoder decodes latents as they are: quantise them first, all of them fit any memory.
    """
    parts: Any = autoencoder
    if isinstance(autoencoder, AutoencoderKL):
        return nn.Sequential(parts.post_quant_conv, parts.decoder).train(autoencoder.training)
    decoder: nn.Module = parts.decoder
    return decoder


def encoder_of(autoencoder: nn.Module) -> nn.Module:
    """From images (N, 1, *image) to latents (N, C, *latent): the mean of a variational autoencoder, else `encode`."""
    parts: Any = autoencoder
    if isinstance(autoencoder, AutoencoderKL):
        return nn.Sequential(parts.encoder, parts.quant_conv_mu).train(autoencoder.training)
    encoder: nn.Module = parts.encoder
    return encoder
