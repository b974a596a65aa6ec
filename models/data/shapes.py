"""Shapes of a study's images, from the config alone: for the plan, made while Snakemake parses, without torch."""

from typing import Any

SEQUENCES = ("cine", "acdc", "mnms2", "phantom", "beating")  # sources of images over time
MADE_UP = ("phantom", "beating")


def image_shape(images_config: dict[str, Any], spatial_dims: int, resolution: int) -> tuple[int, ...]:
    """Shape of one image of a cohort: (H, W) or (D, H, W), and (H, W, T) or (D, H, W, T) with frames.

    D is `images.slices`, and as many as `resolution` where volumes without frames leave it open.

    Args:
        images_config: `images` of the config.
        spatial_dims: 2 or 3, frames not counted.
        resolution: pixels of each side in plane.

    Raises:
        ValueError: the source needs `images.frames` or `images.slices` and they are no number above 0, `images.frames`
            is set for a source of still images, or `cine` is to give volumes.
    """
    source, plane = images_config["source"], (resolution, resolution)
    frames, slices = (int(images_config.get(key) or 0) for key in ("frames", "slices"))
    if source not in SEQUENCES:
        if frames:
            raise ValueError(f"images.frames: {frames}, but images.source {source} has still images; use null")
        return plane if spatial_dims == 2 else (slices or resolution, *plane)
    needed = {"frames": frames}
    if source in MADE_UP or spatial_dims == 3:
        needed["slices"] = slices
    if missing := [key for key, value in needed.items() if value <= 0]:
        raise ValueError(f"images.{missing[0]}: must be a number above 0 for images.source {source}")
    if spatial_dims == 3 and source == "cine":
        raise ValueError("images.source: cine has single slices over time; set matrix.spatial_dims to [2]")
    return (*plane, frames) if spatial_dims == 2 else (slices, *plane, frames)
