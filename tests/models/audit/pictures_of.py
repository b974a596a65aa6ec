"""Made-up images for the audit's tests: smooth, varied, quick to draw."""

import numpy as np
from numpy.typing import NDArray


def blobs(count: int, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Images (count, 1, *shape) in [-1, 1], each a soft ball of its own place and size."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    images = np.empty((count, 1, *shape), np.float32)
    for image in images:
        centre, radius = generator.uniform(-0.4, 0.4, len(shape)), generator.uniform(0.3, 0.7)
        distance = np.sqrt(sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True)))
        image[0] = np.tanh(6 * (radius - distance))
    return images
