"""The audit stage of images that were to follow masks: do they?"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.audit.cardiac import Adherence, mask_adherence
from models.audit.pictures import save_picture
from models.audit.views import Images, load_images
from models.autoencode import load_autoencoder
from models.coding import decoding, encoding, slab_of
from models.data.cohort import Cohort, load_cohort
from models.data.masks import label_map, thresholds
from models.device import best_device
from models.files import atomic_path
from models.padding import crop_to, pad_to, padded

FIGURES = ("dice_own", "dice_other", "dice_reconstruction")


def audit_adherence(
    *,
    run: str,
    samples_path: str | Path,
    masks_path: str | Path,
    info_path: str | Path,
    cohort_dir: str | Path,
    autoencoder_path: str | Path,
    settings: Mapping[str, Any],
    adherence_path: str | Path,
    picture_path: str | Path,
) -> dict[str, int]:
    """Dice between the thresholds' maps of a run's samples and the masks that they were to follow, and a picture.

    Three figures, as means over samples and labels, and for each label: `dice_own`, with the own mask; `dice_other`,
    with another sample's, what a model that ignores its mask would reach; `dice_reconstruction`, of the very images
    that the masks are from, after the autoencoder: about the most that can be asked for, and null for masks from files.
    `followed` is the share of samples that fit their own mask better. See `models.data.masks` for what thresholds show.

    Args:
        run: key of the run, copied into the result.
        samples_path, masks_path, info_path: from `generate_controlled`.
        cohort_dir: of the run.
        autoencoder_path: from `train_autoencoder`.
        settings: `picture_samples`.
        adherence_path: JSON; a figure that cannot be had is null, and `not_computed` says why.

    Returns:
        The work done: images segmented.

    Raises:
        OSError, ValueError: a file that is missing or damaged, or files that are not of each other.
    """
    samples, masks = load_images(samples_path).array, load_images(masks_path).array.astype(np.uint8)
    info, cohort = json.loads(Path(info_path).read_text(encoding="utf-8")), load_cohort(cohort_dir)
    ranges = thresholds(info["labels"], cohort.info["window"])
    measure = partial(mask_adherence, segment=partial(label_map, ranges=ranges), labels=range(1, len(ranges) + 1))
    report = describe(run, info, cohort)
    if not np.isfinite(samples).all():
        report["not_computed"] = "any figure: samples hold values that are not finite"
    else:
        found = measure(samples, masks)
        note(report, found, ("dice_own", "dice_other"))
        report["followed"] = found.followed
        if report["masks_given"]:
            report["not_computed"] = "dice_reconstruction: masks from files have no images"
        else:
            real = reconstructions(cohort, info["masks"], autoencoder_path, Path(adherence_path).parent)
            note(report, measure(real, masks), ("dice_reconstruction",))
    draw(samples, masks, list(info["labels"]), cohort.info["spacing_mm"], settings["picture_samples"], picture_path)
    with atomic_path(adherence_path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return {"images_seen": len(samples)}


def describe(run: str, info: Mapping[str, Any], cohort: Cohort) -> dict[str, Any]:
    """The report with its counts filled in and every figure null."""
    splits = Counter(source["split"] for source in info["masks"])
    return {
        "run": run,
        "cohort": cohort.info["cohort"],
        "samples": info["samples"],
        **{f"masks_{split}": splits[split] for split in ("heldout", "train", "given")},
        "unit": cohort.info["unit"],
        **dict.fromkeys((*FIGURES, "followed")),
        "labels": {name: {"range": bounds, **dict.fromkeys(FIGURES)} for name, bounds in info["labels"].items()},
        "not_computed": "",
    }


def note(report: dict[str, Any], found: Adherence, names: Sequence[str]) -> None:
    """Write means into a report, of all labels and of each, under the names for the own and the other mask."""
    for column, entry in enumerate(report["labels"].values()):
        of_label = Adherence(found.own[:, [column]], found.other[:, [column]])
        entry |= dict(zip(names, (of_label.mean_own, of_label.mean_other), strict=False))
    report |= dict(zip(names, (found.mean_own, found.mean_other), strict=False))


@torch.inference_mode()
def reconstructions(
    cohort: Cohort, sources: Sequence[Mapping[str, Any]], autoencoder_path: str | Path, folder: Path
) -> NDArray[np.float32]:
    """Images of a cohort after its autoencoder, (N, 1, *image), one at a time and large ones slab by slab.

    Args:
        sources: `split` and `index` of each.
        folder: for what is kept between slabs, in temporary files.
    """
    device = best_device()
    autoencoder, _ = load_autoencoder(autoencoder_path)
    autoencoder = autoencoder.to(device)
    image_shape = cohort.train.shape[2:]
    shape, images = padded(image_shape, autoencoder.downsampling), []
    encode, decode = (code(autoencoder, slab_of(shape), folder) for code in (encoding, decoding))
    for source in sources:
        image = np.array(getattr(cohort, source["split"])[[source["index"]]])  # (1, 1, *image)
        latents = encode(pad_to(torch.from_numpy(image), shape))  # (1, C, *latent)
        images.append(crop_to(decode(latents.to(device)), image_shape))  # (1, 1, *image)
    return torch.cat(images).clamp(-1, 1).numpy()


def draw(
    samples: NDArray[np.float32],
    masks: NDArray[np.uint8],
    labels: Sequence[str],
    spacing_mm: Sequence[float] | None,
    count: int,
    path: str | Path,
) -> None:
    """Masks, labels as greys, above the samples that followed them, in one order."""
    each = max(1, count // 2)
    greys = np.asarray(2 * masks[:each] / len(labels) - 1, np.float32)
    sections = [
        (f"masks, from dark to light: {', '.join(labels)}", Images(greys)),
        ("samples that were to follow them", Images(samples[:each])),
    ]
    save_picture(path, sections, spacing_mm)
