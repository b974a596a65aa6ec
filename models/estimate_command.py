"""`footprint estimate --memory`: the memory of training and generation, and what would fit where there is less.

Nothing is loaded until the command runs: every `footprint` command reads this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.estimate import Generator
    from models.estimate_stages import Saving, Settings, Stage
    from models.memory import Memory

COLUMNS = {  # of the table: part of a `Memory`
    "weights": "parameters_gb",
    "gradients": "gradients_gb",
    "optimiser": "optimizer_gb",
    "averaged": "averaged_gb",
    "data": "data_gb",
    "activations": "activations_gb",
    "kept": "kept_gb",
    "workspace": "workspace_gb",
    "runtime": "runtime_gb",
    "total": "total_gb",
}
SAVINGS = {  # fields of `Settings` and `Machine` in words
    "checkpointing": "activation checkpointing",
    "precision": "{}",
    "batch": "batch {}",
    "crop": "crops of {}",
    "slab_gb": "slabs of {:g} GB",
    "keeps_in_memory": "what is kept in files",
}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand: called through the entry point `footprint.commands`."""
    parser = subparsers.add_parser(
        "estimate",
        help="predict the memory of a training and of generation",
        description="Peak memory of each stage of a generator, predicted without running it, in GB of 1e9 bytes.",
        epilog="example: footprint estimate --memory --preset medlord --shape 512x512x256 --limit-gb 24",
    )
    add = parser.add_argument
    add("--memory", action="store_true", help="the question; so far the only one")
    add("--preset", metavar="NAME", help="a published generator: voldit-L/4, cardiodit-B, medlord, ...")
    add("--family", metavar="NAME", help="instead: a family of the study's matrix, with --size and --config")
    add("--size", help="of the family: nano to L, or a published generator")
    add(
        "--config",
        type=Path,
        metavar="YAML",
        help="config whose autoencoder, patch and batches hold (config/config.yaml)",
    )
    add("--shape", type=_shape, metavar="NxNxN", help="of an image or volume, time last (default: as published)")
    add("--stage", choices=("autoencoder", "diffusion", "generation"), help="default: all three")
    add("--batch", type=_at_least_one, help="default: as published, or the config's")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    add("--precision", choices=("bf16", "fp16", "fp32"), default="bf16", help="default: %(default)s")
    add("--checkpointing", action="store_true", help="training keeps no activations inside blocks")
    add("--slab-gb", type=_above_zero, metavar="GB", help="decode in slabs of so much (default: whole)")
    add("--kept", choices=("memory", "files"), default="memory", help="on CPUs: where slabs' activations are kept")
    add("--items", type=int, default=0, help="images or latents that training holds (default: %(default)s)")
    add("--limit-gb", type=_above_zero, metavar="GB", help="memory there is: say what would fit where a stage does not")
    add("--json", action="store_true", help="print the rows as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.memory:
        raise ValueError("footprint estimate: say what to estimate: --memory")
    try:
        from models.estimate import STAGES
        from models.estimate_stages import Settings, shape_text
        from models.memory import Machine
    except ModuleNotFoundError as error:  # metering and pricing are also installed without networks
        raise ValueError(f"footprint estimate: needs {error.name}, which is not installed") from error

    generator = _generator(arguments)
    machine = Machine(arguments.device, arguments.precision, arguments.kept == "memory")
    settings = Settings(machine, arguments.batch, arguments.checkpointing, arguments.slab_gb, arguments.items)
    rows = []
    for name in [arguments.stage] if arguments.stage else STAGES:
        stage = generator.stages[name]
        memory = stage.memory(settings)
        row = {"stage": name, "batch_size": settings.batch or stage.batch, **_figures(memory)}
        if arguments.limit_gb:
            row |= _against(arguments.limit_gb, stage, settings, memory)
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    settings_text = f"{arguments.device}, {arguments.precision}{', checkpointing' if arguments.checkpointing else ''}"
    print(f"{generator.name} at {shape_text(generator.image)}, {settings_text}: predicted peak memory in GB\n")
    print(_text(rows))
    return 0


def _generator(arguments: argparse.Namespace) -> Generator:
    from models.estimate import of_study, published
    from models.networks.sizes import FAMILIES

    if (arguments.preset is None) == (arguments.family is None):
        raise ValueError("footprint estimate: give either --preset, or --family with --size, --shape and --config")
    if arguments.preset:
        return published(arguments.preset, arguments.shape)
    for name in ("size", "shape", "config"):
        if getattr(arguments, name) is None:
            raise ValueError(f"footprint estimate: --family needs --{name} too")
    if arguments.family not in FAMILIES:
        raise ValueError(f"--family: {arguments.family} is not one of {', '.join(FAMILIES)}")
    config = _config(arguments.config)
    try:
        return of_study(config, arguments.family, arguments.size, arguments.shape)
    except KeyError as error:
        raise ValueError(
            f"{arguments.config}: no key {error.args[0]!r}; give a whole config, not an overlay"
        ) from error


def _config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: is no config")
    return config


def _figures(memory: Memory) -> dict[str, Any]:
    return {"moment": memory.moment, **memory.parts(), "total_gb": memory.total_gb}


def _against(limit_gb: float, stage: Stage, settings: Settings, memory: Memory) -> dict[str, Any]:
    """Whether a stage fits; where not, what would."""
    from models.estimate_stages import fitting

    if memory.total_gb <= limit_gb:
        return {"limit_gb": limit_gb, "fits": True, "would_fit": None, "least_gb": memory.total_gb}
    savings, least = fitting(stage, settings, limit_gb)
    would_fit = savings and {"change": ", ".join(map(_words, savings)), "total_gb": least.total_gb}
    return {"limit_gb": limit_gb, "fits": False, "would_fit": would_fit, "least_gb": least.total_gb}


def _words(saving: Saving) -> str:
    from models.estimate_stages import shape_text

    value = shape_text(saving.value) if isinstance(saving.value, tuple) else saving.value
    return SAVINGS[saving.field].format(value)


def _text(rows: list[dict[str, Any]]) -> str:
    """A line a stage, parts that are nothing left out of all of them; then what would fit."""
    shown = {head: part for head, part in COLUMNS.items() if any(row[part] >= 0.005 for row in rows)}
    lines = [f"{'stage':13}{'batch':>5}  {'at its peak':27}" + "".join(f"{head:>12}" for head in shown)]
    for row in rows:
        numbers = "".join(f"{row[part]:>12.2f}" for part in shown.values())
        lines.append(f"{row['stage']:13}{row['batch_size']:>5}  {row['moment']:27}{numbers}")
    verdicts = [_verdict(row) for row in rows if "fits" in row]
    return "\n".join([*lines, *([""] if verdicts else []), *verdicts])


def _verdict(row: dict[str, Any]) -> str:
    if row["fits"]:
        return f"{row['stage']}: fits {row['limit_gb']:g} GB"
    if row["would_fit"]:
        change, total_gb = row["would_fit"]["change"], row["would_fit"]["total_gb"]
        return f"{row['stage']}: does not fit {row['limit_gb']:g} GB; would fit: {change} ({total_gb:.1f} GB)"
    least = f"with all that spares memory it takes {row['least_gb']:.1f} GB"
    return f"{row['stage']}: does not fit {row['limit_gb']:g} GB; {least}: take a smaller volume or model"


def _shape(text: str) -> tuple[int, ...]:
    sides = text.lower().replace(",", "x").split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 512x512x256")
    return tuple(map(int, sides))


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
