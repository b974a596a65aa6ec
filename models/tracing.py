"""The layers of a network, found by tracing it, as layers that can run on a part of a volume."""

import copy
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.slabs import (
    CONVOLUTIONS,
    TRANSPOSED,
    Convolution,
    Layer,
    NearestUpsampling,
    Normalisation,
    TransposedConvolution,
    ZeroPadding,
)

NEAREST = ("nearest", "nearest-exact")  # the same for whole factors
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
VOXELWISE = (nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Identity)
VOXELWISE_FUNCTIONS = {
    F.silu, F.relu, F.leaky_relu, F.elu, F.gelu, torch.relu, torch.tanh, torch.sigmoid, torch.clamp,
    torch.add, operator.add, operator.iadd, torch.mul, operator.mul,
}  # fmt: skip


def trace(network: nn.Module, axis: int) -> tuple[fx.GraphModule, dict[fx.Node, Layer]]:
    """A network as a graph, and the layer of each node but its one input and its output.

    The graph shares the network's weights.

    Raises:
        ValueError: naming the first layer that cannot be run on slabs cut along `axis`.
    """
    if network.training:
        raise ValueError(f"{type(network).__name__} is in training mode; call eval() before it is streamed")
    graph = fx.GraphModule(network, NamingTracer().trace(network))
    nodes = list(graph.graph.nodes)
    if sum(node.op == "placeholder" for node in nodes) != 1 or not isinstance(nodes[-1].args[0], fx.Node):
        raise ValueError(f"{type(network).__name__} cannot be streamed: it has several inputs or outputs")
    dims = spatial_dims(network)
    if not 0 <= axis < dims:
        raise ValueError(f"axis: {axis} is none of the {dims} axes of {type(network).__name__}")
    return graph, {
        node: layer_of(node, network, axis, dims) for node in nodes if node.op not in ("placeholder", "output")
    }


def spatial_dims(network: nn.Module) -> int:
    """Of the first convolution.

    Raises:
        ValueError: if there is none.
    """
    for module in network.modules():
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
            return len(module.kernel_size)
    raise ValueError(f"{type(network).__name__} cannot be streamed: it has no convolution")


class NamingTracer(fx.Tracer):
    """Traces through containers down to PyTorch's own layers; says which module could not be traced."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As the base class, which raises all sorts of errors where a forward pass looks at shapes or values."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except UnstreamableError:
            raise
        except Exception as error:
            raise UnstreamableError(self.path_of_module(m), type(m).__name__) from error


class UnstreamableError(ValueError):
    """A layer whose output rows do not depend on a few rows of its input alone, as far as we know."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(f"{path} ({kind}) cannot be run slab by slab; decode and encode such networks whole")


def layer_of(node: fx.Node, network: nn.Module, axis: int, dims: int) -> Layer:
    """What a node does, on slabs.

    Raises:
        ValueError: naming the layer, if it is of no kind that can be run on slabs.
    """
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    layer = module_layer(module, axis, dims) if module is not None else function_layer(node, axis, dims)
    if layer is None:
        owner = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", None))[0]
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        raise UnstreamableError(str(node.target) if module is not None else owner or "the network", name)
    if changes_input(node, module) and len(node.all_input_nodes[0].users) > 1:
        raise ValueError(f"{node.target} changes its input in place, which others read: it cannot be run slab by slab")
    return layer


def module_layer(module: nn.Module, axis: int, dims: int) -> Layer | None:
    """Of a layer of PyTorch; None for kinds that need the whole volume or that we do not know."""
    if isinstance(module, CONVOLUTIONS) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return Convolution(module, axis)
    if isinstance(module, TRANSPOSED):
        return TransposedConvolution(module, axis)
    if isinstance(module, nn.GroupNorm):
        return Normalisation(module, axis)
    if isinstance(module, nn.Upsample) and module.mode in NEAREST and module.scale_factor is not None:
        return upsampling(module.scale_factor, axis, dims)
    if isinstance(module, VOXELWISE):
        return Layer(module)
    return Layer(same) if isinstance(module, DROPOUTS) else None  # which does nothing in evaluation mode


def function_layer(node: fx.Node, axis: int, dims: int) -> Layer | None:
    """Of a function that a forward pass calls; None for functions that we do not know."""
    if node.op != "call_function":
        return None
    target: Any = node.target
    if target in VOXELWISE_FUNCTIONS:
        return Layer(lambda *slabs: call(node, slabs))
    if target is F.pad:
        given = arguments(node)
        zeros = given["mode"] == "constant" and not given["value"]
        spatial = len(given["pad"]) <= 2 * dims and min(given["pad"]) >= 0
        return ZeroPadding(given["pad"], axis, dims) if zeros and spatial else None
    if target is F.interpolate:
        given = arguments(node)
        nearest = given["mode"] in NEAREST and given["scale_factor"] is not None
        return upsampling(given["scale_factor"], axis, dims) if nearest else None
    return None


def arguments(node: fx.Node) -> dict[str, Any]:
    """What a node's function is called with, by name, defaults included."""
    target: Any = node.target
    bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def upsampling(factors: float | Sequence[float], axis: int, dims: int) -> Layer | None:
    """Nearest upsampling by whole factors, one for each axis; one factor for all of them is PyTorch's shorthand."""
    each = tuple(factors) if isinstance(factors, Sequence) else (factors,) * dims
    whole = all(float(factor).is_integer() and factor >= 1 for factor in each)
    return NearestUpsampling([int(factor) for factor in each], axis) if whole else None


def changes_input(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node writes over its first input."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    inplace = node.target is operator.iadd or node.kwargs.get("inplace", False)
    return bool(inplace) or (node.target in (F.relu, F.silu, F.leaky_relu, F.elu) and True in node.args[1:])


def call(node: fx.Node, slabs: tuple[Tensor, ...]) -> Tensor:
    """A node's function with slabs in place of what it was traced with."""
    given = dict(zip(node.all_input_nodes, slabs, strict=True))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
    function: Any = node.target
    result: Tensor = function(*args, **kwargs)
    return result


def same(x: Tensor) -> Tensor:
    return x


class ShapeRecorder(fx.Interpreter):
    """Runs a graph and writes down the shape of each activation, by name."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[str, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As the base class."""
        result = super().run_node(n)
        self.shapes[n.name] = result.shape
        return result


def shapes_of(graph: fx.GraphModule, shape: tuple[int, ...]) -> dict[fx.Node, torch.Size]:
    """Shape of each activation for an input, found by running the graph without data.

    Raises:
        ValueError: if the input does not fit.
    """
    without_data = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in graph.parameters()}
    recorder = ShapeRecorder(copy.deepcopy(graph, without_data))
    dtype = next(graph.parameters()).dtype
    try:
        recorder.run(torch.empty(shape, dtype=dtype, device="meta"))
    except RuntimeError as error:
        raise ValueError(f"an input of shape {shape} does not fit the network: {str(error).splitlines()[0]}") from error
    return {node: recorder.shapes[node.name] for node in graph.graph.nodes}
