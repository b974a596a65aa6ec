"""The training loop of every network: counts images seen, averages weights, checkpoints, resumes, tells progress."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from models import checkpoint
from models.control import Control, LeftError
from models.device import training_precision
from models.progress import Progress

logger = logging.getLogger(__name__)

LOOK_EVERY_BATCHES = 8  # with several processes, which have to agree

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]  # network, indices of a batch, noise -> mean loss


@dataclass(frozen=True)
class Training:
    """How long and how fast to train."""

    images: int  # seen in all, over every device
    batch_size: int  # over every device
    learning_rate: float
    warmup_images: int = 0
    ema_decay: float = 0.0  # 0: no averaging
    precision: str = "auto"
    checkpoint_every_s: float = 60.0
    seed: int = 0

    @classmethod
    def of(cls, settings: dict[str, Any], training: dict[str, Any], dims: str, seed: int) -> "Training":
        """As the config's `diffusion` or `control` and its `training` say, for `2d` or `3d`."""
        return cls(
            images=settings["images"][dims],
            batch_size=settings["batch_size"][dims],
            learning_rate=settings["learning_rate"],
            warmup_images=settings["warmup_images"],
            ema_decay=settings["ema_decay"],
            precision=training["precision"],
            checkpoint_every_s=training["checkpoint_every_s"],
            seed=seed,
        )


@dataclass(frozen=True)
class Trained:
    """What a training leaves."""

    network: nn.Module  # with averaged weights where averaging was asked for
    images_seen: int  # each once, by this attempt and those that it resumed from
    images_resumed: int  # of them, seen before this attempt
    resumed_from: list[str]  # times of the checkpoints that led to this attempt, oldest first
    losses: list[tuple[int, float]]  # (images seen, mean loss since the last entry)
    checkpoints: int = 0  # written by this attempt
    checkpoint_s: float = 0.0  # in which it wrote them


def make_accelerator(precision: str, depths: Iterable[int] = ()) -> Accelerator:
    """Device placement, precision and processes of a training; `depths` as in `training_precision`."""
    precision = training_precision(precision, depths)
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision)


def train(
    network: nn.Module,
    loss: Loss,
    items: int,
    settings: Training,
    accelerator: Accelerator,
    checkpoint_path: str | Path,
    identity: str,
    name: str,
    control: Control | None = None,
) -> Trained:
    """Minimise a loss over random batches, resuming from `checkpoint_path` if it holds this very training.

    Batches depend on the seed and on images seen alone: a resumed training sees what an uninterrupted one would.
    With several processes each takes its share of every batch. The checkpoint is deleted at the end by the caller,
    who has then written the result.

    Each checkpoint tells `saved_at`, the time when its state was reached, and `resumed_from`, the times of the
    checkpoints before it that an attempt resumed from: up to those, the work of earlier attempts was kept.

    Args:
        network: trained in place.
        loss: given the network, indices into the items (on the device) and a generator on the CPU, the mean loss.
        items: number of training items.
        settings: length, batch, learning rate, averaging, precision.
        accelerator: from `make_accelerator`.
        checkpoint_path: written every `settings.checkpoint_every_s` seconds.
        identity: of this training, from `checkpoint.identity_of`.
        name: shown with the progress.
        control: obeyed between batches; None: nothing is looked at.

    Raises:
        StoppedError: if the control says stop; a checkpoint is written.
        LeftError: if there are several processes, and the control does not say run; a checkpoint is written.
        ValueError: if the loss is not finite.
    """
    share = settings.batch_size // accelerator.num_processes
    optimizer = torch.optim.AdamW(parameter_groups(network), lr=settings.learning_rate, weight_decay=0.0)
    averaged = AveragedModel(network, multi_avg_fn=warmed_up_ema(settings.ema_decay)).to(accelerator.device)
    seen, losses, lineage = 0, [], []
    state = checkpoint.load_if_same(checkpoint_path, identity)
    if state is not None:
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        seen, losses = state["images_seen"], [tuple(entry) for entry in state["losses"]]
        lineage = lineage_through(state)
        logger.info("%s resumes at %d of %d images", name, seen, settings.images)
    resumed = seen
    prepared, optimizer = accelerator.prepare(network, optimizer)
    prepared.train()
    progress = Progress(name, settings.images, resumed, quiet=not accelerator.is_main_process)
    written, since, total = time.monotonic(), 0, torch.zeros((), device=accelerator.device)

    checkpoints, checkpoint_s = 0, 0.0

    def save() -> None:
        nonlocal checkpoints, checkpoint_s
        began = time.monotonic()
        finite(float(total), name, seen)
        saved_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")  # not of the write
        counts = {"images_seen": seen, "saved_at": saved_at, "resumed_from": lineage, "losses": losses}
        parts = {"network": accelerator.unwrap_model(prepared), "averaged": averaged, "optimizer": optimizer}
        states = {part: holder.state_dict() for part, holder in parts.items()}
        checkpoint.save({"identity": identity, **counts, **states}, checkpoint_path)
        checkpoints, checkpoint_s = checkpoints + 1, checkpoint_s + time.monotonic() - began

    while seen < settings.images:
        batch = batch_indices(items, settings.batch_size, settings.seed, seen)
        mine = batch[accelerator.process_index * share : (accelerator.process_index + 1) * share].to(accelerator.device)
        # One stream of noise per process and batch: a resumed training draws what an uninterrupted one would have.
        generator = generator_of(settings.seed, seen, accelerator.process_index)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * group.get("rate", 1.0) * rate(seen, settings)
        torch.manual_seed(generator.initial_seed() + 1)  # of dropout inside networks, which a resumed training repeats
        with accelerator.autocast():
            value = loss(prepared, mine, generator)
        accelerator.backward(value)
        accelerator.unscale_gradients()  # once: `accelerator.clip_grad_norm_` would do it again for each group
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if settings.ema_decay:
            averaged.update_parameters(accelerator.unwrap_model(prepared))
        seen += settings.batch_size
        since, total = since + 1, total + value.detach()
        if progress.due() or seen >= settings.images:
            mean = finite(float(total), name, seen) / since
            losses.append((seen, mean))
            progress.tell(seen, f"loss {mean:.4f}")
            since, total = 0, torch.zeros((), device=accelerator.device)
        if accelerator.is_main_process and time.monotonic() - written > settings.checkpoint_every_s:
            save()
            written = time.monotonic()
        if control is not None and seen < settings.images:
            if accelerator.num_processes == 1:
                control.obey(name, save)
            elif seen // settings.batch_size % LOOK_EVERY_BATCHES == 0 and asked_to_leave(control, accelerator):
                if accelerator.is_main_process:
                    save()
                    control.left_path.touch()
                accelerator.wait_for_everyone()
                raise LeftError(f"{name}: told to pause or stop")
    progress.close()
    final = averaged.module if settings.ema_decay else accelerator.unwrap_model(prepared)
    return Trained(final.eval(), seen, resumed, lineage, losses, checkpoints, checkpoint_s)


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Parameters that are clipped together: all, unless the network has parts that train against each other.

    A network with such parts has a method `parameter_groups`; each group may tell `rate`, its share of the learning
    rate, and settings of AdamW.
    """
    groups: Callable[[], list[dict[str, Any]]] | None = getattr(network, "parameter_groups", None)
    return groups() if groups else [{"params": list(network.parameters())}]


def asked_to_leave(control: Control, accelerator: Accelerator) -> bool:
    """Whether the main process reads anything but run, told to all: one that left alone would hold the others up."""
    asked = accelerator.is_main_process and control.read()[0] != "run"
    told = broadcast(torch.tensor([float(asked)], device=accelerator.device))
    return bool(told.item() > 0)


def lineage_through(state: dict[str, Any]) -> list[str]:
    """Times of the checkpoints that led to an attempt which resumes from this one, oldest first."""
    if "saved_at" not in state:  # by an older version, which kept no times: it resumes, and has none in the lineage
        return []
    return [*state["resumed_from"], state["saved_at"]]


def finite(loss: float, name: str, seen: int) -> float:
    """The loss, unless training has diverged: then nothing of it is worth keeping."""
    if not math.isfinite(loss):
        raise ValueError(f"{name}: the loss is {loss} after {seen} images; lower its learning_rate")
    return loss


def batch_indices(items: int, batch_size: int, seed: int, seen: int) -> Tensor:  # (batch_size,)
    """The batch that starts after `seen` images: items in a new random order each time all have been seen."""
    positions = (divmod(seen + i, items) for i in range(batch_size))
    return torch.stack([random_order(items, seed, epoch)[place] for epoch, place in positions])


@lru_cache(maxsize=2)
def random_order(items: int, seed: int, epoch: int) -> Tensor:  # (items,)
    """The order in which an epoch shows the items."""
    return torch.randperm(items, generator=generator_of(seed, epoch))


def generator_of(*numbers: int) -> torch.Generator:
    """A stream of random numbers of its own for each combination of numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def rate(seen: int, settings: Training) -> float:
    """Share of the learning rate: a linear rise, then half a cosine down to a tenth."""
    if seen < settings.warmup_images:
        return (seen + settings.batch_size) / (settings.warmup_images + settings.batch_size)
    left = (seen - settings.warmup_images) / max(1, settings.images - settings.warmup_images)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, left)))


def warmed_up_ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average whose memory grows with the training, so that short trainings are not held back."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        memory = min(decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averaged, current, 1 - memory)

    return update
