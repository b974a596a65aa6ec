"""Masks of images: label maps by thresholds, in the unit of the images.

A threshold is a segmenter that is exact by definition: the map of an image is what its values say, for generated images
as for real ones. So the overlap of a generated image's map with the mask that it was to follow errs by the generator
and its decoder alone, not by a segmenter that was trained on few patients or on real images only. What it cannot show
is anatomy: a threshold knows values and no organs, and bone where a mask has bone is right wherever the mask came
from. It is also hard at borders, where blur carries values over a threshold: real images that only went through the
autoencoder lose overlap too, and an audit states that beside what it measures.

Images are taken as they are, without smoothing: those of a cohort are averaged over their voxels already. Augmented
copies have slightly bent intensities, and their masks are of the copies' own values.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ranges = Mapping[str, Sequence[float | None]]  # of each label: from, to, in the images' unit; None: no bound
Thresholds = list[tuple[float, float]]


def thresholds(labels: Ranges, window: Sequence[float] | None) -> Thresholds:
    """The labels' ranges in values of images: from (included), to (not included), in [-1, 1] or infinite.

    Intensities at the window's bounds are -1 and 1, and what lies outside of it was clipped to them. So a bound has to
    lie inside, or a range would take in all that was clipped without saying so; null leaves its side open.

    Args:
        labels: the config's `control.labels`, in the order of the labels 1, 2, ...
        window: of the cohort, in its unit; None: each image has its own, and there is no common unit.

    Raises:
        ValueError: naming `control.labels` and the label, if there is no window, or a range is empty, has a bound that
            is not inside of the window or no bound at all, or overlaps another.
    """
    found = {}
    for name, (low, high) in labels.items():
        told = f"control.labels.{name}: {_text(low, high)}"
        if window is None:
            raise ValueError(f"{told} needs images of one unit; set images.window to two intensities")
        for bound in (low, high):
            if bound is not None and not window[0] < bound < window[1]:
                raise ValueError(
                    f"{told} has bound {bound:g}, which is not inside of the window, {window[0]:g} to {window[1]:g}; "
                    f"null leaves a side open"
                )
        if low is None and high is None:
            raise ValueError(f"{told} has no bound, and every image would be {name} everywhere")
        if low is not None and high is not None and low >= high:
            raise ValueError(f"{told} is empty; give the lower bound first")
        found[name] = tuple(
            open_side if bound is None else 2 * (bound - window[0]) / (window[1] - window[0]) - 1
            for bound, open_side in ((low, -np.inf), (high, np.inf))
        )
    ordered = sorted(found, key=found.__getitem__)
    for below, above in pairwise(ordered):
        if found[above][0] < found[below][1]:
            raise ValueError(
                f"control.labels.{above}: {_text(*labels[above])} overlaps {below}, {_text(*labels[below])}"
            )
    return [(low, high) for low, high in found.values()]


def _text(low: float | None, high: float | None) -> str:
    return "[" + ", ".join("null" if bound is None else f"{bound:g}" for bound in (low, high)) + "]"


def label_map(image: NDArray[np.floating], ranges: Thresholds) -> NDArray[np.uint8]:
    """The labels of images of any shape, the same shape: 1, 2, ... where values are in the range of one, else 0."""
    labels = np.zeros(image.shape, np.uint8)
    for label, (low, high) in enumerate(ranges, start=1):
        labels[(image >= low) & (image < high)] = label
    return labels
