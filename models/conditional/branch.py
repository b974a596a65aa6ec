"""The branch of a trained denoiser: built, counted, saved, and loaded beside the very weights it was trained with."""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models import checkpoint
from models.conditional.choice import embedding_channels
from models.networks.control import Controlled, label_channels
from models.networks.control_adapter import ControlAdapter
from models.networks.controlnet import LightControlNet
from models.networks.dit import DiT
from models.networks.presets import PRESETS
from models.networks.sizes import UNET_SIZES
from models.padding import pad_to
from models.recompute import with_checkpointing
from models.work import count_flops


def build_branch(
    base: nn.Module, of_base: Mapping[str, Any], settings: Mapping[str, Any], labels: int, mask_shape: tuple[int, ...]
) -> Controlled:
    """A new branch: VolDiT's adapter for a transformer, MedLoRD's light ControlNet for a U-Net.

    Args:
        base: from `load_denoiser`.
        of_base: its state, from there.
        settings: the config's `control`.
        labels: how many.
        mask_shape: of the masks as the branch sees them: a latent's shape times the autoencoder's downsampling.

    Raises:
        ValueError: if the embedding does not lead from masks to latents.
    """
    if isinstance(base, DiT):
        return ControlAdapter(base, labels, mask_shape, settings["channels"])
    name = of_base["plan"]["size"]
    size: Any = PRESETS[name].size if name in PRESETS else UNET_SIZES[name]
    factors = (side // cells for side, cells in zip(mask_shape, of_base["latent_shape"], strict=True))
    channels = embedding_channels(settings, factors)
    return LightControlNet(base, size, labels, mask_shape, settings["ratio"], channels, settings["initial_stride"])  # type: ignore[arg-type]


def checkpoint_activations(network: Controlled) -> None:
    """Keep no activations inside blocks for the backward pass, neither of the branch nor of its base."""
    with_checkpointing(network.base if isinstance(network.base, DiT) else network)


class WithoutMasks(nn.Module):
    """A branch and its denoiser as a denoiser, with empty masks: takes the memory that it takes with others."""

    def __init__(self, network: Controlled) -> None:
        super().__init__()
        self.network = network

    @property
    def checkpointing(self) -> bool:
        """Asked for by setting it, as of other networks; see `models.recompute.with_checkpointing`."""
        return False

    @checkpointing.setter
    def checkpointing(self, _: bool) -> None:
        checkpoint_activations(self.network)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # (N, C, *latent), (N,) -> (N, C, *latent)
        """Predict for latents at noise levels."""
        prediction: Tensor = self.network(x, t, x.new_zeros((len(x), self.network.labels, *self.network.image_shape)))
        return prediction


def mask_channels(masks: Tensor, labels: int, mask_shape: tuple[int, ...]) -> Tensor:
    """Label maps (N, 1, *image) as a branch takes them, (N, labels, *mask): padded as images are before encoding."""
    return pad_to(label_channels(masks, labels), mask_shape)


def branch_flops(network: Controlled, latents: tuple[int, ...]) -> dict[str, int]:
    """Operations for one sample: `encode` of its mask, once; `predict`, at each step; `training`, of each image seen.

    Training is counted over its forward and backward pass as they are: the backward pass goes through what of the
    frozen base comes after the branch, but not to its weights, so that no factor of the forward pass would be right.

    Args:
        network: counted in a copy.
        latents: (C, *latent).
    """
    mask = (1, network.labels, *network.image_shape)
    encode = count_flops(network, mask, method="encode")
    whole = count_flops(network, (1, *latents), (1,), mask)
    copied = copy.deepcopy(network).to("meta").train()
    x, t, control = (torch.empty(shape, device="meta") for shape in ((1, *latents), (1,), mask))
    with FlopCounterMode(display=False) as counter:
        copied(x, t, control).sum().backward()
    return {"encode": encode, "predict": whole - encode, "training": int(counter.get_total_flops())}


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Digest of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_branch(network: nn.Module, about: dict[str, Any], path: str | Path) -> None:
    """Write the branch without its base, and what `load_branch` needs beside.

    Args:
        network: from `build_branch`, trained.
        about: `model` (its key), `base` (digest of its weights), `settings`, `labels` (name to range, in the images'
            unit), `window`, `unit`, `image_shape`, `mask_shape`, `spacing_mm`, `flops`.
    """
    weights = {name: value.cpu() for name, value in network.state_dict().items() if not name.startswith("base.")}
    checkpoint.save({**about, "weights": weights}, path)


def load_branch(path: str | Path, base: nn.Module, of_base: Mapping[str, Any]) -> tuple[Controlled, dict[str, Any]]:
    """The trained branch in a file beside its denoiser, ready for use, and its state: see `save_branch`.

    Args:
        path: from `train_control`.
        base: from `load_denoiser`.
        of_base: its state, from there.

    Raises:
        ValueError: naming the file, if it is not readable, or was trained beside another model or other weights.
    """
    state = checkpoint.load(path)
    if state["model"] != of_base["plan"]["model"]:
        raise ValueError(f"{path}: is of model {state['model']}, not of {of_base['plan']['model']}")
    if state["base"] != digest_of(of_base["weights"]):
        raise ValueError(f"{path}: {state['model']} was trained anew since; delete it and run train_control again")
    network = build_branch(base, of_base, state["settings"], len(state["labels"]), tuple(state["mask_shape"]))
    network.load_state_dict({**network.state_dict(), **state["weights"]})
    return network.eval(), state
