"""Memory, time and energy of one volume of MedLoRD's: 512x512x256 in slabs, and beside plain MONAI where both fit.

Weights are random, which none of them notices. Every volume is made in a process of its own: its peak is that of
resident memory, its energy that of the window from noise to the file, metered as a stage of the workflow is. What slabs
keep goes to a temporary file, which is no part of resident memory. The ways of one size take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import monai
import numpy as np
import torch
from machine import machine, peak_mb, tell
from monai.inferers import LatentDiffusionInferer
from monai.networks.nets import VQVAE, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor

from emissions.client import Session
from emissions.job import attempt_folders, job_of
from emissions.meters import MeterSettings
from emissions.records import FACTOR_COLUMNS
from models.device import autocast, best_device, resolve_precision
from models.diffusion.sampling import make_scheduler, sample_latents
from models.memory import Machine, generation_memory, streaming_plan
from models.networks.denoiser import build_preset
from models.networks.presets import SYSTEMS
from models.networks.sizes import MEDLORD_SIZE
from models.networks.vqgan import VQGAN, VQGAN_SIZES
from models.streaming import Streamed, decoder_of

DIFFUSION = {"timesteps": 300, "noise_schedule": "cosine", "prediction": "v_prediction"}
SIZE, CHANNELS = VQGAN_SIZES["medlord"], SYSTEMS["medlord"].latent_channels
PLAIN, WHOLE, STREAMED = "plain MONAI", "ours, decoded whole", "ours, in slabs"
MEDIANS = (
    "peak_gb",
    "peak_over_libraries_gb",
    "denoising_s",
    "decoding_s",
    "energy_wh",
    "energy_low_wh",
    "energy_high_wh",
)


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
    with metered(job) as energy:
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
        **energy,
    }
    print(json.dumps(figures))


@contextmanager
def metered(job: Job) -> Iterator[dict[str, Any]]:
    """Energy of the block in Wh, with its bounds, filled in at its end; the process's start is no part of it."""
    journal = Path(job.folder) / "journal.jsonl"
    session, energy = Session(MeterSettings(codecarbon=False)), dict[str, Any]()
    about = job_of(
        stage="memory",
        item=job.variant,
        factors=dict.fromkeys(FACTOR_COLUMNS),
        journal=journal,
        folders=attempt_folders(journal),
        cpus=job.threads,
        codecarbon=False,
    )
    session.open(about | {"count_startup": False, "startup_s": 0.0})
    yield energy
    record = session.close("ok", {}).record
    session.saved("ok", record, keep_trace=False, final=True)
    for name in ("energy", "energy_low", "energy_high"):
        energy[f"{name}_wh"] = 1000 * record[f"{name}_kwh"]
    energy["methods"] = {part: record[f"{part}_method"] for part in ("cpu", "gpu", "ram")}


def compared(jobs: list[Job], rounds: int) -> list[dict[str, Any]]:
    """A row for each job of one size: medians over rounds in which they take turns, and ratios to the first."""
    turns = [[measure(job) for job in jobs] for _ in range(rounds)]
    rows = []
    for place, job in enumerate(jobs):
        found = [turn[place] for turn in turns]
        rows.append(
            {
                "image": shape_text(job.image),
                "variant": job.variant,
                "rounds": rounds,
                **{name: median(each[name] for each in found) for name in MEDIANS},
                "energy_least_wh": min(each["energy_wh"] for each in found),
                "energy_most_wh": max(each["energy_wh"] for each in found),
                "methods": found[0]["methods"],
                "predicted_gb": predicted_gb(job),
                "files_gb": files_gb(job),
            }
        )
    for row in rows:
        for name, ratio in (("energy_wh", "energy_ratio"), ("peak_gb", "peak_ratio")):
            row[ratio] = row[name] / rows[0][name] if len(rows) > 1 else None
    return rows


def measure(job: Job) -> dict[str, Any]:
    """Figures of one volume, made in a process of its own."""
    print(f"{shape_text(job.image)}: {job.variant} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job.variant} at {shape_text(job.image)} ended with status {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


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


def files_gb(job: Job) -> float | None:
    """What slabs keep in files at most; None where nothing is streamed."""
    if job.variant != STREAMED:
        return None
    return streaming_plan(lambda: decoder_of(VQGAN(SIZE)), (1, *job.latent), job.slab_gb).kept_gb


def shape_text(image: tuple[int, ...]) -> str:
    """As people write it."""
    return "x".join(map(str, image))


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    head = "MedLoRD's networks, {steps} DDIM steps, slabs of {slab_gb:g} GB, {threads} threads, {device}, torch {torch}"
    methods = ", ".join(f"{part} {method}" for part, method in report["rows"][0]["methods"].items() if method != "none")
    lines = [
        head.format(**report),
        "load {load_before:.1f} before, {load_after:.1f} after".format(**report["machine"]),
        f"energy: {methods}; ours in {report['precision']}, MONAI's in fp32",
        "",
        f"{'image':14}{'':22}{'peak GB':>9}{'predicted':>11}{'libraries':>11}{'files':>7}"
        f"{'denoise s':>11}{'decode s':>10}{'Wh':>8}{'bounds':>15}{'in rounds':>15}{'ratio':>7}",
    ]
    return "\n".join([*lines, *map(line_of, report["rows"])])


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    predicted, files = (f"{row[key]:.2f}" if row[key] is not None else "" for key in ("predicted_gb", "files_gb"))
    libraries_gb = row["peak_gb"] - row["peak_over_libraries_gb"]
    bounds = f"{row['energy_low_wh']:.3g}-{row['energy_high_wh']:.3g}"
    spread = f"{row['energy_least_wh']:.3g}-{row['energy_most_wh']:.3g}" if row["rounds"] > 1 else ""
    ratio = "" if row["energy_ratio"] is None else f"{row['energy_ratio']:.2f}"
    return (
        f"{row['image']:14}{row['variant']:22}{row['peak_gb']:>9.2f}{predicted:>11}{libraries_gb:>11.2f}{files:>7}"
        f"{row['denoising_s']:>11.1f}{row['decoding_s']:>10.1f}"
        f"{row['energy_wh']:>8.3g}{bounds:>15}{spread:>15}{ratio:>7}"
    ).rstrip()


def shape_of(text: str) -> tuple[int, ...]:
    """A volume's shape for argparse."""
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) and int(side) % 32 == 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not three multiples of 32 such as 512x512x256")
    return tuple(map(int, sides))


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description="Memory, time and energy of a volume of MedLoRD's; about eleven minutes on two quiet cores.",
        epilog="example: python benchmarks/memory.py --image 256x256x128 --json > memory.json",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="64x64x32 once, in all ways: to see that it runs")
    parser.add_argument("--image", type=shape_of, default=(512, 512, 256), help="in slabs (default: 512x512x256)")
    parser.add_argument(
        "--beside", type=shape_of, default=(128, 128, 64), help="where all ways fit (default: 128x128x64)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the ways side by side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of denoising (default: %(default)s)")
    parser.add_argument("--slab-gb", type=float, default=1.0, help="of slabs being worked on (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for what slabs keep, 8.6 GB at the full size")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        given = json.loads(arguments.job)
        return run(Job(**{**given, "image": tuple(given["image"])}))
    beside, rounds = ((64, 64, 32), 1) if arguments.quick else (arguments.beside, arguments.rounds)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        job = partial(Job, steps=arguments.steps, slab_gb=arguments.slab_gb, threads=arguments.threads, folder=folder)
        rows = compared([job(variant, beside) for variant in (PLAIN, WHOLE, STREAMED)], rounds)
        rows += [] if arguments.quick else compared([job(STREAMED, arguments.image)], 1)
    report = {
        "benchmark": "memory",
        "steps": arguments.steps,
        "slab_gb": arguments.slab_gb,
        "threads": arguments.threads,
        "device": str(best_device()),
        "precision": resolve_precision("auto"),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "machine": machine(load_before),
        "rows": rows,
    }
    tell(report, table, as_json=arguments.json, quick=arguments.quick)
    return None


if __name__ == "__main__":
    main()
