"""The stage that teaches a trained denoiser to follow masks: a branch learns beside it, the denoiser stays as it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models import checkpoint
from models.autoencode import load_autoencoder
from models.conditional.branch import (
    WithoutMasks,
    branch_flops,
    build_branch,
    checkpoint_activations,
    digest_of,
    mask_channels,
    save_branch,
)
from models.control import control_of
from models.data.cohort import load_cohort
from models.data.masks import Thresholds, label_map, thresholds
from models.diffusion.process import ForwardProcess
from models.files import atomic_path
from models.loop import Loss, Training, make_accelerator, train
from models.networks.control import drop_labels
from models.networks.denoiser import count_parameters
from models.padding import pad_to
from models.room import room_for_diffusion
from models.train import level_depths, load_denoiser
from models.work import Work


def train_control(
    plan: dict[str, Any],
    settings: dict[str, Any],
    training: dict[str, Any],
    cohort_dir: str | Path,
    latents_path: str | Path,
    autoencoder_path: str | Path,
    model_path: str | Path,
    branch_path: str | Path,
    info_path: str | Path,
    control_path: str | Path | None = None,
) -> Work:
    """Train the branch of a model on its cached latents and the masks of the images behind them.

    The loss is that of the denoiser, Smooth-L1 between its prediction and the target at a random noise level. In one
    process, whatever the plan's devices: a branch is small beside its model.

    Args:
        plan: row with `model`, `family`, `size`, `spatial_dims`, `seed`.
        settings: the config's `control`.
        training: the config's `training`.
        cohort_dir: with train.npy, in the order of the latents, and cohort.json.
        latents_path: from `encode_latents`.
        autoencoder_path: from `train_autoencoder`.
        model_path: from `train_diffusion`.
        branch_path: the averaged weights of the branch, and what masks have to be like.
        info_path: JSON: work done and the losses.
        control_path: file that may tell it to pause or stop, see `models.control`.

    Raises:
        ValueError: if labels do not go with the cohort's window, latents and images are not of one cohort, or the
            memory is too small.
        StoppedError: if told to stop; a checkpoint is written.
    """
    cohort, cached = load_cohort(cohort_dir), checkpoint.load(latents_path)
    if len(cohort.train) != len(cached["latents"]):
        raise ValueError(
            f"{latents_path}: has {len(cached['latents'])} latents, and the cohort {len(cohort.train)} images; delete "
            f"it and run encode_latents again"
        )
    ranges, dims = thresholds(settings["labels"], cohort.info["window"]), f"{plan['spatial_dims']}d"
    base, of_base = load_denoiser(model_path)
    autoencoder, _ = load_autoencoder(autoencoder_path)
    latent_shape = tuple(of_base["latent_shape"])
    mask_shape = tuple(side * factor for side, factor in zip(latent_shape, autoencoder.downsampling, strict=True))
    torch.manual_seed(plan["seed"])  # of the initial weights
    network = build_branch(base, of_base, settings, len(ranges), mask_shape)
    if training["activation_checkpointing"]:
        checkpoint_activations(network)
    encoder_depths = [mask_shape[0] // 2**level for level in range(len(settings["channels"]) * (dims == "3d"))]
    accelerator = make_accelerator(training["precision"], [*level_depths(plan, latent_shape), *encoder_depths])
    latents = pad_to(cached["latents"], latent_shape)  # (N, C, *latent), on the host, which has more memory
    shape, alone = tuple(latents.shape), {**plan, "devices": 1, "model": f"{plan['model']} control"}
    room_for_diffusion(alone, settings, training, WithoutMasks(network), shape, section="control")
    loss = objective(latents, cohort.train, ranges, mask_shape, settings, ForwardProcess(of_base["settings"]))
    length = Training.of(settings, training, dims, plan["seed"])
    resume_path = Path(branch_path).with_name("control_checkpoint.pt")
    base_digest = digest_of(of_base["weights"])
    order = list(settings["labels"])  # which is that of the channels, and no part of the identity of a mapping
    identity = checkpoint.identity_of(plan, settings, order, base_digest, cohort.info, list(latents.shape))
    name, told = f"{plan['model']} control", control_of(control_path)
    result = train(network, loss, len(latents), length, accelerator, resume_path, identity, name, told)

    flops = branch_flops(network, tuple(latents.shape[1:]))
    about = {"model": plan["model"], "base": base_digest, "settings": settings, "labels": settings["labels"]}
    about |= {key: cohort.info[key] for key in ("window", "unit", "spacing_mm")}
    about |= {"image_shape": list(cohort.train.shape[2:]), "mask_shape": list(mask_shape), "flops": flops}
    save_branch(result.network, about, branch_path)
    work: Work = {
        "images_seen": result.images_seen,
        "images_resumed": result.images_resumed,
        "resumed_from": result.resumed_from,
        "checkpoints": result.checkpoints,
        "checkpoint_s": result.checkpoint_s,
        "flops": result.images_seen * flops["training"],
        "parameters": count_parameters(network),
    }
    with atomic_path(info_path) as temporary:
        temporary.write_text(json.dumps({"work": work, "losses": result.losses}, indent=1))
    resume_path.unlink(missing_ok=True)
    return work


def objective(
    latents: Tensor,
    images: NDArray[np.float32],
    ranges: Thresholds,
    mask_shape: tuple[int, ...],
    settings: dict[str, Any],
    process: ForwardProcess,
) -> Loss:
    """The loss of a batch of latents (N, C, *latent), with the masks of the images (N, 1, *image) behind them."""

    def loss(controlled: nn.Module, batch: Tensor, noise_stream: torch.Generator) -> Tensor:
        x = latents[batch.cpu()].to(batch.device)  # (n, C, *latent)
        maps = label_map(np.stack([images[i] for i in batch.tolist()]), ranges)  # (n, 1, *image)
        mask = mask_channels(torch.from_numpy(maps), len(ranges), mask_shape).to(x.device)  # (n, labels, *mask)
        mask = drop_labels(mask, noise_stream, settings["drop_whole"], settings["drop_each"])
        noise = torch.randn(x.shape, generator=noise_stream).to(x)
        t = process.draw_times(len(x), noise_stream, x.device)  # (n,)
        prediction = controlled(process.add_noise(x, noise, t), t, mask)  # (n, C, *latent)
        return F.smooth_l1_loss(prediction.float(), process.target(x, noise, t))

    return loss
