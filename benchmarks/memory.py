"""Memory and time of one volume of MedLoRD's: 512x512x256 end to end, and beside the plain MONAI way where both fit.

Weights are random, which memory and time do not notice. Every row is measured in a process of its own, as the peak of
its resident memory. What streaming keeps goes to a temporary file, which is no part of resident memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from machine import machine, peak_mb
from monai.inferers import LatentDiffusionInferer
from monai.networks.nets import VQVAE, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor

from models.device import autocast, best_device, resolve_precision
from models.diffusion.sampling import make_scheduler, sample_latents
from models.memory import Machine, generation_memory
from models.networks.denoiser import build_preset
from models.networks.presets import SYSTEMS
from models.networks.sizes import MEDLORD_SIZE
from models.networks.vqgan import VQGAN, VQGAN_SIZES
from models.streaming import Streamed, decoder_of

DIFFUSION = {"timesteps": 300, "noise_schedule": "cosine", "prediction": "v_prediction"}
SIZE, CHANNELS = VQGAN_SIZES["medlord"], SYSTEMS["medlord"].latent_channels
PLAIN, WHOLE, STREAMED = "plain MONAI", "ours, decoded whole", "ours, in slabs"


@dataclass(frozen=True)
class Job:
    """One volume, in one way."""

    variant: str
    image: tuple[int, ...]
    steps: int
    slab_gb: float
    threads: int
    folder: str

    @property
    def latent(self) -> tuple[int, ...]:
        """(C, *latent)."""
        return CHANNELS, *(side // 4 for side in self.image)


def ours(job: Job) -> tuple[Tensor, float]:
    """A volume (1, 1, *image) as `generate_samples` makes it, and when its latents were there."""
    device = best_device()
    denoiser, autoencoder = build_preset("medlord", job.latent[1:]).eval().to(device), VQGAN(SIZE).eval().to(device)
    with torch.inference_mode():
        noise = torch.randn((1, *job.latent), device=device)  # (1, C, *latent)
        with autocast("auto"):
            latents = sample_latents(denoiser, noise, make_scheduler("ddim", DIFFUSION), job.steps)  # (1, C, *latent)
        latents = autoencoder.quantise(latents.float()).latents
        denoised_s = time.perf_counter()
        if job.variant == WHOLE:
            return autoencoder.decode(latents), denoised_s
        streamed = Streamed(decoder_of(autoencoder), working_gb=job.slab_gb, folder=job.folder)
        return streamed(latents), denoised_s


def plain(job: Job) -> tuple[Tensor, float]:
    """A volume by MONAI's inferer with MONAI's networks of the same sizes, in float32."""
    levels = len(SIZE.channels)
    denoiser = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        channels=MEDLORD_SIZE.channels,
        attention_levels=MEDLORD_SIZE.attention,
        num_res_blocks=MEDLORD_SIZE.blocks,
        num_head_channels=MEDLORD_SIZE.head_channels,
    )
    autoencoder = VQVAE(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=SIZE.channels,
        num_res_layers=SIZE.residual_units,
        num_res_channels=SIZE.channels,
        downsample_parameters=((2, 4, 1, 1),) * levels,
        upsample_parameters=((2, 4, 1, 1, 0),) * levels,
        num_embeddings=SIZE.codes,
        embedding_dim=CHANNELS,
    )
    denoiser, autoencoder = denoiser.eval().to(best_device()), autoencoder.eval().to(best_device())
    scheduler = DDIMScheduler(DIFFUSION["timesteps"], "cosine", prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(job.steps)
    denoised_s = [0.0]
    quantise = autoencoder.quantize

    def noted(latents: Tensor) -> tuple[Tensor, Tensor]:
        denoised_s[0] = time.perf_counter()
        return quantise(latents)

    autoencoder.quantize = noted
    noise = torch.randn((1, *job.latent), device=best_device())  # (1, C, *latent)
    volume = LatentDiffusionInferer(scheduler).sample(noise, autoencoder, denoiser, scheduler, verbose=False)
    assert isinstance(volume, Tensor)  # and not intermediates, which were not asked for
    return volume, denoised_s[0]


def run(job: Job) -> None:
    """In a process of its own: generate, write, print what it took."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    before_mb, began_s = peak_mb(), time.perf_counter()
    volume, denoised_s = plain(job) if job.variant == PLAIN else ours(job)
    decoded_s = time.perf_counter()
    np.save(Path(job.folder) / "volume.npy", volume.cpu().numpy())
    assert tuple(volume.shape) == (1, 1, *job.image)
    figures = {
        "peak_gb": peak_mb() / 1e3,
        "peak_over_libraries_gb": (peak_mb() - before_mb) / 1e3,
        "denoising_s": denoised_s - began_s,
        "decoding_s": decoded_s - denoised_s,
    }
    print(json.dumps(figures))


def measure(job: Job) -> dict[str, Any]:
    """A row of the report."""
    print(f"{shape_text(job.image)}: {job.variant} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job.variant} at {shape_text(job.image)} ended with status {done.returncode}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {"image": shape_text(job.image), "variant": job.variant, **figures, "predicted_gb": predicted_gb(job)}


def predicted_gb(job: Job) -> float | None:
    """As `footprint estimate --memory` tells it; not of MONAI's pipeline."""
    if job.variant == PLAIN:
        return None
    return generation_memory(
        partial(build_preset, "medlord", job.latent[1:]),
        (1, *job.latent),
        lambda: decoder_of(VQGAN(SIZE)),
        (1, *job.latent),
        Machine("cpu", resolve_precision("auto"), keeps_in_memory=False),
        None if job.variant == WHOLE else job.slab_gb,
    ).total_gb


def shape_text(image: tuple[int, ...]) -> str:
    """As people write it."""
    return "x".join(map(str, image))


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    head = "MedLoRD's networks, {steps} DDIM steps, slabs of {slab_gb:g} GB, {threads} threads, {device}, torch {torch}"
    lines = [head.format(**report), "load {load_before:.1f} before, {load_after:.1f} after".format(**report["machine"])]
    lines += ["QUICK: checks that it runs; its figures mean little"] if report["quick"] else []
    lines += [
        "",
        f"{'image':14}{'':22}{'peak GB':>9}{'predicted':>11}{'libraries':>11}{'denoise s':>11}{'decode s':>10}",
    ]
    for row in report["rows"]:
        predicted = "" if row["predicted_gb"] is None else f"{row['predicted_gb']:.2f}"
        libraries_gb = row["peak_gb"] - row["peak_over_libraries_gb"]
        lines += [
            f"{row['image']:14}{row['variant']:22}{row['peak_gb']:>9.2f}{predicted:>11}{libraries_gb:>11.2f}"
            f"{row['denoising_s']:>11.1f}{row['decoding_s']:>10.1f}"
        ]
    return "\n".join(lines)


def shape_of(text: str) -> tuple[int, ...]:
    """A volume's shape for argparse."""
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) and int(side) % 32 == 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not three multiples of 32 such as 512x512x256")
    return tuple(map(int, sides))


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description="Memory and time of a volume of MedLoRD's; about ten minutes on two quiet cores.",
        epilog="example: python benchmarks/memory.py --image 256x256x128 --json > memory.json",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="64x64x32 only: to see that it runs")
    parser.add_argument("--image", type=shape_of, default=(512, 512, 256), help="in slabs (default: 512x512x256)")
    parser.add_argument(
        "--beside", type=shape_of, default=(128, 128, 64), help="where all ways fit (default: 128x128x64)"
    )
    parser.add_argument("--steps", type=int, default=2, help="of denoising (default: %(default)s)")
    parser.add_argument("--slab-gb", type=float, default=1.0, help="of slabs being worked on (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for what is kept, 6 GB at the full size")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        given = json.loads(arguments.job)
        return run(Job(**{**given, "image": tuple(given["image"])}))
    beside = (64, 64, 32) if arguments.quick else arguments.beside
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        job = partial(Job, steps=arguments.steps, slab_gb=arguments.slab_gb, threads=arguments.threads, folder=folder)
        wanted = [job(variant, beside) for variant in (PLAIN, WHOLE, STREAMED)]
        wanted += [] if arguments.quick else [job(STREAMED, arguments.image)]
        rows = [measure(each) for each in wanted]
    report = {
        "benchmark": "memory",
        "quick": arguments.quick,
        "steps": arguments.steps,
        "slab_gb": arguments.slab_gb,
        "threads": arguments.threads,
        "device": str(best_device()),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "machine": machine(load_before),
        "rows": rows,
    }
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    return None


if __name__ == "__main__":
    main()
