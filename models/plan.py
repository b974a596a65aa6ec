"""From the config to plan tables: which runs there are, and which models, autoencoders and cohorts they share.

The only reader of the config's `matrix`. Keys are names, put together in a fixed order, and never taken apart again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from models.data.shapes import image_shape
from models.diffusion.samplers import SAMPLERS, samplers_for
from models.networks.presets import preset_named
from models.networks.sizes import SIZES, downsampling

FACTORS = ("family", "size", "spatial_dims", "resolution", "sampler", "steps", "devices", "seed")
COLUMNS = ("run", "model", "autoencoder", "cohort", "images", *FACTORS, "frames", "samples")

IN_KEYS = str.maketrans("/+", "--")  # keys are names of folders

Row = dict[str, Any]
Table = dict[str, Row]


@dataclass(frozen=True)
class Plan:
    """Plan tables: key to row. A row holds the keys it builds on and every factor that it depends on, no other."""

    runs: Table
    models: Table
    autoencoders: Table
    cohorts: Table
    images: Table

    def items(self) -> Iterator[tuple[str, str]]:
        """Every folder of artefacts under results/: (kind, key), in the order of the flow."""
        for kind in ("images", "cohorts", "autoencoders", "models", "runs"):
            yield from ((kind, key) for key in getattr(self, kind))

    def rows(self) -> list[list[Any]]:
        """The runs as rows of `COLUMNS`, for plan.csv."""
        return [[row[column] for column in COLUMNS] for row in self.runs.values()]


def make_plan(config: dict[str, Any]) -> Plan:
    """Expand the matrix of a valid config.

    Raises:
        ValueError: naming the key of the config, when no run is left, a factor is repeated, a network is not one of its
            family or does not take such images, crops cannot be halved by the autoencoder, a sampler does not go with
            the prediction, or a batch cannot be shared by the devices.
    """
    plan = Plan({}, {}, {}, {}, {})
    name = config["images"]["name"]
    plan.images[name] = {"images": name}
    for factors in expand_matrix(config["matrix"]):
        check_run(factors, config)
        dims, resolution = factors["spatial_dims"], factors["resolution"]
        frames = config["images"]["frames"] or 0
        cohort = f"{name}-{dims}d{'t' if frames else ''}-{resolution}"
        autoencoder = f"{cohort}-{config['autoencoder']['kind']}"
        network = f"{factors['family']}-{factors['size'].translate(IN_KEYS)}"
        model = f"{network}-{cohort}-x{factors['devices']}-s{factors['seed']}"
        run = f"{model}-{factors['sampler']}-{factors['steps']}"

        of_cohort = {
            "cohort": cohort,
            "images": name,
            "spatial_dims": dims,
            "resolution": resolution,
            "frames": frames,
        }
        of_autoencoder = {"autoencoder": autoencoder, **of_cohort}
        trained_by = {factor: factors[factor] for factor in ("family", "size", "devices", "seed")}
        of_model = {"model": model, **of_autoencoder, **trained_by}
        samples = config["sampling"]["samples"][f"{dims}d"]
        plan.cohorts[cohort] = of_cohort
        plan.autoencoders[autoencoder] = of_autoencoder
        plan.models[model] = of_model
        sampled_by = {"sampler": factors["sampler"], "steps": factors["steps"], "samples": samples}
        plan.runs[run] = {"run": run, **of_model, **sampled_by}
    if not plan.runs:
        raise ValueError("matrix: no run is left, `exclude` removes all of them")
    return plan


def expand_matrix(matrix: dict[str, Any]) -> list[Row]:
    """All combinations of factors, each once, in the order of the matrix, then of `include`; without `exclude`."""
    base = {factor: matrix[factor] for factor in FACTORS}
    for factor, values in base.items():
        if len(set(values)) < len(values):
            raise ValueError(f"matrix.{factor}: a value is there twice in {values}")
    blocks = [base, *({**base, **listed(row)} for row in matrix.get("include", []))]
    combinations = [
        dict(zip(FACTORS, values, strict=True))
        for block in blocks
        for values in product(*(block[factor] for factor in FACTORS))
    ]
    excluded = [listed(row) for row in matrix.get("exclude", [])]
    kept = [row for row in combinations if not any(agrees(row, pattern) for pattern in excluded)]
    return [row for i, row in enumerate(kept) if row not in kept[:i]]


def listed(row: Row) -> dict[str, list[Any]]:
    """A row of `include` or `exclude` with every value as a list."""
    return {factor: value if isinstance(value, list) else [value] for factor, value in row.items()}


def agrees(row: Row, pattern: dict[str, list[Any]]) -> bool:
    """Whether a combination has one of the listed values in every factor that the pattern names."""
    return all(row[factor] in values for factor, values in pattern.items())


def check_run(factors: Row, config: dict[str, Any]) -> None:
    """Refuse a combination that could not run, before anything is trained; see `make_plan` for the errors."""
    shape = image_shape(config["images"], factors["spatial_dims"], factors["resolution"])
    check_network(factors, shape, config)
    check_autoencoder(factors["spatial_dims"], shape, config)
    prediction = config["diffusion"]["prediction"]
    if factors["sampler"] not in samplers_for(prediction):
        known = ", ".join(samplers_for(prediction) if factors["sampler"] in SAMPLERS else SAMPLERS)
        raise ValueError(f"matrix.sampler: {factors['sampler']} does not go with {prediction}; use one of {known}")
    check_steps(factors["sampler"], factors["steps"], config["diffusion"]["timesteps"])
    batch = config["diffusion"]["batch_size"][f"{factors['spatial_dims']}d"]
    if batch % factors["devices"]:
        raise ValueError(
            f"diffusion.batch_size.{factors['spatial_dims']}d: {batch} cannot be shared evenly by "
            f"{factors['devices']} devices"
        )


def check_network(factors: Row, shape: tuple[int, ...], config: dict[str, Any]) -> None:
    """Refuse a size that the family does not have, or a network that does not take images of this shape."""
    family, size = factors["family"], factors["size"]
    if size not in SIZES:
        try:
            preset = preset_named(size)
        except ValueError as error:
            raise ValueError(f"matrix.size: {size} is not one of {', '.join(SIZES)}, and {error}") from None
        if preset.family != family:
            raise ValueError(f"matrix.size: {size} is a {preset.family}; set matrix.family to [{preset.family}]")
        if preset.axes != len(shape):
            raise ValueError(f"matrix.size: {size} is for images of {preset.axes} axes, and these have {len(shape)}")
    if family == "unet-slices" and len(shape) < 4:
        raise ValueError("matrix.family: unet-slices is for stacks of slices over time; use unet")
    patch = config["diffusion"]["patch"]
    if family == "dit" and size in SIZES and isinstance(patch, list) and len(patch) != len(shape):
        raise ValueError(f"diffusion.patch: {patch} has {len(patch)} sides, and images here have {len(shape)} axes")


def check_autoencoder(spatial_dims: int, shape: tuple[int, ...], config: dict[str, Any]) -> None:
    """Refuse an autoencoder that images of this shape, or crops of them, do not go through."""
    settings, dims = config["autoencoder"], f"{spatial_dims}d"
    seen = shape[-3:]  # a stack over time is seen slice by slice
    factors, crop = downsampling(len(seen), dims, settings), settings["crop"][dims]
    if crop is not None and any(crop % factor for factor in factors[: 2 if config["images"]["frames"] else None]):
        raise ValueError(f"autoencoder.crop.{dims}: {crop} must be a multiple of {max(factors)}, the downsampling")


def check_steps(sampler: str, steps: int, timesteps: int) -> None:
    """Refuse more steps than noise levels, and uneven steps where the sampler takes them for even ones.

    The schedulers of DDPM and DDIM go back by a whole number of timesteps: with 40 steps over 300 they would drift away
    from the levels that they were asked for, and the mean of what they draw with them.
    """
    if steps > timesteps:
        raise ValueError(f"matrix.steps: {steps} is more than diffusion.timesteps, {timesteps}")
    if sampler in ("ddpm", "ddim") and timesteps % steps:
        divisors = [n for n in range(1, timesteps + 1) if timesteps % n == 0]
        below, above = max(n for n in divisors if n < steps), min(n for n in divisors if n > steps)
        raise ValueError(
            f"matrix.steps: {sampler} needs a divisor of diffusion.timesteps, {timesteps}, and {steps} is none; "
            f"the nearest are {below} and {above}"
        )
