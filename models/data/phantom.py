"""A short-axis heart of formulae: left ventricle, its wall and the right ventricle, with volumes known exactly.

No package carries a real short-axis stack over time, so a 3D+t model can be tried on this, and a measurement of
volumes be held against the truth. It is synthetic and says so: smooth walls, no papillary muscles, no flow.

Below a base plane at height 0 the bodies are halves of spheroids on one axis, apex at the far end:

* the left ventricle's cavity has radius a and length l: V = 2/3 pi a^2 l;
* its wall reaches to the half spheroid of radius b and length L = l + apex wall; it cannot be compressed, so
  2/3 pi b^2 L = V + V_wall gives b and the wall thickens as the cavity shrinks;
* the right ventricle lies at each height h between that outer surface and a circle of radius c at distance d from the
  axis. All three shrink alike with height, by s = sqrt(1 - (h / L)^2), so each cut is s^2 times the lune at the base,
  and V = 2/3 L lune(c, b, d).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.data.cine import LABELS, Cine
from models.data.motion import contraction

Matrix = NDArray[np.float64]

HALF = 2 / 3  # volume of half a spheroid over radius^2 pi length
SUBSAMPLES = 3  # places along each axis of a voxel that its intensity is the mean of


@dataclass(frozen=True)
class ShortAxisHeart:
    """A heart of formulae; lengths at end diastole.

    Attributes:
        lv_radius_mm, lv_length_mm: of the left ventricle's cavity at the base, and from base to its apex.
        wall_mm, apex_wall_mm: thickness of its wall at the base's rim and at the apex.
        ejection_fraction: of the left ventricle.
        long_axis_shortening: part of its length that it loses; the apex stays, the base comes down.
        rv_radius_mm, rv_offset_mm: of the circle that bounds the right ventricle, and its distance from the axis.
        rv_shortening: part of that radius that it loses.
        systole: see `models.data.motion.contraction`.
        cycle_s: length of the cycle.

    Raises:
        ValueError: a value outside its range, or circles that enclose no right ventricle at some phase.
    """

    lv_radius_mm: float = 24.0
    lv_length_mm: float = 80.0
    wall_mm: float = 9.0
    apex_wall_mm: float = 6.0
    ejection_fraction: float = 0.6
    long_axis_shortening: float = 0.15
    rv_radius_mm: float = 36.0
    rv_offset_mm: float = 28.0
    rv_shortening: float = 0.18
    systole: float = 0.35
    cycle_s: float = 0.9

    def __post_init__(self) -> None:
        for name in ("lv_radius_mm", "lv_length_mm", "wall_mm", "apex_wall_mm", "rv_radius_mm", "rv_offset_mm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")
        for name in ("ejection_fraction", "long_axis_shortening", "rv_shortening"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is no part between 0 and 1")
        for phase in (0.0, self.systole):
            shape = self.shape_at(phase)
            nearest, furthest = shape.rv_radius_mm - self.rv_offset_mm, shape.rv_radius_mm + self.rv_offset_mm
            if not (abs(nearest) < shape.outer_radius_mm < furthest):
                raise ValueError(
                    f"rv_radius_mm {self.rv_radius_mm:.1f} and rv_offset_mm {self.rv_offset_mm:.1f}: their circle does "
                    f"not cross the wall (radius {shape.outer_radius_mm:.1f} mm) at phase {phase:.2f}"
                )

    @cached_property
    def wall_ml(self) -> float:
        """Volume of the left ventricle's wall, the same at all phases."""
        outer = (self.lv_radius_mm + self.wall_mm) ** 2 * (self.lv_length_mm + self.apex_wall_mm)
        return float(HALF * np.pi * (outer - self.lv_radius_mm**2 * self.lv_length_mm) / 1000)

    def shape_at(self, phase: float) -> "Shape":
        """Radii and lengths at a phase."""
        f = float(contraction(phase, self.systole))
        end_diastolic = HALF * np.pi * self.lv_radius_mm**2 * self.lv_length_mm
        cavity = end_diastolic * (1 - self.ejection_fraction * f)  # mm^3
        length = self.lv_length_mm * (1 - self.long_axis_shortening * f)
        outer_length = length + self.apex_wall_mm
        return Shape(
            radius_mm=float(np.sqrt(cavity / (HALF * np.pi * length))),
            length_mm=length,
            outer_radius_mm=float(np.sqrt((cavity + 1000 * self.wall_ml) / (HALF * np.pi * outer_length))),
            outer_length_mm=outer_length,
            rv_radius_mm=self.rv_radius_mm * (1 - self.rv_shortening * f),
            rv_offset_mm=self.rv_offset_mm,
        )

    def volumes_ml(self, phases: NDArray[np.floating]) -> dict[str, Matrix]:
        """Exact volumes (T,) of each of `LABELS` at the phases."""
        shapes = [self.shape_at(float(phase)) for phase in phases]
        return {
            "rv": np.array([shape.rv_ml for shape in shapes]),
            "myocardium": np.full(len(shapes), self.wall_ml),
            "lv": np.array([HALF * np.pi * s.radius_mm**2 * s.length_mm / 1000 for s in shapes]),
        }


@dataclass(frozen=True)
class Shape:
    """A `ShortAxisHeart` at one phase; see the module for the letters a, l, b, L, c, d."""

    radius_mm: float
    length_mm: float
    outer_radius_mm: float
    outer_length_mm: float
    rv_radius_mm: float
    rv_offset_mm: float

    @property
    def rv_ml(self) -> float:
        """2/3 L lune(c, b, d): the part of the circle c outside the circle b."""
        return HALF * self.outer_length_mm * _lune(self.rv_radius_mm, self.outer_radius_mm, self.rv_offset_mm) / 1000

    def label(self, across_mm: Matrix, down_mm: Matrix, below_mm: Matrix) -> NDArray[np.uint8]:
        """What lies at points (shapes broadcast): the right ventricle is at -across, the apex `below_mm` the base."""
        h, radius2 = below_mm, across_mm**2 + down_mm**2
        shrink2 = np.where(h >= 0, 1 - (h / self.outer_length_mm) ** 2, -1.0).clip(0)  # s^2; 0 above the base
        cavity2 = np.where(h >= 0, 1 - (h / self.length_mm) ** 2, -1.0).clip(0) * self.radius_mm**2
        # (x + d s)^2 + y^2 < c^2 s^2, with the square written out: one term of three is full size
        limit = (self.rv_radius_mm**2 - self.rv_offset_mm**2) * shrink2
        right = radius2 + 2 * self.rv_offset_mm * np.sqrt(shrink2) * across_mm < limit
        labels = right.astype(np.uint8) * np.uint8(LABELS["rv"])
        labels[radius2 < self.outer_radius_mm**2 * shrink2] = LABELS["myocardium"]
        labels[radius2 < cavity2] = LABELS["lv"]
        return labels


def _lune(c: float, b: float, d: float) -> float:
    """Area of the circle of radius c that a circle of radius b at distance d leaves free; they must cross.

    pi c^2 less the lens of two circles: c^2 acos(..) + b^2 acos(..) - half the root of the product of the four sums
    (twice the kite's area).
    """
    at_c = np.arccos((d**2 + c**2 - b**2) / (2 * d * c))
    at_b = np.arccos((d**2 + b**2 - c**2) / (2 * d * b))
    kite = np.sqrt((-d + c + b) * (d + c - b) * (d - c + b) * (d + c + b)) / 2
    return float(np.pi * c**2 - (c**2 * at_c + b**2 * at_b - kite))


def draw_heart(rng: np.random.Generator) -> ShortAxisHeart:
    """A heart between small and dilated, thin- and thick-walled, failing and strong; each drawn evenly."""
    radius, ejection = float(rng.uniform(20, 30)), float(rng.uniform(0.2, 0.7))
    wall = float(rng.uniform(6, 13))
    return ShortAxisHeart(
        lv_radius_mm=radius,
        lv_length_mm=float(rng.uniform(70, 95)),
        wall_mm=wall,
        apex_wall_mm=0.7 * wall,
        ejection_fraction=ejection,
        long_axis_shortening=ejection * float(rng.uniform(0.2, 0.35)),
        rv_radius_mm=(radius + wall) * float(rng.uniform(1.0, 1.15)),
        rv_offset_mm=(radius + wall) * float(rng.uniform(0.75, 0.9)),
        rv_shortening=ejection * float(rng.uniform(0.1, 0.3)),
        systole=float(rng.uniform(0.3, 0.4)),
        cycle_s=float(rng.uniform(0.7, 1.1)),
    )


@dataclass(frozen=True)
class Look:
    """How the phantom is seen.

    Attributes:
        blood, wall, around: intensities before noise, 0 to 1; bright blood and dark lung as in cine MR.
        noise: standard deviation in each of the two channels of a magnitude image (Rician).
        turn_degrees: of the heart in plane.
        shift_mm: (down, across) of the axis from the picture's middle.
    """

    blood: float = 0.85
    wall: float = 0.35
    around: float = 0.12
    noise: float = 0.03
    turn_degrees: float = 0.0
    shift_mm: tuple[float, float] = (0.0, 0.0)


def draw_look(rng: np.random.Generator) -> Look:
    """Contrast, noise and pose of one scan, drawn evenly."""
    return Look(
        blood=float(rng.uniform(0.7, 0.95)),
        wall=float(rng.uniform(0.3, 0.45)),
        around=float(rng.uniform(0.05, 0.15)),
        noise=float(rng.uniform(0.01, 0.05)),
        turn_degrees=float(rng.uniform(-40, 40)),
        shift_mm=(float(rng.uniform(-8, 8)), float(rng.uniform(-8, 8))),
    )


def phantom(
    heart: ShortAxisHeart,
    frames: int,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    look: Look | None = None,
    name: str = "phantom",
    seed: int = 0,
) -> Cine:
    """The heart as a short-axis stack over one cycle, labelled synthetic.

    The stack is centred on the heart at end diastole, base first; between the apex, which stays, and the base, which
    moves, the slices stand still, as a scanner's do.

    Args:
        frames: T, even phases from end diastole on.
        shape, spacing_mm: of the stack (D, H, W).
        seed: of the noise.

    Returns:
        array (D, H, W, T) in about [0, 1], each voxel the mean over its volume; labels of all frames by the voxels'
        centres; volumes_ml (T,) by formula.
    """
    look = look or Look()
    rng = np.random.default_rng(seed)
    phases = np.arange(frames) / frames
    coarse, fine = _places(heart, shape, spacing_mm, look, 1), _places(heart, shape, spacing_mm, look, SUBSAMPLES)
    tones = np.array([look.around, look.blood, look.wall, look.blood], np.float32)  # in the order of the labels
    array = np.empty((*shape, frames), np.float32)
    labels = {}
    for frame, phase in enumerate(phases):
        now = heart.shape_at(float(phase))
        drop_mm = heart.lv_length_mm - now.length_mm  # how far the base has come down
        labels[frame] = now.label(coarse[2], coarse[1], coarse[0] - drop_mm)
        tone = tones[now.label(fine[2], fine[1], fine[0] - drop_mm)]
        blocks = tone.reshape(*(side for axis in shape for side in (axis, SUBSAMPLES)))
        clean = blocks.mean((1, 3, 5))
        noise = rng.normal(0, look.noise, (2, *shape)) if look.noise else np.zeros((2, *shape))
        array[..., frame] = np.hypot(clean + noise[0], noise[1])
    return Cine(
        array=array,
        spacing_mm=spacing_mm,
        frame_s=heart.cycle_s / frames,
        patient=name,
        modality="phantom",
        synthetic=True,
        origin=f"synthetic short-axis phantom (EF {heart.ejection_fraction:.0%})",
        labels=labels,
        end_diastole=0,
        end_systole=round(heart.systole * frames) % frames,
        volumes_ml=heart.volumes_ml(phases),
    )


def _places(
    heart: ShortAxisHeart, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], look: Look, parts: int
) -> tuple[Matrix, Matrix, Matrix]:
    """Below the base at end diastole (parts D, 1, 1), down and across in the heart's own axes (1, parts H, parts W)."""
    below, down, across = (
        ((np.arange(size * parts) + 0.5) / parts - size / 2) * step
        for size, step in zip(shape, spacing_mm, strict=True)
    )
    below = below + (heart.lv_length_mm + heart.apex_wall_mm) / 2
    down, across = np.meshgrid(down - look.shift_mm[0], across - look.shift_mm[1], indexing="ij")
    cos, sin = np.cos(np.radians(look.turn_degrees)), np.sin(np.radians(look.turn_degrees))
    return below[:, None, None], (cos * down - sin * across)[None], (sin * down + cos * across)[None]
