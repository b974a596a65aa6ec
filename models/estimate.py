"""Memory of the stages of a generator, published or of a study, and what would fit where that is too much."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from models.adversarial import Adversarial, Objective
from models.memory import (
    GB,
    Machine,
    Memory,
    denoising_loss,
    generation_memory,
    least_slab_gb,
    reconstruction_loss,
    training_memory,
)
from models.networks.autoencoder import build_autoencoder
from models.networks.denoiser import build_denoiser, build_preset
from models.networks.discriminator import DISCRIMINATOR_SIZES, Discriminator, DiscriminatorSize
from models.networks.presets import RECIPES, STAGE_ONES, SYSTEMS, preset_named
from models.networks.vqgan import VQGAN, VQGAN_SIZES
from models.recompute import recompute_blocks
from models.streaming import decoder_of

Shape = tuple[int, ...]
STAGES = ("autoencoder", "diffusion", "generation")


@dataclass(frozen=True)
class Generator:
    """What is trained and sampled: functions that build its networks, with or without activation checkpointing."""

    name: str
    denoiser: Callable[[bool], nn.Module]
    autoencoder: Callable[[bool], nn.Module]  # all that its training holds
    decoder: Callable[[], nn.Module]
    image: Shape
    latent: Shape  # (C, *latent)
    decoded: Shape  # (C, *latent) of what is decoded at once
    crop: Shape  # that the autoencoder trains on
    batches: dict[str, int]  # by stage


@dataclass(frozen=True)
class Settings:
    """How the stages run."""

    machine: Machine
    batch: int | None = None  # None: of the generator
    checkpointing: bool = False
    slab_gb: float | None = None  # working memory of slabs; None: volumes are decoded whole
    items: int = 0  # latents that training holds on the device
    crop: Shape | None = None  # None: of the generator


Change = Callable[[Settings], Settings]


def published(name: str, image: Shape | None = None) -> Generator:
    """A preset, at its published size or another.

    Raises:
        ValueError: if there is no such preset, or the image does not go with it.
    """
    preset = preset_named(name)
    system, recipe, stage_one = SYSTEMS[preset.system], RECIPES[preset.system], STAGE_ONES[preset.system]
    shape = image or system.image
    factors = tuple(i // z for i, z in zip(system.image, system.latent, strict=True))
    latent = (system.latent_channels, *divided(shape, factors))
    size = VQGAN_SIZES[preset.system]
    by_slice = len(shape) > len(size.strides[0])  # CardioDiT's is of slices over time
    crop = tuple(min(sides) for sides in zip(stage_one.crop or shape, shape, strict=True))[by_slice:]

    def denoiser(checkpointing: bool) -> nn.Module:
        network = build_preset(name, latent[1:])
        return with_checkpointing(network) if checkpointing else network

    def autoencoder(checkpointing: bool) -> nn.Module:
        discriminator = Discriminator(len(crop), DISCRIMINATOR_SIZES[preset.system], crop)
        objective = Objective(spectral_weight=stage_one.spectral, adversarial_weight=stage_one.adversarial)
        return Adversarial(VQGAN(size, checkpointing), discriminator, objective)

    return Generator(
        name=name,
        denoiser=denoiser,
        autoencoder=autoencoder,
        decoder=lambda: decoder_of(VQGAN(size)),
        image=shape,
        latent=latent,
        decoded=(latent[0], *latent[1 + by_slice :]),
        crop=crop,
        batches={"autoencoder": stage_one.batch_size, "diffusion": recipe.batch_size, "generation": 1},
    )


def of_study(config: dict[str, Any], family: str, size: str, image: Shape) -> Generator:
    """A denoiser of a study's matrix with the study's autoencoder, at an image size.

    Args:
        config: the whole config.
        family: `unet` or `dit`.
        size: of the family.
        image: shape of an image or volume.

    Raises:
        ValueError: if the image does not go with the autoencoder or the patch.
    """
    dims, settings, diffusion = f"{len(image)}d", config["autoencoder"], config["diffusion"]
    if len(image) not in (2, 3):
        raise ValueError(f"--shape: {text_of(image)} has {len(image)} axes, a study's images have 2 or 3")
    with torch.device("meta"):
        factors = build_autoencoder(len(image), settings).downsampling
    latent = (settings["latent_channels"][dims], *divided(image, factors))
    crop = tuple(min(settings["crop"][dims] or side, side) for side in image)
    patch = diffusion["patch"]

    objective = Objective(
        spectral_weight=settings["spectral_weight"], adversarial_weight=settings["adversarial_weight"]
    )

    def denoiser(checkpointing: bool) -> nn.Module:
        network = build_denoiser({"family": family, "size": size}, latent[1:], latent[0], patch)
        return with_checkpointing(network) if checkpointing else network

    def autoencoder(checkpointing: bool) -> nn.Module:
        network = build_autoencoder(len(image), settings)
        discriminator: nn.Module = nn.Identity()  # which `Adversarial` drops where it has no weight
        if objective.adversarial_weight:
            discriminator = Discriminator(len(image), DiscriminatorSize(), crop)
        return Adversarial(with_checkpointing(network) if checkpointing else network, discriminator, objective)

    return Generator(
        name=f"{family} {size}",
        denoiser=denoiser,
        autoencoder=autoencoder,
        decoder=lambda: decoder_of(build_autoencoder(len(image), settings)),
        image=image,
        latent=latent,
        decoded=latent,
        crop=crop,
        batches={
            "autoencoder": settings["batch_size"][dims],
            "diffusion": diffusion["batch_size"][dims],
            "generation": config["sampling"]["batch_size"][dims],
        },
    )


def with_checkpointing(network: Any) -> nn.Module:
    """A network that keeps no activations inside its blocks: by its own switch, or block by block of MONAI's."""
    if hasattr(network, "checkpointing"):
        network.checkpointing = True
        return cast(nn.Module, network)
    return recompute_blocks(network)


def estimate(generator: Generator, stage: str, settings: Settings) -> Memory:
    """Peak memory of a stage: of `STAGES`."""
    batch, machine = batch_of(generator, stage, settings), settings.machine
    latents = (batch, *generator.latent)
    if stage == "autoencoder":
        shape = (batch, 1, *(settings.crop or generator.crop))
        return training_memory(
            lambda: generator.autoencoder(settings.checkpointing), reconstruction_loss(shape), machine
        )
    if stage == "diffusion":
        data_gb = settings.items * math.prod(generator.latent) * 4 / GB
        return training_memory(
            lambda: generator.denoiser(settings.checkpointing), denoising_loss(latents), machine, data_gb
        )
    return generation_memory(
        lambda: generator.denoiser(False),
        latents,
        generator.decoder,
        (1, *generator.decoded),
        machine,
        settings.slab_gb,
        batch * math.prod(generator.image) * 4 / GB if machine.device == "cpu" else 0.0,
    )


def batch_of(generator: Generator, stage: str, settings: Settings) -> int:
    """As asked for, or of the generator."""
    return settings.batch or generator.batches[stage]


def changes(generator: Generator, stage: str, settings: Settings) -> Iterator[tuple[str, Settings]]:
    """Settings that take less, each with all before it: first what changes nothing of what is computed."""
    said: dict[str, str] = {}
    for text, change in cheaper(generator, stage, settings):
        settings = change(settings)
        said[text.split()[0]] = text  # smaller slabs in place of small ones
        yield ", ".join(said.values()), settings


def cheaper(generator: Generator, stage: str, asked: Settings) -> Iterator[tuple[str, Change]]:
    """Single changes to what was asked for, in the order in which they are tried."""
    if stage == "generation":
        least_gb = least_slab_gb(generator.decoder, (1, *generator.decoded))
        smallest_gb = math.ceil(100 * least_gb) / 100 if least_gb < math.inf else math.inf
        for slab_gb in sorted({max(1.0, smallest_gb), smallest_gb} - {math.inf}, reverse=True):
            if asked.slab_gb is None or asked.slab_gb > slab_gb:
                yield f"slabs of {slab_gb:g} GB", partial(replace, slab_gb=slab_gb)
        if asked.machine.device == "cpu" and asked.machine.keeps_in_memory:
            yield "what is kept in files", partial(on_machine, keeps_in_memory=False)
    elif not asked.checkpointing:
        yield "activation checkpointing", partial(replace, checkpointing=True)
    if asked.machine.precision == "fp32":
        yield "bf16", partial(on_machine, precision="bf16")
    if batch_of(generator, stage, asked) > 1:
        yield "batch 1", partial(replace, batch=1)
    if stage == "autoencoder":
        for side in (128, 64, 32):
            crop = tuple(min(side, length) for length in generator.crop)
            if math.prod(crop) < math.prod(asked.crop or generator.crop):
                yield f"crops of {text_of(crop)}", partial(replace, crop=crop)


def on_machine(settings: Settings, **changed: Any) -> Settings:
    """The settings with another machine."""
    return replace(settings, machine=replace(settings.machine, **changed))


def divided(shape: Shape, factors: Shape) -> Shape:
    """Shape of the latent.

    Raises:
        ValueError: if there is another number of axes, or the downsampling does not divide one.
    """
    if len(shape) != len(factors):
        raise ValueError(f"--shape: {text_of(shape)} has {len(shape)} axes, the generator has {len(factors)}")
    if any(side % factor or side < factor for side, factor in zip(shape, factors, strict=True)):
        raise ValueError(f"--shape: {text_of(shape)} does not divide by the downsampling, {text_of(factors)}")
    return tuple(side // factor for side, factor in zip(shape, factors, strict=True))


def text_of(shape: Shape) -> str:
    """As people write shapes."""
    return "x".join(map(str, shape))
