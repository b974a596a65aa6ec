"""Real and generated pictures of each cohort, for the page, with the patients behind them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, UnidentifiedImageError

from emissions.allocation import dims_name, sample_kind
from emissions.figures.cost import sampler_label
from emissions.figures.quality import FID_NAME
from emissions.figures.theme import (
    a_unit,
    family_name,
    has_value,
    mass_text,
    shape_name,
    significant,
    size_rank,
)
from emissions.findings import plural


def read_cohort(path: str | Path) -> dict[str, Any]:
    try:
        info = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it and run prepare_cohort again") from error
    wanted = (
        "cohort",
        "images",
        "spatial_dims",
        "resolution",
        "patients_train",
        "patients_heldout",
        "images_train",
        "images_heldout",
    )
    missing = [key for key in wanted if key not in info]
    if missing:
        raise ValueError(f"{path}: has no {', '.join(missing)}; run prepare_cohort again")
    return info


def by_folder(paths: Iterable[str | Path]) -> dict[str, Path]:
    """Pictures by the key of their artefact, which is the folder's name."""
    return {Path(path).parent.name: Path(path) for path in paths}


def picture_source(path: Path) -> str:
    """A picture as a data URI. WebP at full size: a fifth of the PNG's bytes, and dozens must fit a page.

    Raises ValueError or OSError naming a file that is not a picture.
    """
    try:
        with Image.open(path) as picture:
            content = io.BytesIO()
            picture.convert("L").save(content, format="WEBP", quality=86, method=6)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a picture; delete it and run its stage again") from error
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()


def patients_text(info: Mapping[str, Any]) -> str:
    return f"{plural(info['patients_train'], 'patient')} in training, {info['patients_heldout']:,} held out"


# Pictures side by side on the page; strips of frames are wide.
_COLUMNS = {"image": (3, 4, 5), "volume": (2, 3), "sequence": (1,)}


def kind_of(info: Mapping[str, Any]) -> str:
    """What an image of a cohort is called, by its cohort.json."""
    return sample_kind(info["spatial_dims"], info.get("frames") or 0)


def _shape_text(info: Mapping[str, Any]) -> str:
    """A cohort's shape; all sides, where they are not one length, as those of sequences."""
    kind = kind_of(info)
    if kind == "sequence" or len(set(info["shape"])) > 1:
        sides = " \N{MULTIPLICATION SIGN} ".join(map(str, info["shape"]))
        return f"{dims_name(info['spatial_dims'], kind)} {sides}"
    return shape_name(info["spatial_dims"], info["resolution"], kind)


def _made_up(info: Mapping[str, Any]) -> bool:
    """Whether none of a cohort's images is of a patient as acquired."""
    patients = info.get("patients", [])
    return bool(patients) and all(patient.get("synthetic") for patient in patients)


def shown_cohorts(
    infos: list[dict[str, Any]],
    runs: pd.DataFrame,
    fidelity: pd.DataFrame,
    pictures: Mapping[str, Path],
    real: Mapping[str, Path],
    controlled: Mapping[str, Path],
) -> list[dict[str, Any]]:
    """Each cohort with its real picture, then its runs' by family, size and sampler, those with masks last."""
    scores = fidelity.set_index("run").to_dict("index") if len(fidelity) else {}
    shown = []
    for info in sorted(infos, key=lambda info: (info["spatial_dims"], info["resolution"])):
        cohort, kind = info["cohort"], kind_of(info)
        own = runs[(runs["cohort"] == cohort) & runs["run"].isin(list(pictures))]
        own = own.assign(rank=own["size"].map(size_rank)).sort_values(
            ["family", "rank", "sampler", "steps"], ascending=[False, True, True, True]
        )
        drawn = [_picture(row, pictures[row["run"]], scores, kind) for row in own.to_dict("records")]
        drawn += [
            {"label": _label(row), "caption": "masks, and samples to follow them", "source": picture_source(path)}
            for row in own.to_dict("records")
            if (path := controlled.get(row["run"]))
        ]
        left_out = [f"{patient['patient']} ({patient['reason']})" for patient in info.get("skipped", [])]
        shown.append(
            {
                "title": f"{info['images'].upper()} in {_shape_text(info)}",
                "patients": f"{patients_text(info)}: {plural(info['images_train'], kind)} in training and "
                f"{plural(info['images_heldout'], kind)} held out."
                + (
                    f" Training saw each in {info['copies']} versions, itself and slight changes of it."
                    if info.get("copies", 1) > 1
                    else ""
                )
                + (f" Left out: {', '.join(left_out)}." if left_out else ""),
                "real": picture_source(real[cohort]) if cohort in real else None,
                "real_name": "Synthetic originals" if _made_up(info) else "Real",
                "real_caption": patients_text(info),
                "volumes": kind != "image",
                "columns": _columns(len(drawn) + (cohort in real), _COLUMNS[kind]),
                "pictures": drawn,
            }
        )
    return shown


def _columns(count: int, choices: Iterable[int]) -> int:
    """Pictures in a row: the choice that leaves the fewest empty places, the largest of equals."""
    return min(choices, key=lambda columns: (-count % columns, -columns))


def _label(row: Mapping[Any, Any]) -> str:
    return f"{family_name(row['family'])} {row['size']}, {sampler_label(row['sampler'], row['steps'])}"


def _picture(row: dict[str, Any], path: Path, scores: Mapping[Any, Mapping[Any, Any]], kind: str) -> dict[str, str]:
    score = scores.get(row["run"], {})
    parts = []
    if has_value(score.get("generation_g_per_sample")):
        parts.append(f"{mass_text(score['generation_g_per_sample'])} {a_unit(kind)}")
    if has_value(score.get("fid_efficientnet_lite0")):
        parts.append(f"{FID_NAME} {significant(score['fid_efficientnet_lite0'])}")
    return {
        "label": _label(row),
        "caption": "; ".join(parts),
        "source": picture_source(path),
    }
