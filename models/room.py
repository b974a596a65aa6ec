"""Whether a stage has the memory that it will take, asked before it begins, not found out hours later.

A bound that costs nothing clears most stages: every layer's output is counted as wide as the widest layer and as large
as the input, and all of them as alive at once. Only what that does not clear is predicted (`models.memory`). What is
there is read once, at the beginning; what other programs take later is not foreseen.
"""

import logging
import math
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from models.adversarial import Adversarial
from models.device import best_device, resolve_precision
from models.estimate_stages import (
    AutoencoderTraining,
    DiffusionTraining,
    Generation,
    Saving,
    Settings,
    Shape,
    Stage,
    fitting,
)
from models.memory import GB, RUNTIME_GB, Machine, least_slab_gb, like, size_of, without_weights
from models.networks.autoencoder import Autoencoder, SliceWise
from models.networks.quantiser import DISTANCES_AT_ONCE
from models.streaming import Streamed, decoder_of

logger = logging.getLogger(__name__)

SPARE = 0.1  # of the memory, that gaps between tensors take and predictions miss: what needs it is warned of
COPIES_IN_TRAINING = 7  # of weights: themselves, gradients, two moments, averages, and twice their roots

Keys = Callable[[Saving], str | None]  # the config's words for a saving; None: not to be proposed


@dataclass(frozen=True)
class Room:
    """Memory that a stage may take, with what it has taken already."""

    gb: float
    owner: str


def room_for_autoencoder(
    plan: dict[str, Any],
    settings: dict[str, Any],
    training: dict[str, Any],
    network: Adversarial,
    images: Shape,
    crop: Shape,
) -> None:
    """Refuse to train an autoencoder where that, or encoding the cohort with it, would not fit.

    As the others here: called when data and networks are loaded, before anything is computed.

    Args:
        plan: row with `autoencoder`, `spatial_dims`, `frames`.
        settings: the config's `autoencoder`.
        training: the config's `training`.
        network: what will be trained.
        images: (N, 1, *image) of the cohort, padded.
        crop: shape of what the network sees in training.

    Raises:
        ValueError: if it would not fit: what it takes, what is there, and settings that would fit.
    """
    dims, image = f"{plan['spatial_dims']}d", images[2:]
    slices = math.prod(image[: len(image) - len(crop)])  # of a stack over time
    batch = settings["batch_size"][dims]
    stage = AutoencoderTraining(
        network=like(network),
        image=image[-len(crop) :],
        slices=slices,
        crop=crop,
        batch=batch,
        whole=True,
        timed=bool(plan["frames"]),
    )
    machine = machine_of(training["precision"])
    data_gb = math.prod(images) * 4 / GB if machine.device == "cpu" else 0.0
    of_training = bound_of(network, batch * math.prod(crop), COPIES_IN_TRAINING)
    bound_gb = data_gb + max(of_training, bound_of(network.autoencoder, math.prod(image), copies=2))
    asked = Settings(machine, checkpointing=training["activation_checkpointing"], items=images[0])
    keys = partial(keys_of, section="autoencoder", dims=dims, timed=stage.timed)
    room = room_here(machine.device, data_gb + weights_of(network))
    check_room(f"training {plan['autoencoder']}", stage, asked, room, bound_gb, keys)


def room_for_diffusion(
    plan: dict[str, Any],
    settings: dict[str, Any],
    training: dict[str, Any],
    network: nn.Module,
    latents: Shape,
    section: str = "diffusion",
) -> None:
    """Refuse to train a denoiser that would not fit.

    Args:
        plan: row with `model`, `spatial_dims`, `devices`.
        settings: the config's `diffusion`, or another section with its batch size.
        training: the config's `training`.
        network: what will be trained.
        latents: (N, C, *latent), padded, all of which the host holds.
        section: of the settings.

    Raises:
        ValueError: as `room_for_autoencoder`.
    """
    dims, devices = f"{plan['spatial_dims']}d", plan["devices"]
    batch = settings["batch_size"][dims] // devices
    stage = DiffusionTraining(like(network), latents[1:], batch)
    machine = machine_of(training["precision"])
    on_cpu = machine.device == "cpu"
    asked = Settings(machine, checkpointing=training["activation_checkpointing"], items=latents[0] if on_cpu else 0)
    data_gb = math.prod(latents) * 4 / GB if on_cpu else 0.0
    bound_gb = data_gb + bound_of(network, batch * math.prod(latents[2:]), COPIES_IN_TRAINING)
    keys = partial(keys_of, section=section, dims=dims, processes=devices)
    room = room_here(machine.device, data_gb + weights_of(network), devices)
    check_room(f"training {plan['model']}", stage, asked, room, bound_gb, keys)


def room_for_generation(
    plan: dict[str, Any],
    state: dict[str, Any],
    denoiser: nn.Module,
    autoencoder: Autoencoder,
    batch_size: int,
    slab_gb: float | None,
    precision: str,
    folder: str | Path,
) -> None:
    """Refuse to generate where a batch, or decoding a volume, would not fit.

    Args:
        plan: row with `run`, `spatial_dims`, `samples`.
        state: of the model, from `load_denoiser`.
        denoiser: the trained one.
        autoencoder: the trained one.
        batch_size: denoised together.
        slab_gb: working memory of decoding in slabs; None: whole.
        precision: of denoising.
        folder: for what slabs keep meanwhile.

    Raises:
        ValueError: as `room_for_autoencoder`; or slabs cannot be so small; or the folder is too full for them.
    """
    channels, latent, image = state["latent_channels"], tuple(state["latent_shape"]), tuple(state["image_shape"])
    encoded = tuple(state["encoded_shape"])
    by_slice = isinstance(autoencoder, SliceWise)
    decoder = like(decoder_of(autoencoder.autoencoder if isinstance(autoencoder, SliceWise) else autoencoder))
    batch = min(batch_size, plan["samples"])
    stage = Generation(
        denoiser=like(denoiser),
        decoder=decoder,
        latent=(channels, *latent),
        decoded=(channels, *encoded[by_slice:]),
        slices=encoded[0] if by_slice else 1,
        image=image,
        batch=batch,
        held=plan["samples"],
    )
    if slab_gb is not None:
        check_slabs(stage, slab_gb, folder)
    machine = machine_of(precision)
    decoded = math.prod(side * factor for side, factor in zip(encoded, autoencoder.downsampling, strict=True))
    bounds = (bound_of(denoiser, batch * math.prod(latent)), bound_of(autoencoder, decoded))
    bound_gb = sum(bounds) + plan["samples"] * math.prod(image) * 4 / GB
    keys = partial(keys_of, section="sampling", dims=f"{plan['spatial_dims']}d")
    room = room_here(machine.device, weights_of(denoiser) + weights_of(autoencoder))
    check_room(f"generating {plan['run']}", stage, Settings(machine, slab_gb=slab_gb), room, bound_gb, keys)


def check_slabs(stage: Generation, slab_gb: float, folder: str | Path) -> None:
    """Refuse slabs that would turn out impossible only when all is denoised; see `room_for_generation`."""
    volume = (1, *stage.decoded)
    streamed = Streamed(without_weights(stage.decoder), working_gb=slab_gb, folder=folder)
    if slab_gb < (least_gb := least_slab_gb(stage.decoder, volume)):
        raise ValueError(f"sampling.slab_gb: {slab_gb:g} is too little, slabs of one row take {least_gb:.3g} GB")
    streamed.check_folder(streamed.plan(volume))


def check_room(task: str, stage: Stage, asked: Settings, room: Room, bound_gb: float, keys: Keys) -> None:
    """Refuse a stage that is predicted to take more memory than there is; warn where it is about as much.

    Args:
        task: what is about to begin.
        stage: of one process.
        asked: its settings.
        room: that it has.
        bound_gb: what it cannot exceed, libraries aside; where that fits, nothing is predicted.
        keys: the config's words.

    Raises:
        ValueError: one line: what the task takes, what there is, and what would fit.
    """
    if bound_gb + RUNTIME_GB[asked.machine.device] <= room.gb:
        return
    memory, limit_gb = stage.memory(asked), (1 - SPARE) * room.gb
    if memory.total_gb <= limit_gb:
        return
    proposed = [saving for saving in stage.savings(asked) if keys(saving)]
    savings, least = fitting(stage, asked, limit_gb, proposed)
    wanted = f"{task}: predicted to take {memory.total_gb:.2f} GB ({memory.moment}), and {room.owner} {room.gb:.2f} GB"
    if savings is None:
        advice = f"with all that spares memory it takes {least.total_gb:.2f} GB: take a smaller resolution or model"
    else:
        advice = f"would fit: {', '.join(str(keys(saving)) for saving in savings)} ({least.total_gb:.2f} GB)"
    if memory.total_gb <= room.gb:
        logger.warning("%s; %s", wanted, advice)
        return
    raise ValueError(f"{wanted}; {advice}")


def keys_of(saving: Saving, section: str, dims: str, processes: int = 1, timed: bool = False) -> str | None:
    """The config's words for a saving of a stage, whose settings are in `section`."""
    if saving.field == "precision":  # which models are trained for, and which CPUs may only emulate
        return "training.precision: bf16" if section != "sampling" and resolve_precision("auto") == "bf16" else None
    if saving.field == "batch":
        return f"{section}.batch_size.{dims}: {saving.value * processes}"
    if saving.field == "crop":
        return f"autoencoder.crop.{dims}: {max(saving.value[: -1 if timed else None])}"
    return {
        "checkpointing": "training.activation_checkpointing: true",
        "slab_gb": f"sampling.slab_gb: {saving.value:g}",
    }[saving.field]


def machine_of(precision: str) -> Machine:
    """Where the stages run; what slabs keep goes to files."""
    return Machine(best_device().type, resolve_precision(precision), keeps_in_memory=False)


def bound_of(network: nn.Module, voxels: int, copies: int = 1) -> float:
    """GB that a call of a network does not exceed, with its weights.

    Args:
        network: of modules, each of which gives outputs no larger than the input of the network.
        voxels: of the input, over the batch.
        copies: of weights.
    """
    layers = [module for module in network.modules() if not any(module.children())]
    widest = max(max(parameter.shape[:2]) for parameter in network.parameters() if parameter.ndim)
    return copies * weights_of(network) + 4 * (len(layers) * widest * voxels + DISTANCES_AT_ONCE) / GB


def weights_of(network: nn.Module) -> float:
    """GB of parameters and buffers."""
    return sum(map(size_of, (*network.parameters(), *network.buffers()))) / GB


def room_here(device: str, held_gb: float, processes: int = 1) -> Room:
    """The memory there is: of the GPU, or of what limits this process first on a CPU.

    Args:
        device: cpu or cuda.
        held_gb: data and weights that this process has in a CPU's memory already.
        processes: that are about to share a CPU's memory.
    """
    if device == "cuda":
        free_bytes = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        return Room(free_bytes / GB + RUNTIME_GB["cuda"], "the GPU has")  # the context is there by now
    free = {"this machine has": psutil.virtual_memory().available / processes}
    if groups := list(group_free_bytes()):
        free["its control group has"] = min(groups) / processes
    limit_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit_bytes != resource.RLIM_INFINITY:
        free["its address space (RLIMIT_AS) has"] = limit_bytes - psutil.Process().memory_info().vms
    owner = min(free, key=lambda each: free[each])
    return Room(max(0.0, free[owner]) / GB + held_gb + RUNTIME_GB["cpu"], owner)  # and the libraries


def group_free_bytes(root: Path = Path("/")) -> Iterator[int]:
    """Bytes that are free in each control group around this process which has a limit.

    Args:
        root: under which /proc and /sys are.
    """
    for line in (root / "proc/self/cgroup").read_text().splitlines() if (root / "proc/self/cgroup").exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inside = mount / path.lstrip("/")
        for group in (inside, *inside.parents):
            if group.is_relative_to(mount) and (group / names[0]).exists():
                yield from free_of(group, *names)


def free_of(group: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[int]:
    """Bytes that are free in a control group, the cache of files that it can drop among them; none without a limit."""
    limit = (group / limit_name).read_text().strip()
    if limit == "max" or int(limit) >= 1 << 60:
        return
    used_bytes = int((group / usage_name).read_text())
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    yield int(limit) - used_bytes + int(statistics.get(cache_name, 0))
