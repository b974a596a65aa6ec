"""The stages of a generator as what fills a memory, and changes of their settings that take less of it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from models.adversarial import Adversarial
from models.coding import slab_of
from models.memory import (
    GB,
    RUNTIME_GB,
    Build,
    Machine,
    Memory,
    denoising_loss,
    generation_memory,
    inference_memory,
    least_slab_gb,
    reconstruction_loss,
    size_of,
    streamed_memory,
    training_memory,
    without_weights,
)
from models.recompute import with_checkpointing
from models.streaming import decoder_of, encoder_of

Shape = tuple[int, ...]
CROPS = (128, 64, 32)  # sides that are tried


@dataclass(frozen=True)
class Settings:
    """How a stage runs."""

    machine: Machine
    batch: int | None = None  # of one process; None: of the stage
    checkpointing: bool = False
    slab_gb: float | None = None  # working memory of slabs; None: volumes are decoded whole
    items: int = 0  # images or latents that training holds
    crop: Shape | None = None  # None: of the stage


@dataclass(frozen=True)
class Saving:
    """A change that takes less memory: a field of `Settings` or of its machine, and what it becomes."""

    field: str
    value: Any

    def of(self, settings: Settings) -> Settings:
        """The settings with it."""
        if hasattr(settings.machine, self.field):
            return replace(settings, machine=replace(settings.machine, **{self.field: self.value}))
        return replace(settings, **{self.field: self.value})


@dataclass(frozen=True)
class AutoencoderTraining:
    """Training on crops; where `whole` says so, with all that follows of whole images: their error, their encoding."""

    network: Build  # an `Adversarial`
    image: Shape  # what the network sees of an image
    slices: int  # that it sees for one image, more than one for stacks over time
    crop: Shape
    batch: int
    whole: bool
    timed: bool  # whether the last axis is time, which no crop shortens

    def memory(self, settings: Settings) -> Memory:
        """Peak of the stages."""
        batch, machine = settings.batch or self.batch, settings.machine
        held = settings.items if machine.device == "cpu" else 0  # the device sees batches only
        data_gb = held * self.slices * math.prod(self.image) * 4 / GB

        def network() -> nn.Module:
            built = self.network()
            if settings.checkpointing:
                assert isinstance(built, Adversarial)
                with_checkpointing(built.autoencoder)
            return built

        loss = reconstruction_loss((batch, 1, *(settings.crop or self.crop)))
        moments = [training_memory(network, loss, machine, data_gb)]
        if self.whole:
            moments.append(replace(self._of_whole_images(machine), data_gb=data_gb))
        return max(moments, key=lambda memory: memory.total_gb)

    def savings(self, asked: Settings) -> Iterator[Saving]:
        """In the order in which they are tried: first what changes nothing of what is computed."""
        yield from savings_of_training(self.batch, asked)
        for side in CROPS:
            crop = tuple(min(side, length) for length in self.crop[: -1 if self.timed else None])
            crop += self.crop[len(crop) :]
            if math.prod(crop) < math.prod(asked.crop or self.crop):
                yield Saving("crop", crop)

    def _of_whole_images(self, machine: Machine) -> Memory:
        """Encoding and decoding, as `models.coding` does it: at once, or large images in slabs."""
        image, slab_gb = (1, 1, *self.image), slab_of(self.image)
        if slab_gb is None:
            shape = (self.slices, *image[1:])
            memory = inference_memory(self._autoencoder, shape, machine, "forward", "errors of whole images")
            return replace(memory, averaged_gb=memory.parameters_gb)
        autoencoder: Any = without_weights(self._autoencoder)
        weights_gb = sum(map(size_of, (*autoencoder.parameters(), *autoencoder.buffers()))) / GB
        always = {"parameters_gb": weights_gb, "averaged_gb": weights_gb, "runtime_gb": RUNTIME_GB[machine.device]}
        latent = (length // factor for length, factor in zip(self.image, autoencoder.downsampling, strict=True))
        latents = (1, autoencoder.latent_channels, *latent)
        coded = [
            streamed_memory(lambda: encoder_of(self._autoencoder()), image, machine, slab_gb, always),
            streamed_memory(lambda: decoder_of(self._autoencoder()), latents, machine, slab_gb, always),
        ]
        most = max(coded, key=lambda memory: memory.total_gb)
        return replace(most, moment="whole images in slabs")

    def _autoencoder(self) -> nn.Module:
        network: Any = self.network()
        autoencoder: nn.Module = network.autoencoder
        return autoencoder


@dataclass(frozen=True)
class DiffusionTraining:
    """Training on latents."""

    network: Build
    latent: Shape  # (C, *latent)
    batch: int

    def memory(self, settings: Settings) -> Memory:
        """Peak of the stage."""
        latents = (settings.batch or self.batch, *self.latent)

        def network() -> nn.Module:
            built = self.network()
            return with_checkpointing(built) if settings.checkpointing else built

        data_gb = settings.items * math.prod(self.latent) * 4 / GB
        return training_memory(network, denoising_loss(latents), settings.machine, data_gb)

    def savings(self, asked: Settings) -> Iterator[Saving]:
        """In the order in which they are tried."""
        yield from savings_of_training(self.batch, asked)


@dataclass(frozen=True)
class Generation:
    """Denoising in batches, decoding one by one; stacks over time slice by slice, where in slabs."""

    denoiser: Build
    decoder: Build
    latent: Shape  # (C, *latent) as it is denoised
    decoded: Shape  # (C, *latent) of a volume, or of a slice of a stack over time
    slices: int
    image: Shape
    batch: int
    held: int | None = None  # images that are held until they are written; None: those of a batch

    def memory(self, settings: Settings) -> Memory:
        """Peak of the stage."""
        batch, machine = settings.batch or self.batch, settings.machine
        images = self.held or batch
        return generation_memory(
            self.denoiser,
            (batch, *self.latent),
            self.decoder,
            (self.slices if settings.slab_gb is None else 1, *self.decoded),
            machine,
            settings.slab_gb,
            images * math.prod(self.image) * 4 / GB if machine.device == "cpu" else 0.0,
        )

    def savings(self, asked: Settings) -> Iterator[Saving]:
        """In the order in which they are tried: first what changes nothing of what is computed."""
        least_gb = least_slab_gb(self.decoder, (1, *self.decoded))
        smallest_gb = math.ceil(100 * least_gb) / 100 if least_gb < math.inf else math.inf
        for slab_gb in sorted({max(1.0, smallest_gb), smallest_gb} - {math.inf}, reverse=True):
            if asked.slab_gb is None or asked.slab_gb > slab_gb:
                yield Saving("slab_gb", slab_gb)
        if asked.machine.device == "cpu" and asked.machine.keeps_in_memory:
            yield Saving("keeps_in_memory", False)
        if asked.machine.precision == "fp32":
            yield Saving("precision", "bf16")
        yield from smaller_batches(asked.batch or self.batch)


Stage = AutoencoderTraining | DiffusionTraining | Generation


def savings_of_training(batch: int, asked: Settings) -> Iterator[Saving]:
    """What all trainings can do."""
    if not asked.checkpointing:
        yield Saving("checkpointing", True)
    if asked.machine.precision == "fp32":
        yield Saving("precision", "bf16")
    yield from smaller_batches(asked.batch or batch)


def smaller_batches(batch: int) -> Iterator[Saving]:
    """Halved, and halved again, down to one."""
    while batch > 1:
        batch //= 2
        yield Saving("batch", batch)


def fitting(
    stage: Stage, settings: Settings, limit_gb: float, savings: Iterable[Saving] | None = None
) -> tuple[list[Saving] | None, Memory]:
    """What would fit a memory: as few savings as suffice.

    Args:
        stage: that does not fit as it is.
        settings: as asked for.
        limit_gb: the memory.
        savings: to try, in this order, each with all before it; None: all of the stage.

    Returns:
        The savings, or None where all of them are not enough; and the memory with them.
    """
    taken: dict[str, Saving] = {}
    memory = stage.memory(settings)
    for saving in stage.savings(settings) if savings is None else savings:
        taken[saving.field] = saving  # smaller slabs in place of small ones
        memory = stage.memory(changed(settings, taken.values()))
        if memory.total_gb <= limit_gb:
            return needed(stage, settings, limit_gb, list(taken.values()))
    return None, memory


def needed(stage: Stage, settings: Settings, limit_gb: float, savings: list[Saving]) -> tuple[list[Saving], Memory]:
    """Savings that suffice, without those that do so without help of theirs; and the memory."""
    for saving in list(savings):
        others = [other for other in savings if other is not saving]
        if others and stage.memory(changed(settings, others)).total_gb <= limit_gb:
            savings = others
    return savings, stage.memory(changed(settings, savings))


def changed(settings: Settings, savings: Iterable[Saving]) -> Settings:
    """The settings with all of these."""
    for saving in savings:
        settings = saving.of(settings)
    return settings


def shape_text(shape: Shape) -> str:
    """As people write shapes."""
    return "x".join(map(str, shape))
