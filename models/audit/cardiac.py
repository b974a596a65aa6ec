"""The heart over its cycle: ejection fraction, wall motion, and whether generated frames and slices belong together.

Sequences are ([D,] H, W, T): frames last, D from base to apex in short-axis stacks. Labels are those of
`models.data.cine.LABELS`: 1 right ventricle, 2 myocardium, 3 left ventricle.

CardioDiT's own measures of coherence are not published. Those here are defined below, have known values for simple
sequences, and mean something only beside the same figure of real sequences of the same grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.integer]
Segmenter = Callable[[NDArray[np.floating]], Labels]  # ([D,] H, W[, T]) -> the same shape

RV, MYOCARDIUM, LV = 1, 2, 3
SECTORS = 6
SMALLEST_DEVIATION = 1e-6  # of the values' range; below it a sequence stands still
FIGURES = (
    *("temporal_coherence", "cycle_gap", "slice_consistency", "slice_synchrony"),
    *("ejection_fraction", "end_diastolic_ml", "displacement_mm", "thickening"),
)  # of `describe_sequences`


@dataclass(frozen=True)
class Ejection:
    """A ventricle's volumes over the cycle.

    Attributes:
        end_diastolic_ml, end_systolic_ml: largest and smallest volume, or those of given frames.
        ejection_fraction: (EDV - ESV) / EDV; None without any blood at end diastole.
        end_diastole, end_systole: their frames.
    """

    end_diastolic_ml: float
    end_systolic_ml: float
    ejection_fraction: float | None
    end_diastole: int
    end_systole: int


def label_volumes(labels: Labels, spacing_mm: Sequence[float], label: int) -> Matrix:
    """Volume (T,) in ml of a label in (D, H, W, T), or area in cm^2 in (H, W, T), by counting.

    Raises:
        ValueError: the spacing has another number of axes.
    """
    if labels.ndim - 1 != len(spacing_mm):
        raise ValueError(f"labels of shape {labels.shape} need {labels.ndim - 1} spacings, got {len(spacing_mm)}")
    cell = float(np.prod(spacing_mm)) / (1000 if len(spacing_mm) == 3 else 100)
    return np.asarray((labels == label).reshape(-1, labels.shape[-1]).sum(0) * cell)


def ejection(volumes: NDArray[np.floating], frames: tuple[int, int] | None = None) -> Ejection:
    """Ejection fraction of volumes (T,) over one cycle.

    Args:
        frames: of end diastole and end systole; by default those of the largest and smallest volume. With noise the
            default is biased upwards.

    Raises:
        ValueError: fewer than two volumes, or one that is negative or not finite.
    """
    values = np.asarray(volumes, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"an ejection fraction needs at least two volumes of 0 or more, got {values.tolist()}")
    diastole, systole = frames or (int(values.argmax()), int(values.argmin()))
    full, empty = float(values[diastole]), float(values[systole])
    return Ejection(full, empty, (full - empty) / full if full > 0 else None, diastole, systole)


@dataclass(frozen=True)
class WallMotion:
    """How the left ventricle's wall moves, by sector; sectors of equal angle, the first round the right ventricle.

    Attributes:
        inner_mm, outer_mm: (sectors, T) radius of the cavity and of the wall's outside, mean over slices.
        displacement_mm: (sectors, T) how far the inside has moved inwards since end diastole.
        thickening: (sectors, T) growth of the wall since end diastole, as a part of its thickness then.
        slices: how many slices count: those that hold cavity and wall in all sectors and frames.
    """

    inner_mm: Matrix
    outer_mm: Matrix
    displacement_mm: Matrix
    thickening: Matrix
    slices: int


def wall_motion(
    labels: Labels,
    spacing_mm: Sequence[float],
    end_diastole: int = 0,
    sectors: int = SECTORS,
    floating: bool = False,
) -> WallMotion | None:
    """Displacement and thickening of the left ventricle's wall over the cycle.

    A sector's radius is that of a circle's sector with the same area, sqrt(2 A / angle), about the cavity's middle in
    each slice. Sectors start so that the first one's middle points at the right ventricle (at the image's left without
    one) and run clockwise in the picture.

    Args:
        labels: ([D,] H, W, T).
        spacing_mm: of ([D,] H, W).
        floating: whether the middle is that of each frame, so that motion of the whole heart does not count; a wall
            that stands still on one side then shows on all. Else it is that of end diastole.

    Returns:
        None if no slice shows cavity and wall in all sectors and frames.
    """
    stack = labels if labels.ndim == 4 else labels[None]
    down_mm, across_mm = float(spacing_mm[-2]), float(spacing_mm[-1])
    found = []
    for piece in stack:  # (H, W, T)
        radii = _sector_radii(piece, down_mm, across_mm, end_diastole, sectors, floating)
        if radii is not None:
            found.append(radii)
    if not found:
        return None
    inner, outer = np.mean(found, axis=0)  # (sectors, T) each
    wall = outer - inner
    still = wall[:, [end_diastole]]
    return WallMotion(
        inner_mm=inner,
        outer_mm=outer,
        displacement_mm=inner[:, [end_diastole]] - inner,
        thickening=(wall - still) / still,
        slices=len(found),
    )


def _sector_radii(
    piece: Labels, down_mm: float, across_mm: float, start: int, sectors: int, floating: bool
) -> Matrix | None:
    """(2, sectors, T) inner and outer radius in one slice (H, W, T); None if a sector misses cavity or wall."""
    if not ((piece == LV).any((0, 1)).all() and (piece == MYOCARDIUM).any((0, 1)).all()):
        return None
    rows, columns = np.meshgrid(np.arange(piece.shape[0]), np.arange(piece.shape[1]), indexing="ij")
    y_mm, x_mm = rows * down_mm, columns * across_mm
    frames = piece.shape[-1]
    middles = [_middle(piece[..., t if floating else start] == LV, y_mm, x_mm) for t in range(frames)]
    towards = np.pi  # of the picture's left
    if (right := piece[..., start] == RV).any():
        place = _middle(right, y_mm, x_mm) - middles[start]
        towards = float(np.arctan2(place[0], place[1]))
    width = 2 * np.pi / sectors
    radii = np.empty((2, sectors, frames))
    for t in range(frames):
        angle = np.arctan2(y_mm - middles[t][0], x_mm - middles[t][1]) - towards + width / 2
        sector = np.floor(angle % (2 * np.pi) / width).astype(int) % sectors
        cavity = np.bincount(sector[piece[..., t] == LV], minlength=sectors)
        wall = np.bincount(sector[piece[..., t] == MYOCARDIUM], minlength=sectors)
        if not (cavity.all() and wall.all()):
            return None
        areas = np.stack([cavity, cavity + wall]) * down_mm * across_mm
        radii[..., t] = np.sqrt(2 * areas / width)
    return radii


def _middle(mask: NDArray[np.bool_], y_mm: NDArray[np.floating], x_mm: NDArray[np.floating]) -> Matrix:
    return np.array([y_mm[mask].mean(), x_mm[mask].mean()])


def temporal_coherence(sequence: NDArray[np.floating]) -> float | None:
    """How far neighbouring frames of ([D,] H, W, T) are alike, against any two frames; the cycle closes.

    1 - mean |I_t - I_t+1|^2 / mean over all pairs |I_s - I_t|^2. 0 for frames in random order (its mean over all
    orders is exactly 0), towards 1 for a smooth movement; a sinusoid over T frames has
    1 - (1 - cos(2 pi / T)) (T - 1) / T. None for fewer than four frames (three are all neighbours) or a sequence
    that stands still.
    """
    frames = _flat(sequence)  # (T, voxels)
    count = len(frames)
    neighbours = float(((frames - np.roll(frames, -1, axis=0)) ** 2).mean())
    pairs = float(2 * frames.var(0).mean() * count / (count - 1)) if count > 1 else 0.0
    if count < 4 or pairs <= _floor(frames):
        return None
    return 1 - neighbours / pairs


def cycle_gap(sequence: NDArray[np.floating]) -> float | None:
    """The step from the last frame of ([D,] H, W, T) to the first, against the mean of the others.

    Root mean squares. A closed cycle that starts at end diastole, where the heart hardly moves, has at most about 1; a
    loop that was cut anywhere has more. None for fewer than three frames or a sequence that stands still.
    """
    frames = _flat(sequence)
    if len(frames) < 3:
        return None
    steps = np.sqrt(((frames - np.roll(frames, -1, axis=0)) ** 2).mean(1))  # (T,)
    mean = float(steps[:-1].mean())
    return float(steps[-1]) / mean if mean**2 > _floor(frames) else None


def slice_consistency(sequence: NDArray[np.floating]) -> float | None:
    """Do neighbouring slices of (D, H, W, T) show one heart in one place? Mean correlation of their pictures.

    Pearson's r over the pixels of slices z and z + 1 at the same frame, mean over frames and pairs; pairs with a flat
    slice are left out, and None if all are. It falls when slices lie shifted against each other. Slices of different
    anatomy are less alike, the more so the thicker they are: compare with real stacks of the same spacing.
    """
    stack = _stack(sequence)  # (D, H, W, T)
    pictures = np.moveaxis(stack, -1, 1).reshape(stack.shape[0], stack.shape[-1], -1)  # (D, T, pixels)
    return _mean_correlation(pictures[:-1], pictures[1:])


def slice_synchrony(sequence: NDArray[np.floating]) -> float | None:
    """Do neighbouring slices of (D, H, W, T) beat together? Mean correlation of what changes in them.

    As `slice_consistency`, of each slice's deviation from its mean over time, over pixels and frames at once. It falls
    when slices are out of phase, as those that a slice-wise model draws one by one.
    """
    stack = _stack(sequence)
    moving = stack - stack.mean(-1, keepdims=True)
    flat = moving.reshape(len(stack), 1, -1)  # (D, 1, pixels * T)
    return _mean_correlation(flat[:-1], flat[1:])


def _mean_correlation(left: Matrix, right: Matrix) -> float | None:
    """Mean Pearson correlation along the last axis; None if none is defined."""
    left, right = (side - side.mean(-1, keepdims=True) for side in (left, right))
    norms = np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
    defined = norms > SMALLEST_DEVIATION**2 * left.shape[-1]
    if not defined.any():
        return None
    return float(((left * right).sum(-1)[defined] / norms[defined]).mean())


def _flat(sequence: NDArray[np.floating]) -> Matrix:
    """(..., T) -> (T, voxels) in float64."""
    return np.moveaxis(np.asarray(sequence, np.float64), -1, 0).reshape(sequence.shape[-1], -1)


def _floor(frames: Matrix) -> float:
    return float((SMALLEST_DEVIATION * max(np.ptp(frames), SMALLEST_DEVIATION)) ** 2)


def _stack(sequence: NDArray[np.floating]) -> Matrix:
    if sequence.ndim != 4 or len(sequence) < 2:
        raise ValueError(f"consistency between slices needs (D, H, W, T) with two slices, got {sequence.shape}")
    return np.asarray(sequence, np.float64)


def dice(left: Labels, right: Labels, label: int) -> float | None:
    """Dice of a label in two maps of one shape, 2 |A and B| / (|A| + |B|); None if neither has it.

    Raises:
        ValueError: the shapes differ.
    """
    if left.shape != right.shape:
        raise ValueError(f"Dice needs maps of one shape, got {left.shape} and {right.shape}")
    a, b = left == label, right == label
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None


@dataclass(frozen=True)
class Adherence:
    """Whether generated images follow the masks that conditioned them.

    Attributes:
        own: (N, labels) Dice of each sample's segmentation against its own mask; NaN where neither has the label.
        other: (N, labels) the same against another sample's mask: what a model that ignores its mask would reach.
    """

    own: Matrix
    other: Matrix

    @property
    def mean_own(self) -> float | None:
        """Mean over samples and labels."""
        return _nan_mean(self.own)

    @property
    def mean_other(self) -> float | None:
        """Mean over samples and labels."""
        return _nan_mean(self.other)

    @property
    def followed(self) -> float | None:
        """Part of the samples whose own mask fits better than the other one; a half is chance."""
        own, other = (np.array([_nan_mean(row) for row in side], np.float64) for side in (self.own, self.other))
        defined = np.isfinite(own) & np.isfinite(other)
        return float((own > other)[defined].mean()) if defined.any() else None


def mask_adherence(
    samples: NDArray[np.floating], masks: Labels, segment: Segmenter, labels: Sequence[int], seed: int = 0
) -> Adherence:
    """Dice of a segmenter's maps of generated samples against their conditioning masks, and against others' masks.

    Args:
        samples: (N, 1, [D,] H, W[, T]).
        masks: (N, 1, [D,] H, W[, T]), the sample's own at each place.
        segment: gives the label map of one sample without its channel axis.
        labels: to compare.
        seed: of the order in which masks are handed on; nobody keeps the own one.

    Raises:
        ValueError: samples and masks differ in shape, or there are fewer than two.
    """
    if samples.shape != masks.shape:
        raise ValueError(f"samples are {samples.shape}, their masks {masks.shape}")
    if len(samples) < 2:
        raise ValueError("adherence to masks needs at least two samples, to compare with each other's masks")
    order = np.random.default_rng(seed).permutation(len(samples))
    giver = np.empty_like(order)
    giver[order] = np.roll(order, 1)  # one cycle through all samples
    own, other = np.full((2, len(samples), len(labels)), np.nan)
    for place, sample in enumerate(samples):
        found = segment(sample[0])
        for column, label in enumerate(labels):
            for side, source in ((own, place), (other, giver[place])):
                value = dice(found, masks[source, 0], label)
                side[place, column] = np.nan if value is None else value
    return Adherence(own, other)


def _nan_mean(values: Matrix) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def describe_sequences(
    sequences: NDArray[np.floating],
    spacing_mm: Sequence[float] | None = None,
    segment: Segmenter | None = None,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Means over generated or real sequences (N, 1, [D,] H, W, T); a figure that cannot be had is None.

    Args:
        spacing_mm: of ([D,] H, W); needed to segment.
        segment: label map ([D,] H, W, T) of a sequence; without one there is no ejection fraction and no wall motion.
        rows: the rows of `sequences` to look at; all of them by default.

    Returns:
        `sequences`, `frames`, `hearts` (sequences whose left ventricle was found in all frames; None if nothing was
        segmented), and mean and `_std` over sequences of `temporal_coherence`, `cycle_gap`, `slice_consistency`,
        `slice_synchrony`, `ejection_fraction`, `end_diastolic_ml`, `displacement_mm` and `thickening` (both at end
        systole, mean over sectors). All but the first four are of hearts alone.

    Raises:
        ValueError: another number of axes, or a segmenter without a spacing.
    """
    if sequences.ndim not in (5, 6) or sequences.shape[1] != 1:
        raise ValueError(f"expected sequences (N, 1, H, W, T) or (N, 1, D, H, W, T), found {sequences.shape}")
    if segment is not None and spacing_mm is None:
        raise ValueError("volumes of segmented sequences need their spacing")
    chosen = np.arange(len(sequences)) if rows is None else rows
    found = [_describe(sequences[row, 0], spacing_mm or (), segment) for row in chosen]
    hearts = sum(row["ejection_fraction"] is not None for row in found)
    report: dict[str, Any] = {"sequences": len(chosen), "frames": sequences.shape[-1]}
    report["hearts"] = None if segment is None else hearts
    for name in FIGURES:
        values = [value for row in found if (value := row[name]) is not None]
        report[name] = float(np.mean(values)) if values else None
        report[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return report


def _describe(
    sequence: NDArray[np.floating], spacing_mm: Sequence[float], segment: Segmenter | None
) -> dict[str, float | None]:
    stacked = sequence.ndim == 4 and len(sequence) > 1
    figures: dict[str, float | None] = dict.fromkeys(FIGURES)
    figures |= {
        "temporal_coherence": temporal_coherence(sequence),
        "cycle_gap": cycle_gap(sequence),
        "slice_consistency": slice_consistency(sequence) if stacked else None,
        "slice_synchrony": slice_synchrony(sequence) if stacked else None,
    }
    if segment is None:
        return figures
    labels = segment(sequence)
    volumes = label_volumes(labels, spacing_mm, LV)
    if not volumes.all():
        return figures  # not found in each frame: an ejection fraction of 1 would be the segmenter's
    beat = ejection(volumes)
    figures |= {name: value for name, value in asdict(beat).items() if name in figures}
    moved = wall_motion(labels, spacing_mm, beat.end_diastole)
    if moved is not None:
        figures["displacement_mm"] = float(moved.displacement_mm[:, beat.end_systole].mean())
        figures["thickening"] = float(moved.thickening[:, beat.end_systole].mean())
    return figures
