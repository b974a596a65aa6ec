"""The stage that generates images or volumes with a trained model."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.autoencode import load_autoencoder
from models.device import autocast, best_device
from models.diffusion.sampling import make_scheduler, sample_latents
from models.files import atomic_path
from models.networks.denoiser import count_parameters
from models.progress import Progress
from models.train import load_denoiser
from models.work import Work

logger = logging.getLogger(__name__)


def generate_samples(
    plan: dict[str, Any],
    batch_size: int,
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
        plan: row with `run`, `sampler`, `steps`, `samples`, `seed`.
        batch_size: denoised together.
        precision: as in training.
        model_path: from `train_diffusion`.
        autoencoder_path: from `train_autoencoder`.
        samples_path: .npy, float32 in [-1, 1], (N, 1, *image).
        info_path: JSON: sampler, steps, passes through the network, seed.
    """
    denoiser, state = load_denoiser(model_path)
    autoencoder, autoencoder_flops = load_autoencoder(autoencoder_path)
    device = best_device()
    denoiser, autoencoder = denoiser.to(device), autoencoder.to(device)
    generator = torch.Generator().manual_seed(plan["seed"])
    shape = (state["latent_channels"], *state["latent_shape"])
    noise = torch.randn((plan["samples"], *shape), generator=generator)  # (N, C, *latent)
    step_noise = torch.Generator(device).manual_seed(plan["seed"])
    progress = Progress(plan["run"], plan["samples"], unit="sample")
    passes = 0

    def count(passes_of_batch: int, _: torch.Tensor) -> None:
        nonlocal passes
        passes = passes_of_batch

    images = []
    with torch.inference_mode():
        for x in noise.split(batch_size):  # (n, C, *latent)
            scheduler = make_scheduler(plan["sampler"], state["settings"])
            with autocast(precision):  # not for decoding, where eight bits of mantissa would show as bands
                latents = sample_latents(denoiser, x.to(device), scheduler, plan["steps"], step_noise, count)
            for latent in latents.float().split(1):  # (1, C, *latent)
                images.append(autoencoder.images_of(latent / state["scale"]).cpu())  # (1, 1, *image)
            progress.tell(len(images))
    progress.close()
    samples = torch.cat(images).clamp(-1, 1).numpy()  # (N, 1, *image)
    with atomic_path(samples_path) as temporary:
        np.save(temporary, samples)
    info = {key: plan[key] for key in ("run", "sampler", "steps", "samples", "seed")} | {"passes": passes}
    with atomic_path(info_path) as temporary:
        temporary.write_text(json.dumps(info, indent=1))
    return {
        "samples": len(samples),
        "voxels": int(samples.size),
        "flops": len(samples) * (passes * state["flops"] + autoencoder_flops["decode"]),
        "parameters": count_parameters(denoiser),
    }
