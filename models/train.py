"""The stage that trains a denoiser on cached latents."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import checkpoint
from models.control import LeftError, control_of
from models.diffusion.process import ForwardProcess
from models.files import atomic_path
from models.loop import Training, make_accelerator, train
from models.networks.denoiser import build_denoiser, count_parameters, multiples
from models.networks.presets import PRESETS
from models.networks.sizes import UNET_SIZES
from models.padding import pad_to, padded
from models.room import room_for_diffusion
from models.work import TRAINING_PASSES, Work, count_flops

logger = logging.getLogger(__name__)


def train_diffusion(
    plan: dict[str, Any],
    settings: dict[str, Any],
    training: dict[str, Any],
    latents_path: str | Path,
    model_path: str | Path,
    info_path: str | Path,
    control_path: str | Path | None = None,
) -> Work:
    """Train the denoiser of a plan row, in this process or, for several devices, in one process each.

    Args:
        plan: row with `model`, `family`, `size`, `spatial_dims`, `devices`, `seed`.
        settings: the config's `diffusion`.
        training: the config's `training`.
        latents_path: from `encode_latents`.
        model_path: the averaged weights, and what rebuilds the network.
        info_path: JSON: work done and the losses.
        control_path: file that may tell it to pause or stop, see `models.control`.

    Raises:
        ValueError: if there are GPUs, but fewer than the plan's devices.
        RuntimeError: if one of several processes fails.
        StoppedError: if told to stop; a checkpoint is written.
    """
    arguments: dict[str, Any] = {
        "plan": plan,
        "settings": settings,
        "training": training,
        "latents_path": str(latents_path),
        "model_path": str(model_path),
        "info_path": str(info_path),
        "control_path": None if control_path is None else str(control_path),
    }
    if plan["devices"] == 1:
        train_here(**arguments)
    else:
        launch(plan["devices"], arguments)
    work: Work = json.loads(Path(info_path).read_text())["work"]
    return work


def launch(devices: int, arguments: dict[str, Any]) -> None:
    """Run `train_here` in one process per device, as `torchrun` does; on CPUs the processes share the cores."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < devices:
        raise ValueError(f"matrix.devices: {devices} asked for, but this machine shows {gpus} GPUs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={devices}"]
    command += ["-m", "models.train", json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // devices))}
    if not gpus:
        environment |= {"ACCELERATE_USE_CPU": "true"}
    control, refused = control_of(arguments.get("control_path")), refusal(arguments["info_path"])
    refused.unlink(missing_ok=True)
    while True:
        if control is not None:
            control.left_path.unlink(missing_ok=True)  # of an attempt that was killed, or of the last turn
        finished = subprocess.run(command, env=environment, check=False)
        if control is None or not control.left_path.exists():
            break
        control.wait(arguments["plan"]["model"])
    if refused.exists():
        text = refused.read_text()
        refused.unlink()
        raise ValueError(text)
    if finished.returncode:
        raise RuntimeError(f"one of {devices} training processes failed with status {finished.returncode}")


def refusal(info_path: str) -> Path:
    """Where one of several processes says why it does not begin: all that is left of its error is a status."""
    return Path(info_path).with_suffix(".refused")


def cores() -> int:
    """Cores that this process may use, as Snakemake set them."""
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def train_here(
    plan: dict[str, Any],
    settings: dict[str, Any],
    training: dict[str, Any],
    latents_path: str,
    model_path: str,
    info_path: str,
    control_path: str | None = None,
) -> None:
    """Train in this process, which may be one of several; the first of them writes the results."""
    dims = f"{plan['spatial_dims']}d"
    cached = checkpoint.load(latents_path)
    channels, encoded_shape = cached["latents"].shape[1], tuple(cached["latents"].shape[2:])
    latent_shape = padded(encoded_shape, multiples(plan, len(encoded_shape), settings["patch"]))
    if latent_shape != encoded_shape:
        logger.info("%s: latents of %s are padded to %s, and cropped back", plan["model"], encoded_shape, latent_shape)
    accelerator = make_accelerator(training["precision"], level_depths(plan, latent_shape))
    latents = pad_to(cached["latents"], latent_shape)  # (N, C, *latent), on the host, which has more memory
    torch.manual_seed(plan["seed"])  # of the initial weights
    network = build_denoiser(plan, latent_shape, channels, settings["patch"], training["activation_checkpointing"])
    room_for_diffusion(plan, settings, training, network, tuple(latents.shape))
    process = ForwardProcess(settings)

    def loss(denoiser: nn.Module, batch: Tensor, noise_stream: torch.Generator) -> Tensor:
        x = latents[batch.cpu()].to(batch.device)  # (N, C, *latent)
        noise = torch.randn(x.shape, generator=noise_stream).to(x)
        t = process.draw_times(len(x), noise_stream, x.device)  # (N,)
        prediction = denoiser(process.add_noise(x, noise, t), t)  # (N, C, *latent)
        return F.smooth_l1_loss(prediction.float(), process.target(x, noise, t))

    length = Training.of(settings, training, dims, plan["seed"])
    resume_path = Path(model_path).with_name("checkpoint.pt")
    identity = checkpoint.identity_of(plan, settings, cached["scale"], list(latents.shape))
    control = control_of(control_path)
    result = train(network, loss, len(latents), length, accelerator, resume_path, identity, plan["model"], control)
    if accelerator.is_main_process:
        weights = result.network.cpu().state_dict()
        rebuild = {"latent_shape": list(latent_shape), "encoded_shape": list(encoded_shape)}
        rebuild |= {"image_shape": cached["image_shape"]}
        rebuild |= {"latent_channels": channels, "scale": cached["scale"]}
        flops = count_flops(network, (1, channels, *latent_shape), (1,))  # of one pass, here and in sampling
        checkpoint.save({"plan": plan, "settings": settings, "flops": flops, **rebuild, "weights": weights}, model_path)
        parameters = count_parameters(network)
        passes = TRAINING_PASSES + training["activation_checkpointing"]  # blocks are computed once more
        work: Work = {
            "images_seen": result.images_seen,
            "images_resumed": result.images_resumed,
            "resumed_from": result.resumed_from,
            "checkpoints": result.checkpoints,
            "checkpoint_s": result.checkpoint_s,
            "flops": result.images_seen * passes * flops,
            "parameters": parameters,
        }
        info = {
            "work": work,
            "images_resumed": result.images_resumed,
            "losses": result.losses,
            "processes": accelerator.num_processes,
        }
        with atomic_path(info_path) as temporary:
            temporary.write_text(json.dumps(info, indent=1))
        resume_path.unlink(missing_ok=True)
    accelerator.end_training()


def level_depths(plan: dict[str, Any], latent_shape: tuple[int, ...]) -> list[int]:
    """Length of the first axis that a U-Net of three convolves, at each of its levels; none for other networks."""
    if plan["family"] == "dit" or len(latent_shape) < 3:
        return []
    preset = PRESETS.get(plan["size"])
    size: Any = preset.size if preset else UNET_SIZES[plan["size"]]
    return [latent_shape[-3] // 2**level for level in range(len(size.channels))]


def load_denoiser(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained denoiser in a file, ready for use, and its state: plan, settings, latent shape, scale, flops.

    Raises:
        ValueError: naming the file, if it is not readable, or of another network than it says.
    """
    state = checkpoint.load(path)
    network = build_denoiser(
        state["plan"], tuple(state["latent_shape"]), state["latent_channels"], state["settings"]["patch"]
    )
    try:
        network.load_state_dict(state["weights"])
    except RuntimeError as error:
        name = f"{state['plan']['family']} {state['plan']['size']}"
        raise ValueError(f"{path}: holds the weights of another network than {name}; train it again") from error
    return network.eval(), state


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train_here(**json.loads(sys.argv[1]))
    except LeftError as left:
        logger.info("%s", left)
    except ValueError as error:
        refusal(json.loads(sys.argv[1])["info_path"]).write_text(str(error))
        sys.exit(2)
