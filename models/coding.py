"""Between images and latents: at once, or slab by slab where a volume is larger than the memory."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.networks.autoencoder import Autoencoder, SliceWise, slices_of, stacks_of
from models.networks.vqgan import VQGAN
from models.streaming import Streamed, decoder_of, encoder_of

Code = Callable[[Tensor], Tensor]

# Cohorts have to be encoded on the machine that they are trained on, whatever their size. Slabs give the same latents,
# so no setting is needed: what is larger than this goes through a working memory of so much.
LARGE_VOXELS = 1 << 22
LARGE_SLAB_GB = 1.0


def decoding(autoencoder: Autoencoder, slab_gb: float | None, folder: str | Path) -> Code:
    """What decodes latents of one image, (1, C, *latent) -> (1, 1, *image) on the CPU.

    Args:
        autoencoder: trained, on its device.
        slab_gb: working memory of slabs; None: everything at once.
        folder: for what is kept between slabs, in temporary files.

    Raises:
        ValueError: naming the layer, if the decoder cannot be run slab by slab.
    """
    if slab_gb is None:
        return lambda latents: autoencoder.images_of(latents).cpu()
    network = sliced(autoencoder)
    streamed = Streamed(decoder_of(network), working_gb=slab_gb, folder=folder)

    def decode(latents: Tensor) -> Tensor:
        return streamed(network.quantise(latents).latents if isinstance(network, VQGAN) else latents)

    return one_by_one(autoencoder, decode)


def encoding(autoencoder: Autoencoder, slab_gb: float | None, folder: str | Path) -> Code:
    """What encodes one image, (1, 1, *image) -> (1, C, *latent) on the CPU; arguments and errors as `decoding`."""
    device = next(autoencoder.parameters()).device
    if slab_gb is None:
        return lambda image: autoencoder.latents_of(image.to(device)).cpu()
    network = sliced(autoencoder)
    streamed = Streamed(encoder_of(network), working_gb=slab_gb, folder=folder)

    def encode(image: Tensor) -> Tensor:
        latents = streamed(image)
        return network.quantise(latents.to(device)).latents.cpu() if isinstance(network, VQGAN) else latents

    return one_by_one(autoencoder, encode)


def slab_of(image: tuple[int, ...]) -> float | None:
    """Working memory of slabs, in GB, in which images of a shape are encoded; None: at once."""
    return LARGE_SLAB_GB if math.prod(image[-3:]) > LARGE_VOXELS else None


def sliced(autoencoder: Autoencoder) -> nn.Module:
    """The network that runs: of stacks over time, that of a slice."""
    return autoencoder.autoencoder if isinstance(autoencoder, SliceWise) else autoencoder


def one_by_one(autoencoder: Autoencoder, code: Code) -> Code:
    """The same for whole images: of a stack over time slice by slice."""
    return partial(code_slices, code) if isinstance(autoencoder, SliceWise) else code


def code_slices(code: Code, stack: Tensor) -> Tensor:  # (1, C, D, *plane) -> (1, c, D, *other plane)
    """Each slice of a stack on its own."""
    return stacks_of(torch.cat([code(piece) for piece in slices_of(stack).split(1)]), stack.shape[2])
