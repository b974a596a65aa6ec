"""The heart of a real CT set in motion: a made-up beat whose volumes are known in closed form.

A CT shows the heart at one moment. Here the chamber that a mask marks contracts, twists and shortens along its long
axis. Inside the smallest spheroid round the mask the motion has the same Jacobian everywhere, so the volume of the
mask over the cycle is exactly the prescribed curve, whatever the mask's shape; over a rim outside it fades to rest.
At each phase the motion is the flow of a smooth velocity field, hence invertible with a positive Jacobian.

What comes out is synthetic and says so: texture and anatomy are a patient's, the movement is not. The wall inside the
spheroid shrinks with the chamber and the rim is stretched; a real myocardium keeps its volume.

Coordinates are RAS mm, as in `models.data.readers.Volume`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.data.cine import LABELS, Cine
from models.data.readers import Volume

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

FLOW_STEPS = 8  # Runge-Kutta of fourth order; measured: within 2 micrometres at the strongest beat and rim 0.5
SAMPLE_EVERY = 1.5  # source voxels between the places that a voxel is the mean of; linear between voxels covers these
MAX_EJECTION = 0.8
MAX_TWIST_DEGREES = 60.0


def contraction(phase: NDArray[np.floating] | float, systole: float = 0.35) -> Matrix:
    """How far the heart is contracted at a phase of the cycle: 0 at end diastole (phase 0), 1 at phase `systole`.

    f = (1 - cos psi) / 2, where psi is the phase angle moved by the Moebius map of the circle that takes end
    diastole to 0 and end systole to pi. Analytic and periodic; rises and falls once, with no corner anywhere.

    Args:
        phase: any real number; whole numbers are end diastole.
        systole: part of the cycle that the contraction takes, in (0, 1); 0.35 is a heart at rest.
    """
    if not 0 < systole < 1:
        raise ValueError(f"systole: {systole} is no part of the cycle between 0 and 1")
    half = np.pi * systole
    r = np.cos(half) / (1 + np.sin(half))
    angle = 2 * np.pi * np.asarray(phase, np.float64) - half
    return np.asarray((1 + (1 - r**2) * np.sin(angle) / (1 - 2 * r * np.cos(angle) + r**2)) / 2)


def volume_curve(
    end_diastolic: float, ejection_fraction: float, phases: NDArray[np.floating], systole: float = 0.35
) -> Matrix:
    """V(phase) = EDV (1 - EF f(phase)), in the unit of `end_diastolic`, with f of `contraction`."""
    return np.asarray(end_diastolic * (1 - ejection_fraction * contraction(phases, systole)))


@dataclass(frozen=True)
class Beat:
    """How a chamber moves.

    Attributes:
        ejection_fraction: part of its volume that the mask loses at end systole, up to 0.8.
        long_axis_shortening: part of its length that it loses; not more than the ejection fraction, else it
            would have to grow wider.
        twist_degrees: turn of the apex against the base, counter-clockwise seen from the apex.
        systole: see `contraction`.
        rim: width outside the spheroid over which the motion fades, as a part of the spheroid's radii.

    Raises:
        ValueError: a value outside its range; names it.
    """

    ejection_fraction: float = 0.55
    long_axis_shortening: float = 0.15
    twist_degrees: float = 15.0
    systole: float = 0.35
    rim: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.ejection_fraction <= MAX_EJECTION:
            raise ValueError(f"ejection_fraction: {self.ejection_fraction} is not between 0 and {MAX_EJECTION}")
        if not 0 <= self.long_axis_shortening <= self.ejection_fraction:
            raise ValueError(
                f"long_axis_shortening: {self.long_axis_shortening} is not between 0 and the ejection fraction "
                f"{self.ejection_fraction}"
            )
        if not abs(self.twist_degrees) <= MAX_TWIST_DEGREES:
            raise ValueError(f"twist_degrees: {self.twist_degrees} is beyond {MAX_TWIST_DEGREES:.0f} either way")
        if not 0 < self.systole < 1:
            raise ValueError(f"systole: {self.systole} is no part of the cycle between 0 and 1")
        if not 0.25 <= self.rim <= 2:
            raise ValueError(f"rim: {self.rim} is not between 0.25 and 2 radii")


def draw_beat(rng: np.random.Generator) -> Beat:
    """A beat between a failing and a strong heart, drawn evenly: EF 0.2 to 0.7, the rest in step with it."""
    ejection = float(rng.uniform(0.2, 0.7))
    return Beat(
        ejection_fraction=ejection,
        long_axis_shortening=ejection * float(rng.uniform(0.2, 0.35)),
        twist_degrees=ejection * float(rng.uniform(15, 35)),
        systole=float(rng.uniform(0.3, 0.4)),
    )


@dataclass(frozen=True)
class Region:
    """The smallest spheroid of the mask's own proportions that holds all its voxels.

    Attributes:
        centre_mm: (3,) RAS.
        axes: (3, 3), rows are right-handed unit vectors: two short ones, then the long one towards the apex.
        radii_mm: (3,) short, short, long.
    """

    centre_mm: Matrix
    axes: Matrix
    radii_mm: Matrix

    def local(self, points_mm: Matrix) -> Matrix:
        """Points (M, 3) in mm along the region's axes from its centre."""
        return np.asarray((points_mm - self.centre_mm) @ self.axes.T)

    def world(self, local_mm: Matrix) -> Matrix:
        """The inverse of `local`."""
        return np.asarray(local_mm @ self.axes + self.centre_mm)

    def depth(self, local_mm: Matrix) -> Matrix:
        """(M,): below 1 inside the spheroid, 1 on it."""
        return np.asarray(np.linalg.norm(local_mm / self.radii_mm, axis=-1))


def region_of(mask: Mask, affine: Matrix) -> Region:
    """The region of a chamber's mask (x, y, z); its long axis is the mask's longest principal axis.

    The apex is taken to lie to the patient's left, front and feet, as a heart's does.

    Raises:
        ValueError: the mask marks fewer than eight voxels.
    """
    voxels = np.argwhere(mask)
    if len(voxels) < 8:
        raise ValueError(f"the mask marks {len(voxels)} voxels, too few to be a chamber of the heart")
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    centre = points.mean(0)
    variances, vectors = np.linalg.eigh(np.cov((points - centre).T))
    along = vectors[:, -1] * np.sign(vectors[:, -1] @ [-1.0, 1.0, -1.0] or 1.0)
    # the first short axis points to the patient's left as far as it can, so that pictures of a short axis look
    # as they do from a scanner
    across = np.array([-1.0, 0, 0]) - (-along[0]) * along
    if np.linalg.norm(across) < 1e-3:
        across = np.array([0.0, 0, 1]) - along[2] * along
    across /= np.linalg.norm(across)
    axes = np.stack([across, np.cross(along, across), along])
    widths = np.sqrt([variances[:2].mean(), variances[:2].mean(), variances[2]])
    corner_mm = np.linalg.norm(affine[:3, :3], axis=0) / 2  # a voxel reaches this far from its centre
    reach = np.linalg.norm(((points - centre) @ axes.T) / widths, axis=1).max()
    return Region(centre, axes, reach * widths + np.linalg.norm(corner_mm))


class HeartMotion:
    """A chamber's motion over the cycle: where each point of the body is at a phase, and where it came from."""

    def __init__(self, region: Region, beat: Beat) -> None:
        self.region = region
        self.beat = beat

    def touches(self, points_mm: Matrix) -> Mask:
        """(M,) whether points move at all over the cycle."""
        return np.asarray(self.region.depth(self.region.local(points_mm)) < 1 + self.beat.rim)

    def forward(self, points_mm: Matrix, phase: float) -> Matrix:
        """Where points (M, 3) of the still image are at a phase."""
        return self._flow(points_mm, phase, 1.0)[0]

    def backward(self, points_mm: Matrix, phase: float) -> Matrix:
        """Where points (M, 3) at a phase are in the still image: the inverse of `forward`."""
        return self._flow(points_mm, phase, -1.0)[0]

    def jacobian(self, points_mm: Matrix, phase: float) -> Matrix:
        """(M,) determinant of `forward` at points of the still image: local volume, above 0 everywhere.

        d(log J) / ds = div v along the flow. Inside the spheroid it is 1 - EF f(phase).
        """
        return np.asarray(np.exp(self._flow(points_mm, phase, 1.0)[1]))

    def _flow(self, points_mm: Matrix, phase: float, direction: float) -> tuple[Matrix, Matrix]:
        """Points moved along the field for unit time, and the logarithm of their volume change."""
        f = float(contraction(phase, self.beat.systole))
        points_mm = np.asarray(points_mm, np.float64)
        touched = self.touches(points_mm)
        p, log_volume = self.region.local(points_mm[touched]), np.zeros(int(touched.sum()))
        along = np.log(1 - self.beat.long_axis_shortening * f)
        across = (np.log(1 - self.beat.ejection_fraction * f) - along) / 2
        turn = np.radians(self.beat.twist_degrees) * f / (2 * self.region.radii_mm[2])  # per mm of height
        rates = direction * np.array([across, along, turn])
        steps = max(1, int(np.ceil(FLOW_STEPS * f)))  # the rates grow with f, so the error per step stays
        h = 1 / steps
        for _ in range(steps):
            v1, d1 = self._field(p, rates)
            v2, d2 = self._field(p + h / 2 * v1, rates)
            v3, d3 = self._field(p + h / 2 * v2, rates)
            v4, d4 = self._field(p + h * v3, rates)
            p = p + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            log_volume = log_volume + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        moved, change = points_mm.copy(), np.zeros(len(points_mm))
        moved[touched], change[touched] = self.region.world(p), log_volume
        return moved, change

    def _field(self, p: Matrix, rates: Matrix) -> tuple[Matrix, Matrix]:
        """Velocity (M, 3) and its divergence (M,) at local points.

        v = w(rho) (a x - t z y, a y + t z x, b z): contraction across, along, and a turn that grows with height.
        The turn moves points round the axis, where w does not change, so it has no divergence.
        """
        across, along, turn = rates
        short, _, long = self.region.radii_mm
        x, y, z = p.T
        wide, tall = (x**2 + y**2) / short**2, (z / long) ** 2
        depth = np.maximum(np.sqrt(wide + tall), 1e-12)
        s = ((depth - 1) / self.beat.rim).clip(0, 1)
        weight = 1 - s**3 * (10 - 15 * s + 6 * s**2)  # two continuous derivatives
        slope = -30 * (s * (1 - s)) ** 2 / self.beat.rim
        velocity = np.stack([across * x - turn * z * y, across * y + turn * z * x, along * z], axis=1)
        outward = (across * wide + along * tall) / depth
        return weight[:, None] * velocity, weight * (2 * across + along) + slope * outward


def short_axis_grid(region: Region, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Matrix:
    """(4, 4) from index (slice, row, column) to RAS mm: a stack across the long axis, base first, centred.

    Columns run to the patient's left, so the right ventricle is on the left of the picture, as from a scanner.
    """
    steps = np.stack([region.axes[2], -region.axes[1], region.axes[0]], axis=1) * spacing_mm  # (3, 3)
    grid = np.eye(4)
    grid[:3, :3] = steps
    grid[:3, 3] = region.centre_mm - steps @ ((np.array(shape) - 1) / 2)
    return grid


def beating(
    volume: Volume,
    mask: Mask,
    beat: Beat,
    frames: int,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    cycle_s: float = 0.9,
) -> Cine:
    """A CT with a beating heart as a short-axis stack over one cycle, labelled synthetic.

    Args:
        volume: the still image; taken as end diastole.
        mask: (x, y, z) of the left ventricle's cavity on the volume's grid; see `left_ventricle`.
        frames: T, even phases of the cycle from end diastole on.
        shape, spacing_mm: of the stack (D, H, W); a slice is averaged over its thickness.
        cycle_s: length of the cycle.

    Returns:
        array (D, H, W, T) in the volume's unit; labels of all frames (cavity only: the CT has no mask of the wall);
        volumes_ml["lv"] (T,) by formula.

    Raises:
        ValueError: the mask has another shape than the volume, or marks too little.
    """
    if mask.shape != volume.array.shape:
        raise ValueError(f"{volume.patient}: the mask is {mask.shape}, the volume {volume.array.shape}")
    motion = HeartMotion(region_of(mask, volume.affine), beat)
    grid = short_axis_grid(motion.region, shape, spacing_mm)
    phases = np.arange(frames) / frames
    source_mm = np.linalg.norm(volume.affine[:3, :3], axis=0)
    parts = [max(1, round(step / (SAMPLE_EVERY * float(source_mm.min())))) for step in spacing_mm]
    fine = _Moving(motion, _points(grid, shape, parts), volume.array, volume.affine, float(volume.array.min()))
    coarse = _Moving(motion, _points(grid, shape, [1, 1, 1]), mask.astype(np.float32), volume.affine, 0.0)
    array = np.empty((*shape, frames), np.float32)
    labels = {}
    for frame, phase in enumerate(phases):
        array[..., frame] = fine.at(float(phase)).reshape(-1, int(np.prod(parts))).mean(1).reshape(shape)
        labels[frame] = np.where(coarse.at(float(phase)) > 0.5, LABELS["lv"], 0).astype(np.uint8).reshape(shape)
    still_ml = float(mask.sum()) * abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    return Cine(
        array=array,
        spacing_mm=spacing_mm,
        frame_s=cycle_s / frames,
        patient=volume.patient,
        modality=volume.modality,
        synthetic=True,
        origin=f"synthetic motion of the CT of {volume.patient} (EF {beat.ejection_fraction:.0%})",
        labels=labels,
        end_diastole=0,
        end_systole=round(beat.systole * frames) % frames,
        volumes_ml={"lv": volume_curve(still_ml, beat.ejection_fraction, phases, beat.systole)},
    )


def _points(grid: Matrix, shape: tuple[int, int, int], parts: list[int]) -> Matrix:
    """(voxels * product of parts, 3) mm: each voxel's centre, or even places in it, a voxel's one after another."""
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 1, 3)
    offsets = [(np.arange(part) + 0.5) / part - 0.5 for part in parts]
    within = np.stack(np.meshgrid(*offsets, indexing="ij"), -1).reshape(1, -1, 3)
    return np.asarray((cells + within).reshape(-1, 3) @ grid[:3, :3].T + grid[:3, 3])


class _Moving:
    """An array (x, y, z) seen at fixed points while it moves; only points that the motion reaches are read again."""

    def __init__(
        self, motion: HeartMotion, points_mm: Matrix, array: NDArray[np.float32], affine: Matrix, outside: float
    ) -> None:
        self._motion, self._array, self._outside = motion, array, outside
        self._to_index = np.linalg.inv(affine)
        self._touched = motion.touches(points_mm)
        self._points_mm = points_mm[self._touched]
        self._still = self._read(points_mm)

    def at(self, phase: float) -> NDArray[np.float32]:
        """(M,) values at a phase."""
        values = self._still.copy()
        values[self._touched] = self._read(self._motion.backward(self._points_mm, phase))
        return values

    def _read(self, points_mm: Matrix) -> NDArray[np.float32]:
        places = self._to_index[:3, :3] @ points_mm.T + self._to_index[:3, 3:]  # (3, M)
        values = ndimage.map_coordinates(self._array, places, order=1, mode="constant", cval=self._outside)
        return np.asarray(values, np.float32)
