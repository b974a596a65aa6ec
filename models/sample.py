"""The stage that generates images or volumes with a trained model."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.autoencode import load_autoencoder
from models.coding import decoding
from models.device import autocast, best_device
from models.diffusion.sampling import make_scheduler, sample_latents
from models.files import atomic_path
from models.networks.denoiser import count_parameters
from models.padding import crop_to
from models.progress import Progress
from models.room import room_for_generation
from models.train import load_denoiser
from models.work import Work

logger = logging.getLogger(__name__)

Denoise = Callable[[Tensor, Tensor], Tensor]  # (n, C, *latent), (n,) -> (n, C, *latent)
OF_MODEL = ("family", "size", "spatial_dims", "resolution", "frames")  # what a run and its model have to agree in


def generate_samples(
    plan: dict[str, Any],
    batch_size: int,
    slab_gb: float | None,
    precision: str,
    model_path: str | Path,
    autoencoder_path: str | Path,
    samples_path: str | Path,
    info_path: str | Path,
) -> Work:
    """Generate the samples of a run.

    All samplers of a model start from the same noise, so that their pictures can be compared one by one. Latents are
    denoised in batches and decoded one at a time: decoding is what fills a memory.

    Args:
        plan: row with `run`, `family`, `size`, `spatial_dims`, `resolution`, `frames`, `sampler`, `steps`, `samples`,
            `seed`.
        batch_size: denoised together.
        slab_gb: working memory of decoding slab by slab; None: a whole volume at once.
        precision: as in training.
        model_path: from `train_diffusion`.
        autoencoder_path: from `train_autoencoder`.
        samples_path: .npy, float32 in [-1, 1], (N, 1, *image).
        info_path: JSON: sampler, steps, passes through the network, seed.

    Raises:
        ValueError: if the model is not of this run, or the memory is too small.
    """
    denoiser, state = load_denoiser(model_path)
    check_model(plan, state["plan"], model_path)
    autoencoder, autoencoder_flops = load_autoencoder(autoencoder_path)
    device = best_device()
    denoiser, autoencoder = denoiser.to(device), autoencoder.to(device)
    folder = Path(samples_path).parent
    room_for_generation(plan, state, denoiser, autoencoder, batch_size, slab_gb, precision, folder)
    decode = decoding(autoencoder, slab_gb, folder)
    samples, passes = sampled(lambda _: denoiser, plan, state, plan["samples"], batch_size, precision, decode)
    save_samples(samples, samples_path)
    info = {key: plan[key] for key in ("run", "sampler", "steps", "samples", "seed")} | {"passes": passes}
    with atomic_path(info_path) as temporary:
        temporary.write_text(json.dumps(info, indent=1))
    return {
        "samples": len(samples),
        "voxels": int(samples.size),
        "flops": len(samples) * (passes * state["flops"] + autoencoder_flops["decode"]),
        "parameters": count_parameters(denoiser),
    }


def check_model(plan: dict[str, Any], of_model: dict[str, Any], path: str | Path) -> None:
    """Refuse a model that was trained for another row of the plan.

    Raises:
        ValueError: naming the file and what differs.
    """
    for factor in OF_MODEL:
        if of_model[factor] != plan[factor]:
            raise ValueError(
                f"{path}: a model of {factor} {of_model[factor]}, and run {plan['run']} is of {factor} {plan[factor]}"
            )


@torch.inference_mode()
def sampled(
    denoiser_of: Callable[[slice], Denoise | nn.Module],
    plan: dict[str, Any],
    state: dict[str, Any],
    samples: int,
    batch_size: int,
    precision: str,
    decode: Callable[[Tensor], Tensor],
) -> tuple[NDArray[np.float32], int]:
    """Images from noise, which is the same for the same seed, whatever denoises.

    Args:
        denoiser_of: for the samples of a batch, what predicts.
        plan: row with `run`, `sampler`, `steps`, `seed`.
        state: of the model, from `load_denoiser`.
        samples: N.
        batch_size: denoised together.
        precision: of denoising; not of decoding, where eight bits of mantissa would show as bands.
        decode: from `decoding`.

    Returns:
        (N, 1, *image) in [-1, 1], and passes through the network for each.
    """
    device = best_device()
    generator = torch.Generator().manual_seed(plan["seed"])
    noise = torch.randn((samples, state["latent_channels"], *state["latent_shape"]), generator=generator)
    step_noise = torch.Generator(device).manual_seed(plan["seed"])
    progress = Progress(plan["run"], samples, unit="sample")
    images: NDArray[np.float32] = np.empty((0,), np.float32)
    done, passes = 0, 0

    def count(passes_of_batch: int, _: Tensor) -> None:
        nonlocal passes
        passes = passes_of_batch

    for x in noise.split(batch_size):  # (n, C, *latent)
        scheduler = make_scheduler(plan["sampler"], state["settings"])
        denoise: Any = denoiser_of(slice(done, done + len(x)))
        with autocast(precision):
            latents = sample_latents(denoise, x.to(device), scheduler, plan["steps"], step_noise, count)
        latents = crop_to(latents.float(), state["encoded_shape"]) / state["scale"]  # (n, C, *latent)
        for latent in latents.split(1):  # (1, C, *latent)
            image = crop_to(decode(latent), state["image_shape"])  # (1, 1, *image)
            if not done:
                images = np.empty((samples, *image.shape[1:]), np.float32)
            images[done] = image[0].clamp(-1, 1).numpy()
            done += 1
        progress.tell(done)
    progress.close()
    return images, passes


def save_samples(samples: NDArray[np.float32], path: str | Path) -> None:
    """Write .npy, whole or not at all."""
    with atomic_path(path) as temporary:
        np.save(temporary, samples)
