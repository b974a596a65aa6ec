"""The left ventricle's cavity in a CT angiogram, found inside a mask of the whole heart.

Packages carry a mask of the heart but none of its chambers. In an arterial phase the blood is bright and the wall
dark, so the pool of blood falls apart into chambers at its necks (the valves). A weak label, good for setting a heart
in motion; no measurement of a patient.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.data.bundled import PACKAGES, Package, Scan, fetch_scans
from models.data.readers import Volume, read_volume

Mask = NDArray[np.bool_]

BLOOD_HU = 350.0  # between wall (about 100) and blood (about 500) of an arterial phase
NECK_MM = 10.0  # chambers are told apart by what stays of the pool this far from its edge
LEAST_PART = 0.1  # of the largest chamber; smaller rests are folds of an edge
PAD = 4  # voxels round the heart, and the reach of the closing that fills papillary muscles in
THIN = 2  # voxels; what is thinner is left out
SMOOTH_MM = 1.5
FLOOD_LEVELS = 20
_FACES = ndimage.generate_binary_structure(3, 1)

_TOTAL = PACKAGES[0]
# the same archive as the images: nothing more is fetched
HEART = Package(
    name=_TOTAL.name,
    version=_TOTAL.version,
    sha256=_TOTAL.sha256,
    size_mb=_TOTAL.size_mb,
    licence=_TOTAL.licence,
    scans=(
        Scan(
            patient="cta-heart",
            member="tests/reference_files/pulmonary_report/models/heart.nii.gz",
            format="nifti",
            sha256="3c3eaf9e029e07aa3248e8d9973103b3168f35cc37756867bcb47b507cad288a",
        ),
        next(scan for scan in _TOTAL.scans if scan.patient == "cta"),
    ),
)


def fetch_heart(folder: Path | None = None) -> tuple[Volume, Mask]:
    """The bundled CT angiogram and the mask (x, y, z) of its heart.

    Raises:
        OSError: as `models.data.bundled.fetch_scans`.
    """
    (mask_scan, mask_path), (scan, path) = fetch_scans(folder, (HEART,))
    mask = read_volume({"patient": mask_scan.patient, "format": mask_scan.format, "files": [str(mask_path)]})
    volume = read_volume({"patient": scan.patient, "format": scan.format, "files": [str(path)]})
    return volume, mask.array > 0


def left_ventricle(volume: Volume, heart: Mask, blood_hu: float = BLOOD_HU, neck_mm: float = NECK_MM) -> Mask:
    """The left ventricle's cavity (x, y, z) in an arterial CT, with its papillary muscles filled in.

    Blood is what is brighter than `blood_hu` inside `heart`. What is deeper in it than `neck_mm` are the chambers'
    cores; each voxel of blood belongs to the core that it flows to (watershed on the depth), and the core furthest
    to the patient's left is the left ventricle.

    Raises:
        ValueError: the mask has another shape than the volume, or there is no such chamber in it.
    """
    if heart.shape != volume.array.shape:
        raise ValueError(f"{volume.patient}: the heart's mask is {heart.shape}, the volume {volume.array.shape}")
    if not heart.any():
        raise ValueError(f"{volume.patient}: the heart's mask is empty")
    places = np.argwhere(heart)
    low = np.maximum(places.min(0) - PAD, 0)
    box = tuple(slice(a, b) for a, b in zip(low, places.max(0) + 1 + PAD, strict=True))
    spacing_mm = np.linalg.norm(volume.affine[:3, :3], axis=0)
    smooth = ndimage.gaussian_filter(volume.array[box], SMOOTH_MM / spacing_mm)
    pool = (smooth > blood_hu) & heart[box]
    depth_mm = ndimage.distance_transform_edt(pool, sampling=spacing_mm)
    cores, number = ndimage.label(depth_mm > neck_mm)
    if not number:
        raise ValueError(f"{volume.patient}: no chamber brighter than {blood_hu:.0f} HU in the heart: arterial phase?")
    sizes = np.bincount(cores.ravel())[1:]
    large = 1 + np.flatnonzero(sizes >= LEAST_PART * sizes.max())
    middles = np.array(ndimage.center_of_mass(cores > 0, cores, large))  # (chambers, 3)
    leftmost = large[np.argmin((middles + low) @ volume.affine[0, :3])]  # x of RAS grows to the right
    flooded = _flood(depth_mm, np.where(np.isin(cores, large), cores, 0), neck_mm)
    chamber = ndimage.binary_closing(np.pad(flooded == leftmost, PAD), iterations=PAD)
    chamber = ndimage.binary_fill_holes(chamber)[(slice(PAD, -PAD),) * 3] & heart[box]
    chamber &= ~((flooded > 0) & (flooded != leftmost))  # closing must not reach into a neighbour
    chamber = ndimage.binary_opening(chamber, iterations=THIN)  # recesses between trabeculae
    parts, _ = ndimage.label(chamber)
    mask = np.zeros(heart.shape, np.bool_)
    mask[box] = (parts > 0) & (parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
    return mask


def _flood(depth_mm: NDArray[np.float64], cores: NDArray[np.integer], neck_mm: float) -> NDArray[np.integer]:
    """Every voxel of the pool with the core it belongs to: the water falls, and each core grows into what dries.

    Own code, since SciPy's `watershed_ift` lets a core run along the pool's edge into its neighbours.
    """
    labels = cores.copy()
    for level_mm in np.linspace(neck_mm, 0, FLOOD_LEVELS + 1)[1:]:
        open_to = depth_mm > level_mm
        while True:
            grown = np.where(open_to & (labels == 0), ndimage.grey_dilation(labels, footprint=_FACES), labels)
            if (grown == labels).all():
                break
            labels = grown
    return labels
