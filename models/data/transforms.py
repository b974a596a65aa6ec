"""From a volume in patient space to network input: orientation, window, body-centred crop, augmentation.

Everything after the window happens in one interpolation: blur against aliasing, then one affine that centres,
moves (augmentation), scales to the wanted spacing and crops or pads. Each further interpolation would cost
sharpness.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.networks.layers import AffineTransform
from monai.transforms import Compose, EnsureChannelFirst, GaussianSmooth, Orientation, ScaleIntensityRange
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from scipy import ndimage

from models.data.readers import Volume

log = logging.getLogger(__name__)

BODY_HU = -300.0  # skin and fat are above, air and most table foam below
COARSE_MM = 4.0  # grid on which the body is looked for
PICTURE_MM = 360.0  # side that a picture without a scale is taken to have
PERCENTILES = (0.5, 99.5)  # window of images without one

Shape = tuple[int, ...]

_ORIENT = Compose([EnsureChannelFirst(channel_dim="no_channel"), Orientation(axcodes="LPS", labels=None)])


@dataclass(frozen=True)
class Oriented:
    """A volume whose axes run to the patient's left, back and head, as near as its grid allows.

    Attributes:
        image: (1, x, y, z) float32, windowed to [0, 1].
        affine: (4, 4) index to RAS mm.
        spacing_mm: (3,) of x, y, z.
        centre: (3,) index of the body's centre.
    """

    image: torch.Tensor
    affine: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    centre: NDArray[np.float64]

    @property
    def extent_mm(self) -> NDArray[np.float64]:
        """(3,) size along x, y, z."""
        return np.array(self.image.shape[1:]) * self.spacing_mm


@dataclass(frozen=True)
class Augment:
    """How far copies may differ from the image itself; each is drawn evenly from -limit to limit."""

    rotate_degrees: float = 0.0
    scale: float = 0.0  # part of the size
    shift_mm: float = 0.0
    gamma: float = 0.0  # natural logarithm of the exponent on [0, 1]


def orient(volume: Volume, window: tuple[float, float] | None) -> Oriented:
    """Turn a volume to LPS order, find its body, map `window` (or own percentiles) to [0, 1], clipped."""
    array = torch.from_numpy(np.ascontiguousarray(volume.array))
    turned = _ORIENT(MetaTensor(array, affine=torch.from_numpy(volume.affine)))
    affine = np.asarray(turned.affine, dtype=np.float64)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    values = turned.as_tensor()  # (1, x, y, z)
    low, high = window or _percentile_window(values)
    centre = body_centre(values[0].numpy(), spacing_mm, volume.unit)
    image = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(values)
    return Oriented(convert_to_tensor(image, track_meta=False), affine, spacing_mm, centre)


def _percentile_window(values: torch.Tensor) -> tuple[float, float]:
    low, high = np.percentile(values.numpy(), PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def body_centre(array: NDArray[np.float32], spacing_mm: NDArray[np.float64], unit: str) -> NDArray[np.float64]:
    """Index (3,) of the middle of the body's bounding box; the volume's middle if no body is found.

    The body is the largest connected part above -300 HU, or above the mean where values are not HU, after an
    opening that takes thin things away: the table, tubes, noise.
    """
    strides = np.maximum(1, np.round(COARSE_MM / spacing_mm)).astype(int)
    coarse = array[:: strides[0], :: strides[1], :: strides[2]]
    mask = coarse > (BODY_HU if unit == "HU" else coarse.mean())
    # opened in the axial plane only: thick slices are few, and a table is thin in that plane too
    disc = ndimage.generate_binary_structure(2, 1)[..., None]
    mask = ndimage.binary_opening(mask, structure=disc, iterations=2)
    parts, number = ndimage.label(mask)
    if not number:
        return (np.array(array.shape) - 1) / 2
    body = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    # the outermost hundredth is left out: an arm or a rest of the table moves the box by much and holds
    # little
    places = np.argwhere(body) * strides
    return np.asarray(np.percentile(places, [1, 99], axis=0).mean(axis=0), dtype=np.float64)


def resample_volume(
    volume: Oriented, shape: Shape, spacing_mm: NDArray[np.float64], motions: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Cut a box round the body's centre, along the patient's own axes, once per motion.

    Args:
        shape: (D, H, W).
        spacing_mm: (3,) of x, y, z in the result.
        motions: (N, 4, 4) about the centre, in mm; the identity for the image itself.

    Returns:
        (N, 1, D, H, W) in [0, 1]; 0 outside the volume.
    """
    centre_mm = (volume.affine @ np.append(volume.centre, 1))[:3]
    axes = spacing_mm * [-1, -1, 1]  # LPS steps in RAS mm
    to_source = np.linalg.inv(volume.affine)
    image, to_index = _soften(volume.image, volume.spacing_mm, spacing_mm)
    matrices = to_index @ to_source @ _placing(shape, axes, centre_mm, motions)
    # one by one: a batch would hold the large source as often as there are motions
    return np.concatenate([_pull(image, shape, matrix[None]) for matrix in matrices])


def resample_slices(
    volume: Oriented, size: int, spacing_mm: NDArray[np.float64], motions: NDArray[np.float64], stride: int
) -> NDArray[np.float32]:
    """Cut squares round the body's centre from every `stride`-th axial slice; slices stay as acquired.

    Args:
        spacing_mm: (2,) of x, y in the result.
        motions: (N, slices, 3, 3) about the centre, in mm; the identity for the image itself.

    Returns:
        (N, slices, 1, H, W) in [0, 1]; 0 outside the volume.
    """
    stack = volume.image[0, ..., ::stride].permute(2, 0, 1)  # (slices, x, y)
    in_plane_mm = volume.spacing_mm[:2]
    image, to_index = _soften(stack, in_plane_mm, spacing_mm)
    centre_mm = volume.centre[:2] * in_plane_mm
    to_source = np.diag([*(1 / in_plane_mm), 1.0])
    matrices = to_index @ to_source @ _placing((size, size), spacing_mm, centre_mm, motions)
    return np.stack([_pull(image, (size, size), copy) for copy in matrices])


def resample_pictures(batch: torch.Tensor, shape: Shape, motions: NDArray[np.float64]) -> NDArray[np.float32]:
    """Resize pictures without a scale, each moved by its motion; a side counts as `PICTURE_MM`.

    Args:
        batch: (N, H, W) or (N, D, H, W) in [0, 1].
        shape: ([D,] H, W) of the result.
        motions: (N, dims+1, dims+1).

    Returns:
        (N, 1, H, W) or (N, 1, D, H, W) in [0, 1].
    """
    dims = batch.ndim - 1
    pictures = batch.permute(0, *range(dims, 0, -1))  # (N, x, y[, z])
    source_mm = PICTURE_MM / np.array(pictures.shape[1:])
    spacing_mm = PICTURE_MM / np.array(shape[::-1])
    image, to_index = _soften(pictures, source_mm, spacing_mm)
    centre_mm = (np.array(pictures.shape[1:]) - 1) / 2 * source_mm
    to_source = np.diag([*(1 / source_mm), 1.0])
    return _pull(image, shape, to_index @ to_source @ _placing(shape, spacing_mm, centre_mm, motions))


def slice_stride(volume: Oriented, slice_step_mm: float) -> int:
    """How many slices to step to come nearest to `slice_step_mm`; 1 where they are thicker than that."""
    return max(1, round(slice_step_mm / float(volume.spacing_mm[2])))


def draw_motions(rng: np.random.Generator, number: int, dims: int, augment: Augment) -> NDArray[np.float64]:
    """Random rotations, scales and shifts (number, dims+1, dims+1), in mm about the origin.

    Volumes turn fully about the long axis of the body and half as far about the others.
    """
    turn = np.radians(augment.rotate_degrees)
    motions = np.tile(np.eye(dims + 1), (number, 1, 1))
    for motion in motions:
        rotation = np.eye(dims)
        planes = [(0, 1, turn)] if dims == 2 else [(0, 1, turn), (0, 2, turn / 2), (1, 2, turn / 2)]
        for a, b, limit in planes:
            angle = rng.uniform(-limit, limit)
            plane = np.eye(dims)
            plane[[a, a, b, b], [a, b, a, b]] = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
            rotation = rotation @ plane
        motion[:dims, :dims] = rotation * (1 + rng.uniform(-augment.scale, augment.scale))
        motion[:dims, dims] = rng.uniform(-augment.shift_mm, augment.shift_mm, dims)
    return motions


def bend(images: NDArray[np.float32], rng: np.random.Generator, augment: Augment) -> NDArray[np.float32]:
    """Raise each image (N, ...) in [0, 1] to its own random power near 1."""
    powers = np.exp(rng.uniform(-augment.gamma, augment.gamma, len(images))).astype(np.float32)
    return np.asarray(images.clip(0, 1) ** powers.reshape(-1, *[1] * (images.ndim - 1)), dtype=np.float32)


def _placing(
    shape: Shape, step_mm: NDArray[np.float64], centre_mm: NDArray[np.float64], motions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Index x, y[, z] of a result of `shape`, ([D,] H, W), to mm (..., dims+1, dims+1) about the centre, per motion."""
    dims = len(step_mm)
    grid = np.diag([*step_mm, 1.0])
    grid[:dims, dims] = -(np.array(shape[::-1]) - 1) / 2 * np.asarray(step_mm)
    place = np.eye(dims + 1)
    place[:dims, dims] = centre_mm
    return np.asarray(place @ motions @ grid)


def _pull(image: torch.Tensor, shape: Shape, matrices: NDArray[np.float64]) -> NDArray[np.float32]:
    """Resample (N, x, y[, z]), a matrix each from result to source index -> (N, 1, *shape); 0 outside."""
    dims = image.ndim - 1
    sample = AffineTransform(spatial_size=shape[::-1], padding_mode="zeros", align_corners=False)
    pulled = sample(image[:, None].contiguous(), torch.from_numpy(matrices).to(image))  # (N, 1, x, y[, z])
    return pulled.numpy().transpose(0, 1, *range(dims + 1, 1, -1))


def _soften(
    image: torch.Tensor, from_mm: NDArray[np.float64], to_mm: NDArray[np.float64]
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Take away what a coarser grid cannot show, or it would come back as moire.

    Blocks are averaged down to at least twice the wanted resolution, since a wide Gaussian is slow; the rest
    is a Gaussian with the sigma of scikit-image and MONAI's `Resize`.

    Args:
        image: (N, *spatial), its spacing `from_mm`; to be sampled every `to_mm`.

    Returns:
        The softened image (N, *smaller), and the matrix from an index of `image` to one of it.
    """
    dims = image.ndim - 1
    shape = np.array(image.shape[1:])
    blocks = np.clip(np.floor(to_mm / from_mm / 2).astype(int), 1, shape)
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dims]
    image = pool(image[:, None].contiguous(), blocks.tolist())[:, 0]
    sigma = np.maximum(0.0, (to_mm / (from_mm * blocks) - 1) / 2)
    if sigma.any():
        image = convert_to_tensor(GaussianSmooth(sigma=sigma.tolist())(image), track_meta=False)
    to_index = np.diag([*(1 / blocks), 1.0])
    to_index[:dims, dims] = -(blocks - 1) / 2 / blocks
    return image, to_index
