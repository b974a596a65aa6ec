"""Peak memory of training and of generation, predicted before anything runs.

A network is built and run without data (PyTorch's fake tensors), while every tensor that comes and goes is counted:
activations that the backward pass needs, temporaries, gradients. So attention counts as PyTorch carries it out, which
for the fused kernels is without a token-by-token matrix, and checkpointed blocks count as they are. Optimiser and
averaged weights are arithmetic.

Not seen are the buffers of convolution libraries. They lay input and output of a convolution out anew, so both are
counted once more while it runs (`workspace_gb`): on CPUs that is what was measured, on GPUs an allowance, since cuDNN
may take more where it finds it. `runtime_gb` is another allowance: interpreter, libraries and device context.
"""

import copy
import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.adversarial import Adversarial
from models.device import DTYPES
from models.losses import spectral_loss
from models.networks.quantiser import Quantiser
from models.streaming import Plan, Streamed

GB = 1e9
CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)

# With torch, MONAI and diffusers loaded and threads started, of Linux with PyTorch's CPU build; of a CUDA context, a
# rounded figure from experience, which nothing here has measured.
RUNTIME_GB = {"cpu": 0.6, "cuda": 0.6}

Build = Callable[[], nn.Module]
Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Memory:
    """Memory at the moment that takes most, in GB (1e9 bytes), by what takes it."""

    moment: str
    parameters_gb: float
    gradients_gb: float = 0.0
    optimizer_gb: float = 0.0  # AdamW's two moments
    averaged_gb: float = 0.0  # weights that the loop averages
    data_gb: float = 0.0  # latents to train on, volumes until they are written
    activations_gb: float = 0.0  # with inputs and temporaries
    kept_gb: float = 0.0  # between the stretches of a streamed network, where that is in this memory
    workspace_gb: float = 0.0  # of libraries, by allowance
    runtime_gb: float = 0.0  # by allowance

    @property
    def total_gb(self) -> float:
        """The peak."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """All but the moment, by name."""
        return {name: value for name, value in vars(self).items() if name.endswith("_gb")}


@dataclass(frozen=True)
class Machine:
    """Where it runs. In GPUs, what streaming keeps lies outside, in host memory or files."""

    device: str = "cpu"  # or cuda
    precision: str = "fp32"  # as in the config, but not auto
    keeps_in_memory: bool = True  # on a CPU: what streaming keeps lies in memory, not in files

    def autocast(self) -> torch.autocast:
        """Mixed precision, of the CPU: fake tensors have no GPU."""
        dtype = DTYPES[self.precision]
        enabled = dtype != torch.float32
        return torch.autocast("cpu", dtype=dtype if enabled else torch.bfloat16, enabled=enabled)


class Tracker(TorchDispatchMode):
    """Counts bytes of all tensors while they live, and remembers the peak.

    Args:
        known: tensors that exist already and do not count, such as weights.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive_bytes = self.gradient_bytes = 0
        self.peak_bytes = self.peak_gradient_bytes = self.peak_copied_bytes = 0
        self.storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in known:
            self._register(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, count what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._register(leaf, leaf.untyped_storage().nbytes())
        copied = 0
        if func in CONVOLUTIONS:
            copied = sum(
                leaf.numel() * leaf.itemsize for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)
            )
        if self.alive_bytes + copied > self.peak_bytes:
            self.peak_bytes, self.peak_copied_bytes = self.alive_bytes + copied, copied
            self.peak_gradient_bytes = self.gradient_bytes
        return result

    def count_gradient(self, parameter: Tensor) -> None:
        """Hook of a parameter: its gradient is there, and stays until the optimiser has used it."""
        self.gradient_bytes += size_of(parameter)

    def _register(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.storages:
            return
        self.alive_bytes += size

        def forget(_: Any) -> None:
            self.alive_bytes -= size
            self.storages.pop(key, None)

        self.storages[key] = weakref.ref(storage, forget)


def training_memory(build: Build, loss: Loss, machine: Machine, data_gb: float = 0.0, averaged: bool = True) -> Memory:
    """Peak of one step of `models.loop.train` once the optimiser has its moments.

    Args:
        build: makes the network.
        loss: the loss of a batch, such as `denoising_loss(shape)`.
        machine: device and precision.
        data_gb: of the training items, if they are on the device.
        averaged: whether the loop holds averaged weights; `train` always does.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = build().train()
        for module in network.modules():
            if isinstance(module, Quantiser):
                module.eval()  # its learning looks at values, which fake tensors have not, and takes next to nothing
        held = [*network.parameters(), *network.buffers()]
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        tracker = Tracker(held)
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(tracker.count_gradient)
        with tracker:
            with machine.autocast():
                value = loss(network)
            value.backward()
    trained_gb = sum(map(size_of, trained)) / GB
    always: dict[str, float] = {
        "parameters_gb": sum(map(size_of, held)) / GB,
        "optimizer_gb": 2 * trained_gb,
        "averaged_gb": averaged * sum(map(size_of, held)) / GB,
        "data_gb": data_gb,
        "runtime_gb": RUNTIME_GB[machine.device],
    }
    passes = Memory("forward and backward pass", **always, **peak_of(tracker))
    # AdamW computes the root of its second moments for all weights at once on GPUs, weight by weight on CPUs
    roots_gb = trained_gb if machine.device == "cuda" else 2 * max(map(size_of, trained)) / GB
    update = Memory("optimiser step", **always, gradients_gb=trained_gb, workspace_gb=roots_gb)
    return max(passes, update, key=lambda memory: memory.total_gb)


def generation_memory(
    denoiser: Build,
    latents: tuple[int, ...],
    decoder: Build,
    volume: tuple[int, ...],
    machine: Machine,
    working_gb: float | None = None,
    data_gb: float = 0.0,
) -> Memory:
    """Peak of generating a batch: denoised together, then decoded one by one in float32, as `generate_samples` does.

    Args:
        denoiser: makes the network of `forward(x, t)`; it stays in memory while latents are decoded.
        latents: (N, C, *latent) of the batch.
        decoder: makes what turns one latent into a volume (`models.streaming.decoder_of`).
        volume: (1, C, *latent) of what is decoded at once.
        machine: device and precision.
        working_gb: of slabs, where decoding is streamed; None: whole.
        data_gb: volumes that are held until they are written.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        networks = {"denoiser": denoiser().eval(), "decoder": decoder().eval()}
        held = [tensor for network in networks.values() for tensor in (*network.parameters(), *network.buffers())]
        always: dict[str, float] = {
            "parameters_gb": sum(map(size_of, held)) / GB,
            "data_gb": data_gb,
            "runtime_gb": RUNTIME_GB[machine.device],
        }
        tracker = Tracker(held)
        with tracker, machine.autocast():
            x = torch.randn(latents)
            networks["denoiser"](x, torch.zeros(latents[0]))
        of_sampler = 3 * size_of(x) / GB  # earlier predictions of multistep samplers, and the next latents
        peak = peak_of(tracker)
        peak["activations_gb"] += of_sampler
        denoising = Memory("denoising", **always, **peak)
        if working_gb is None:
            tracker = Tracker(held)
            with tracker:
                networks["decoder"](torch.randn(volume))
            decoding = Memory("decoding", **always, **peak_of(tracker))
    if working_gb is not None:
        decoding = streamed_memory(decoder, volume, machine, working_gb, always)
    return max(denoising, decoding, key=lambda memory: memory.total_gb)


def inference_memory(
    build: Build, shape: tuple[int, ...], machine: Machine, method: str, moment: str, data_gb: float = 0.0
) -> Memory:
    """Peak of one call without gradients, in float32.

    Args:
        build: makes the network.
        shape: of its input.
        machine: device.
        method: what is called.
        moment: what it is called for.
        data_gb: what is held beside.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = build().eval()
        held = [*network.parameters(), *network.buffers()]
        tracker = Tracker(held)
        with tracker:
            getattr(network, method)(torch.randn(shape))
    parameters_gb, runtime_gb = sum(map(size_of, held)) / GB, RUNTIME_GB[machine.device]
    return Memory(moment, parameters_gb, data_gb=data_gb, runtime_gb=runtime_gb, **peak_of(tracker))


def streamed_memory(
    build: Build, volume: tuple[int, ...], machine: Machine, working_gb: float, always: dict[str, float]
) -> Memory:
    """Peak of running a network slab by slab.

    Args:
        build: makes the network.
        volume: (N, C, *volume) of the input.
        machine: device; and whether what is kept between stretches is in memory.
        working_gb: of slabs.
        always: other parts by name.

    Raises:
        ValueError: if the network cannot be streamed, or not even slabs of one row fit.
    """
    plan = streaming_plan(build, volume, working_gb)
    on_cpu = machine.device == "cpu"
    output_gb = plan.output_gb if on_cpu else 0.0
    kept_gb = plan.kept_gb if on_cpu and machine.keeps_in_memory else 0.0
    return Memory("decoding in slabs", **always, activations_gb=plan.working_gb + output_gb, kept_gb=kept_gb)


def streaming_plan(build: Build, volume: tuple[int, ...], working_gb: float) -> Plan:
    """What `Streamed` would do for an input of this shape, found without weights."""
    return Streamed(without_weights(build), working_gb=working_gb).plan(volume)


def least_slab_gb(build: Build, volume: tuple[int, ...]) -> float:
    """The least working memory in which a network can be streamed, or infinity where it cannot."""
    try:
        return Streamed(without_weights(build)).least_gb(volume)
    except ValueError:
        return math.inf


def without_weights(build: Build) -> nn.Module:
    """A network of which only shapes are there."""
    with torch.device("meta"):
        return build().eval()


def like(network: nn.Module) -> Build:
    """Builds copies of a network that have its shapes but not its numbers, on the CPU whatever device it is on."""

    def build() -> nn.Module:
        blank: dict[int, Any] = {
            id(parameter): nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
            for parameter in network.parameters()
        }
        attributes = [value for module in network.modules() for value in vars(module).values()]
        others = [*network.buffers(), *(value for value in attributes if isinstance(value, Tensor))]
        blank |= {id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in others}
        return copy.deepcopy(network, blank)  # which takes what is in the memo for copied

    return build


def denoising_loss(shape: tuple[int, ...]) -> Loss:
    """Of a batch of latents (N, C, *latent), as `models.train` computes it."""

    def loss(denoiser: nn.Module) -> Tensor:
        x, noise, noisy, target = (torch.randn(shape) for _ in range(4))  # (N, C, *latent) each, all alive
        value = F.smooth_l1_loss(denoiser(noisy, torch.zeros(shape[0])).float(), target)
        del x, noise
        return value

    return loss


def reconstruction_loss(shape: tuple[int, ...]) -> Loss:
    """Of a batch of images (N, 1, *crop): mean absolute error and what else the network is trained by.

    For one with a discriminator that is the losses of `models.adversarial` but the perceptual one, which looks at a few
    slices; else the mean of what the autoencoder returns beside the reconstruction.
    """

    def loss(network: nn.Module) -> Tensor:
        x = torch.randn(shape)  # (N, 1, *crop)
        if not isinstance(network, Adversarial):
            reconstruction, *costs = (part.float() for part in network(x))
            return sum((cost.mean() for cost in costs), F.l1_loss(reconstruction, x))
        reconstruction, commitment = network.autoencoder(x)
        reconstruction = reconstruction.float()  # (N, 1, *crop)
        value = F.l1_loss(reconstruction, x) + commitment
        if network.objective.spectral_weight:
            value = value + spectral_loss(reconstruction, x)
        if network.discriminator is None:
            return value
        return value + sum(network.contest(network.discriminator, x, reconstruction))

    return loss


def peak_of(tracker: Tracker) -> dict[str, float]:
    """Parts of the peak, in GB."""
    transient = tracker.peak_bytes - tracker.peak_copied_bytes - tracker.peak_gradient_bytes
    return {
        "gradients_gb": tracker.peak_gradient_bytes / GB,
        "activations_gb": transient / GB,
        "workspace_gb": tracker.peak_copied_bytes / GB,
    }


def size_of(tensor: Tensor) -> int:
    """Bytes of its elements."""
    return tensor.numel() * tensor.itemsize
