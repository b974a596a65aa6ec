"""The config's `control`: checked before anything runs, without torch, since Snakemake asks while it parses."""

from collections.abc import Iterable, Mapping
from typing import Any

from models.data.masks import thresholds
from models.networks.sizes import downsampling

NOT_TRAINED = ("masks", "samples")  # keys that a trained branch does not depend on


def check_control(config: dict[str, Any], models: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a `control` that could not be trained or followed.

    Args:
        config: valid against the schema.
        models: rows of the plan's models.

    Raises:
        ValueError: naming the key: with sequences, with ranges that `thresholds` refuses, or with an embedding that
            does not lead from the images to the latents of a U-Net.
    """
    control, images = config["control"], config["images"]
    if not control["labels"]:
        return
    if images["frames"]:
        raise ValueError(f"control: follows masks of still images, and images.frames is {images['frames']}; use null")
    if images["source"] != "medmnist":  # whose window is that of the file
        thresholds(control["labels"], images["window"])
    for row in models:
        if row["family"] != "dit":
            dims = row["spatial_dims"]
            embedding_channels(control, downsampling(dims, f"{dims}d", config["autoencoder"]))


def embedding_channels(control: Mapping[str, Any], factors: Iterable[int]) -> list[int]:
    """As many of `control.channels` as take a mask to the size of a latent: all but the first halve it.

    Args:
        control: the config's section.
        factors: the autoencoder's downsampling along each axis.

    Raises:
        ValueError: naming the key, if they do not lead there: a U-Net's branch adds features of the latent's size.
    """
    sides, stride = sorted(set(factors)), control["initial_stride"]
    levels = max(1, (sides[0] // stride).bit_length())
    if len(sides) > 1 or stride * 2 ** (levels - 1) != sides[0]:
        raise ValueError(
            f"control.initial_stride: {stride}, and halvings after it, do not lead to the autoencoder's downsampling, "
            f"{' and '.join(map(str, sides))}, as the branch of a U-Net must"
        )
    if len(control["channels"]) < levels:
        raise ValueError(
            f"control.channels: has {len(control['channels'])} levels, and the branch of a U-Net needs {levels} to go "
            f"from the size of an image to that of a latent"
        )
    return list(control["channels"][:levels])
