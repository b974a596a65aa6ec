"""The stage that generates images which follow masks: of other images, or a user's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.audit.views import spread
from models.autoencode import load_autoencoder
from models.coding import decoding
from models.conditional.branch import load_branch, mask_channels
from models.data.cohort import load_cohort
from models.data.mask_files import mask_files, read_mask
from models.data.masks import label_map, thresholds
from models.device import autocast, best_device
from models.files import atomic_path
from models.networks.control import Controlled
from models.room import room_for_generation
from models.sample import Denoise, check_model, sampled, save_samples
from models.train import load_denoiser
from models.work import Work


def generate_controlled(
    plan: dict[str, Any],
    samples: int,
    masks_dir: str | Path | None,
    batch_size: int,
    slab_gb: float | None,
    precision: str,
    cohort_dir: str | Path,
    model_path: str | Path,
    autoencoder_path: str | Path,
    branch_path: str | Path,
    samples_path: str | Path,
    masks_path: str | Path,
    info_path: str | Path,
) -> Work:
    """Generate samples that follow masks, with the sampler and steps of a run, and from the noise of its samples.

    A mask is encoded once for all steps.

    Args:
        plan: row with `run`, `sampler`, `steps`, `seed` and what `check_model` compares.
        samples: one for each mask.
        masks_dir: folder of NIfTI label maps; None: the masks of images, see `masks_of_images`.
        batch_size, slab_gb, precision: as `generate_samples` takes them.
        cohort_dir: of the run.
        model_path: from `train_diffusion`.
        autoencoder_path: from `train_autoencoder`.
        branch_path: from `train_control`.
        samples_path: .npy, float32 in [-1, 1], (N, 1, *image).
        masks_path: .npy, uint8, (N, 1, *image): 0 where there is no label, else 1, 2, ...
        info_path: JSON: sampler, steps, passes, seed, labels with their ranges, and where each mask is from, see
            `gather_masks`.

    Raises:
        ValueError: if the model or branch is not of this run, a mask is not like those of the training, there are too
            few, or the memory is too small for the model.
    """
    base, of_base = load_denoiser(model_path)
    check_model(plan, of_base["plan"], model_path)
    network, state = load_branch(branch_path, base, of_base)
    masks, sources = gather_masks(samples, masks_dir, cohort_dir, state)
    autoencoder, autoencoder_flops = load_autoencoder(autoencoder_path)
    device = best_device()
    network, autoencoder = network.to(device), autoencoder.to(device)

    def denoiser_of(batch: slice) -> Denoise:
        maps = torch.from_numpy(masks[batch]).to(device)  # (n, 1, *image)
        channels = mask_channels(maps, network.labels, network.image_shape)  # (n, labels, *mask)
        with autocast(precision):
            return following(network, network.encode(channels))

    folder, asked = Path(samples_path).parent, {**plan, "samples": samples}
    room_for_generation(asked, of_base, base, autoencoder, batch_size, slab_gb, precision, folder)  # not of the branch
    decode = decoding(autoencoder, slab_gb, folder)
    images, passes = sampled(denoiser_of, plan, of_base, samples, batch_size, precision, decode)
    save_samples(images, samples_path)
    with atomic_path(masks_path) as temporary:
        np.save(temporary, masks)
    info = {key: plan[key] for key in ("run", "model", "sampler", "steps", "seed")}
    info |= {"samples": samples, "passes": passes, "labels": state["labels"], "masks": sources}
    with atomic_path(info_path) as temporary:
        temporary.write_text(json.dumps(info, indent=1))
    flops = state["flops"]["encode"] + passes * state["flops"]["predict"] + autoencoder_flops["decode"]
    return {
        "samples": samples,
        "voxels": int(images.size),
        "flops": samples * flops,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),  # of the frozen model as well
    }


def following(network: Controlled, control: Tensor) -> Denoise:
    """A denoiser of a batch that follows masks encoded before."""
    return lambda x, t: network.predict(x, t, control)


def gather_masks(
    samples: int, masks_dir: str | Path | None, cohort_dir: str | Path, state: dict[str, Any]
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Masks (N, 1, *image) to follow, and where each is from: `split` (`heldout`, `train` or `given`), `index` of the
    image in it, or the name of a `file`.

    Raises:
        ValueError: as `mask_files`, `read_mask` and `masks_of_images`.
    """
    if masks_dir is None:
        return masks_of_images(samples, cohort_dir, state)
    files = mask_files(masks_dir, samples)
    spacing_mm = state["spacing_mm"]
    masks = np.stack([read_mask(file, state["image_shape"], spacing_mm, state["labels"]) for file in files])
    return masks, [{"split": "given", "file": file.name} for file in files]


def masks_of_images(
    samples: int, cohort_dir: str | Path, state: dict[str, Any]
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Masks of held-out images, evenly spread over them; where they are too few, of training images, then of copies.

    Raises:
        ValueError: naming `control.samples`, if the cohort has fewer images, augmented copies counted.
    """
    cohort = load_cohort(cohort_dir)
    heldout, train, originals = len(cohort.heldout), len(cohort.train), cohort.info["images_train"]
    if samples > heldout + train:
        raise ValueError(
            f"control.samples: {samples} need a mask each, and {cohort.info['cohort']} has {heldout} held-out and "
            f"{train} training images, copies counted; ask for fewer, or give masks of your own"
        )
    sources: list[dict[str, Any]] = [{"split": "heldout", "index": i} for i in spread(samples, heldout)]
    for first, last in ((0, originals), (originals, train)):
        missing = samples - len(sources)
        sources += [{"split": "train", "index": first + i} for i in spread(missing, last - first)]
    ranges = thresholds(state["labels"], state["window"])
    images = [getattr(cohort, source["split"])[source["index"]] for source in sources]  # (1, *image) each
    return np.stack([label_map(image, ranges) for image in images]), sources
