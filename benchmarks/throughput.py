"""Training and sampling throughput of this pipeline against the plain MONAI way of doing the same.

Both sides have the same U-Net with the same weights, the same autoencoder, batch, noise schedule (linear,
T = 1000), target (epsilon) and number of DDIM steps. They take turns in one process.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import torch
import torch.nn.functional as F
import yaml
from accelerate.state import AcceleratorState
from monai.inferers import LatentDiffusionInferer
from monai.networks.nets import AutoencoderKL
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from timing import Round, alternate, now_s
from torch import Tensor, nn

from models.device import autocast, best_device, resolve_precision
from models.diffusion.process import ForwardProcess
from models.diffusion.sampling import make_scheduler, sample_latents
from models.loop import Training, make_accelerator, train
from models.networks.autoencoder import build_autoencoder
from models.networks.denoiser import build_denoiser
from models.networks.sizes import UNET_SIZES, downsampling
from models.networks.unet import UNet

CONFIG = Path(__file__).parents[1] / "config/config.yaml"
DIFFUSION = {"timesteps": 1000, "noise_schedule": "linear", "prediction": "epsilon"}
# the same betas, 1e-4 to 0.02
MONAI_DIFFUSION: dict[str, Any] = {"num_train_timesteps": 1000, "schedule": "linear_beta"}
SCALE = 1.0  # of latents: both sides multiply and divide by it
MONAI = "plain MONAI"


@dataclass(frozen=True)
class Case:
    """A problem that both sides solve."""

    spatial_dims: int
    resolution: int
    size: str
    training_batch: int
    training_steps: int  # timed in each round
    encoding_batch: int
    sampling_batch: int
    ddim_steps: int


@dataclass(frozen=True)
class Parts:
    """What both sides work with, on the device."""

    autoencoder: AutoencoderKL
    denoiser: UNet  # `denoiser.unet` is MONAI's own network
    images: Tensor  # (N, 1, *image)
    latents: Tensor  # (N, C, *latent)


def build_parts(case: Case, config: dict[str, Any]) -> Parts:
    """Networks of the default study with random weights; random images and latents of the right shapes."""
    torch.manual_seed(0)
    settings, device = config["autoencoder"], best_device()
    factors = downsampling(case.spatial_dims, f"{case.spatial_dims}d", settings)
    latent_shape = tuple(case.resolution // factor for factor in factors)
    channels, items = settings["latent_channels"][f"{case.spatial_dims}d"], 2 * case.training_batch
    row = {"family": "unet", "size": case.size}
    denoiser = build_denoiser(row, latent_shape, channels, config["diffusion"]["patch"])
    assert isinstance(denoiser, UNet)
    return Parts(
        autoencoder=build_autoencoder(case.spatial_dims, settings).eval().to(device),
        denoiser=denoiser.to(device),
        images=(torch.rand(items, 1, *(case.resolution,) * case.spatial_dims) * 2 - 1).to(device),
        latents=torch.randn(items, channels, *latent_shape).to(device),
    )


def monai_training(case: Case, parts: Parts, learning_rate: float) -> float:
    """Images per second of MONAI's tutorial loop: the inferer encodes the images of every batch; float32."""
    network = copy.deepcopy(parts.denoiser.unet).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    inferer = LatentDiffusionInferer(DDPMScheduler(**MONAI_DIFFUSION), scale_factor=SCALE)
    began = 0.0
    for step in range(1 + case.training_steps):
        if step == 1:  # the first step allocates the optimizer's state
            began = now_s()
        x = parts.images[torch.randint(len(parts.images), (case.training_batch,))]  # (N, 1, *image)
        noise = torch.randn(len(x), *parts.latents.shape[1:], device=x.device)  # (N, C, *latent)
        t = torch.randint(inferer.scheduler.num_train_timesteps, (len(x),), device=x.device)  # (N,)
        optimizer.zero_grad(set_to_none=True)
        prediction = inferer(
            inputs=x, autoencoder_model=parts.autoencoder, diffusion_model=network, noise=noise, timesteps=t
        )  # (N, C, *latent)
        F.mse_loss(prediction.float(), noise.float()).backward()
        optimizer.step()
    return case.training_steps * case.training_batch / (now_s() - began)


def our_training(case: Case, parts: Parts, settings: dict[str, Any], precision: str) -> float:
    """Images per second of `models.loop.train` on cached latents, clipping and averaging as in a study."""
    AcceleratorState._reset_state()  # accelerate allows one precision per process, and here they take turns
    network, process = copy.deepcopy(parts.denoiser), ForwardProcess(DIFFUSION)
    marks: list[float] = []

    def loss(denoiser: nn.Module, batch: Tensor, noise_stream: torch.Generator) -> Tensor:
        if len(marks) < 2:
            marks.append(now_s())  # the second is where the second step begins: the first allocates
        # From here on as in models.train.train_here
        x = parts.latents[batch]  # (N, C, *latent)
        noise = torch.randn(x.shape, generator=noise_stream).to(x)
        t = process.draw_times(len(x), noise_stream, x.device)  # (N,)
        prediction = denoiser(process.add_noise(x, noise, t), t)  # (N, C, *latent)
        return F.smooth_l1_loss(prediction.float(), process.target(x, noise, t))

    length = Training(
        images=(1 + case.training_steps) * case.training_batch,
        batch_size=case.training_batch,
        learning_rate=settings["learning_rate"],
        ema_decay=settings["ema_decay"],
        precision=precision,
    )
    accelerator, items = make_accelerator(precision), len(parts.latents)
    with tempfile.TemporaryDirectory() as folder:
        train(network, loss, items, length, accelerator, Path(folder) / "checkpoint.pt", "", "throughput")
    return case.training_steps * case.training_batch / (now_s() - marks[1])


def encoding(case: Case, parts: Parts) -> float:
    """Images per second of encoding each image once, which cached latents cost; as `encode_latents` does."""
    began = now_s()
    with torch.inference_mode():
        for x in parts.images.split(case.encoding_batch):  # (n, 1, *image)
            parts.autoencoder.encode(x)[0].cpu()
    return len(parts.images) / (now_s() - began)


def monai_sampling(case: Case, parts: Parts) -> float:
    """Images per second of MONAI's inferer with DDIM: a batch is denoised, then decoded whole; float32."""
    scheduler = DDIMScheduler(**MONAI_DIFFUSION, clip_sample=False)
    scheduler.set_timesteps(case.ddim_steps)
    inferer = LatentDiffusionInferer(scheduler, scale_factor=SCALE)
    network, shape = parts.denoiser.unet.eval(), parts.latents.shape[1:]
    noise = torch.randn(case.sampling_batch, *shape, device=best_device())  # (N, C, *latent)
    began = now_s()
    images = inferer.sample(noise, parts.autoencoder, network, scheduler, verbose=False)  # (N, 1, *image)
    assert isinstance(images, Tensor)  # and not intermediates, which were not asked for
    images.cpu()
    return case.sampling_batch / (now_s() - began)


def our_sampling(case: Case, parts: Parts, precision: str) -> float:
    """Images per second as in `generate_samples`: a batch is denoised, then decoded one by one in float32."""
    network, shape = parts.denoiser.eval(), parts.latents.shape[1:]
    noise = torch.randn(case.sampling_batch, *shape, device=best_device())  # (N, C, *latent)
    began = now_s()
    scheduler = make_scheduler("ddim", DIFFUSION)
    with torch.inference_mode():
        with autocast(precision):
            latents = sample_latents(network, noise, scheduler, case.ddim_steps)  # (N, C, *latent)
        for latent in latents.float().split(1):  # (1, C, *latent)
            parts.autoencoder.decode(latent / SCALE).cpu()  # (1, 1, *image)
    return case.sampling_batch / (now_s() - began)


def comparisons(case: Case, parts: Parts, config: dict[str, Any]) -> dict[str, dict[tuple[str, str], Round]]:
    """By phase: alternatives by (name, precision), from the plain one to ours."""
    diffusion, auto = config["diffusion"], resolve_precision("auto")
    return {
        "training": {
            (MONAI, "fp32"): lambda: monai_training(case, parts, diffusion["learning_rate"]),
            ("ours, float32", "fp32"): lambda: our_training(case, parts, diffusion, "fp32"),
            ("ours", auto): lambda: our_training(case, parts, diffusion, auto),
        },
        "encoding": {("ours, once per image", "fp32"): lambda: encoding(case, parts)},
        "sampling": {
            (MONAI, "fp32"): lambda: monai_sampling(case, parts),
            ("ours, float32", "fp32"): lambda: our_sampling(case, parts, "fp32"),
            ("ours", auto): lambda: our_sampling(case, parts, auto),
        },
    }


def measure(case: Case, config: dict[str, Any], budget_s: float, at_least: int) -> list[dict[str, Any]]:
    """Rows of one case. Ratios are quotients of median throughputs of the same run."""
    parts, rows = build_parts(case, config), []
    for phase, alternatives in comparisons(case, parts, config).items():
        print(f"{case.spatial_dims}D {case.resolution}: {phase} ...", file=sys.stderr, flush=True)
        named = {name: run for (name, _), run in alternatives.items()}
        rates = alternate(named, budget_s / 5 if phase == "encoding" else budget_s, at_least)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        above = None
        for name, precision in alternatives:
            rows.append(
                {
                    "spatial_dims": case.spatial_dims,
                    "resolution": case.resolution,
                    "phase": phase,
                    "variant": name,
                    "precision": precision,
                    "batch_size": getattr(case, f"{phase}_batch"),
                    "rounds": len(rates[name]),
                    "images_per_s_min": min(rates[name]),
                    "images_per_s_median": medians[name],
                    "ratio_to_monai": medians[name] / medians[MONAI] if MONAI in medians else None,
                    "ratio_to_row_above": medians[name] / medians[above] if above else None,
                }
            )
            above = name
    return rows


def cases(config: dict[str, Any], size: str, quick: bool) -> list[Case]:
    """2D and 3D at the default study's batches; `quick`: as little as still runs every line."""
    if quick:
        # Not 16: PyTorch 2.13's bf16 Conv3d on CPUs has undefined weight gradients at depth 2
        return [Case(dims, 24, "nano", 2, 1, 2, 2, 2) for dims in (2, 3)]
    return [
        Case(
            spatial_dims=dims,
            resolution=resolution,
            size=size,
            training_batch=config["diffusion"]["batch_size"][f"{dims}d"],
            training_steps=steps,
            encoding_batch=config["autoencoder"]["batch_size"][f"{dims}d"],
            sampling_batch=config["sampling"]["batch_size"][f"{dims}d"],
            ddim_steps=10,
        )
        for dims, resolution, steps in ((2, 64, 5), (3, 40, 2))
    ]


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    head = "{size} U-Net, {ddim_steps} DDIM steps, {threads} threads, {device}, torch {torch}, MONAI {monai}"
    lines = [head.format(**report)]
    lines += ["QUICK: checks that it runs; its figures mean nothing"] if report["quick"] else []
    lines += ["", f"{'images/s':>61}{'ratio to':>20}"]
    lines += [f"{'batch':>37}{'rounds':>8}{'min':>10}{'median':>10}{'MONAI':>11}{'row above':>11}"]
    section = None
    for row in report["rows"]:
        title = f"{row['spatial_dims']}D {row['resolution']} {row['phase']}"
        lines += [title] if title != section else []
        section = title
        ratios = (row["ratio_to_monai"], row["ratio_to_row_above"])
        shown = "".join(f"{'' if ratio is None else f'{ratio:.2f} x':>11}" for ratio in ratios)
        lines += [
            f"  {row['variant']:22}{row['precision']:6}{row['batch_size']:>7}{row['rounds']:>8}"
            f"{row['images_per_s_min']:>10.2f}{row['images_per_s_median']:>10.2f}{shown}".rstrip()
        ]
    return "\n".join(lines)


def at_least_one(kind: Callable[[str], float]) -> Callable[[str], Any]:
    """A number for argparse, 1 or more."""

    def number(text: str) -> float:
        value = kind(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{text} is below 1")
        return value

    number.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return number


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description="Training and sampling throughput against plain MONAI; two minutes on two quiet cores.",
        epilog="example: python benchmarks/throughput.py --size tiny --json > throughput.json",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds: to see that it runs")
    parser.add_argument("--size", choices=UNET_SIZES, default="tiny", help="of U-Net (default: %(default)s)")
    parser.add_argument("--threads", type=at_least_one(int), default=2, help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=at_least_one(float),
        default=15,
        help="per phase of 2D and of 3D (default: %(default)s)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = yaml.safe_load(CONFIG.read_text())
    chosen = cases(config, arguments.size, arguments.quick)
    budget_s, at_least = (0.0, 2) if arguments.quick else (arguments.seconds, 3)
    report = {
        "benchmark": "throughput",
        "quick": arguments.quick,
        "size": chosen[0].size,
        "ddim_steps": chosen[0].ddim_steps,
        "device": str(best_device()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "rows": [row for case in chosen for row in measure(case, config, budget_s, at_least)],
    }
    print(json.dumps(report, indent=1) if arguments.json else table(report))


if __name__ == "__main__":
    main()
