"""A made-up study for tests of figures and the dashboard: plausible records, through the real accounting.

Energies follow simple laws (they grow with parameters and cells, generation also with steps), so that tests
know what a table has to say. Nothing here was measured, and nothing here is ever shown to a user.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from emissions.compare import write_comparisons
from emissions.dashboard import build_dashboard
from emissions.ledger import write_ledger
from emissions.phases import STAGES
from emissions.pricing import write_prices
from emissions.records import LEDGER_COLUMNS, append_journal, utc_text, write_record
from emissions.tables import write_table

COMPARISONS = (
    "by_size", "by_resolution", "by_stage", "by_sampler", "by_devices",
    "by_model", "by_method", "by_zone", "by_season", "fidelity",
)  # fmt: skip
FOLDERS = {
    "images": "images",
    "cohort": "cohorts",
    "autoencoder": "autoencoders",
    "model": "models",
    "run": "runs",
}
PARAMETERS = {
    ("unet", "nano"): 700_000,
    ("unet", "tiny"): 2_800_000,
    ("dit", "nano"): 1_270_000,
    ("dit", "tiny"): 4_170_000,
}
POWER_W = 21.0
GPU_POWER_W = 180.0


@dataclass(frozen=True)
class Example:
    """Where a made-up study lies."""

    results: Path
    cohorts: list[Path]
    pictures: list[Path]
    real_pictures: list[Path]

    @property
    def tables(self) -> Path:
        return self.results / "emissions"

    @property
    def plan(self) -> Path:
        return self.results / "plan.csv"


def write_example(results: Path, *, zone: str = "DE", gpu: bool = False, small: bool = False) -> Example:
    """Write a results/ folder. gpu: measured by RAPL and NVML, not estimated; small: one 2D model and run."""
    runs = _small_plan() if small else _plan()
    plan = pd.DataFrame(runs)
    write_table(plan, results / "plan.csv")
    clock = datetime(2026, 11, 23, 9, 12, tzinfo=UTC)
    journal, records = results / "emissions" / "journal.jsonl", []
    for stage, phase in STAGES.items():
        for item, row in plan.drop_duplicates(phase.key).set_index(phase.key, drop=False).iterrows():
            record = _record(stage, str(item), row, clock, gpu)
            clock += timedelta(seconds=record["duration_s"] + 4)
            if stage == "train_diffusion" and not records[-1].match("*/train_diffusion.json"):
                append_journal(journal, _interrupted(record))
            path = results / FOLDERS[phase.key] / str(item) / "emissions" / f"{stage}.json"
            write_record(path, record)
            append_journal(journal, record)
            records.append(path)
    example = _write_artefacts(results, plan)
    ledger, attempts, priced = (example.tables / f"{name}.csv" for name in ("ledger", "attempts", "priced"))
    write_ledger(example.plan, records, journal, ledger, attempts)
    write_prices(ledger, attempts, [], priced, zone=zone, year=2024, pue=1.1)
    outputs = {name: example.tables / f"{name}.csv" for name in COMPARISONS}
    scores = [results / "runs" / run["run"] / "fidelity.json" for run in runs]
    write_comparisons(priced, example.plan, scores, outputs, year=2024, pue=1.1)
    return example


def _plan() -> list[dict[str, Any]]:
    shapes = ((2, 32, 32), (2, 64, 32), (3, 48, 4))
    samplers = (("ddpm", 100), ("dpmpp", 20))
    return [
        _run(family, size, dims, resolution, sampler, steps, samples)
        for (dims, resolution, samples), family, size, (sampler, steps) in product(
            shapes, ("unet", "dit"), ("nano", "tiny"), samplers
        )
    ]


def _small_plan() -> list[dict[str, Any]]:
    return [_run("unet", "nano", 2, 32, "dpmpp", 2, 4)]


def _run(family: str, size: str, dims: int, resolution: int, sampler: str, steps: int, samples: int) -> dict[str, Any]:
    cohort = f"ct-{dims}d-{resolution}"
    model = f"{family}-{size}-{cohort}-x1-s0"
    keys = {
        "run": f"{model}-{sampler}-{steps}",
        "model": model,
        "autoencoder": f"{cohort}-kl",
        "cohort": cohort,
        "images": "ct",
    }
    factors = {"family": family, "size": size, "spatial_dims": dims, "resolution": resolution}
    return keys | factors | {"sampler": sampler, "steps": steps, "devices": 1, "seed": 0, "samples": samples}


def _seconds(stage: str, row: pd.Series) -> float:
    cells = row["resolution"] ** row["spatial_dims"] / 4096
    parameters = PARAMETERS[(row["family"], row["size"])] / 1e6
    return {
        "fetch_images": 14.0,
        "prepare_cohort": 3.0 + cells / 8,
        "extract_reference_features": 2.0 + cells / 10,
        "train_autoencoder": 20.0 + 12 * cells**0.6,
        "encode_latents": 1.5 + cells / 10,
        "train_diffusion": 8.0 + 12 * parameters**0.6 * cells**0.5,
        "generate_samples": 0.02 * row["steps"] * row["samples"] / 8 * (1 + parameters**0.5) * cells**0.8,
        "audit_fidelity": 1.5 + cells / 16,
    }[stage]


def _record(stage: str, item: str, row: pd.Series, start: datetime, gpu: bool) -> dict[str, Any]:
    duration_s = round(_seconds(stage, row), 3)
    cpu_kwh, ram_kwh = POWER_W * duration_s / 3.6e6, 6.0 * duration_s / 3.6e6
    gpu_kwh = GPU_POWER_W * duration_s / 3.6e6 if gpu else None
    energy_kwh = cpu_kwh + ram_kwh + (gpu_kwh or 0.0)
    spread = 0.04 if gpu else 0.35
    warning = "" if gpu else "no RAPL on this machine: CPU energy is a model of load and TDP"
    made = row["samples"] if stage == "generate_samples" else None
    known = {
        "stage": stage, "item": item, "attempts": 1, "outcome": "ok",
        "started_at": utc_text(start), "ended_at": utc_text(start + timedelta(seconds=duration_s)),
        "duration_s": duration_s, "node": "example", "cpu_model": "Example CPU 2-Core Processor",
        "gpu_model": "Example GPU" if gpu else None, "gpu_count": 1 if gpu else 0,
        "cpu_kwh": cpu_kwh, "gpu_kwh": gpu_kwh, "ram_kwh": ram_kwh, "energy_kwh": energy_kwh,
        "energy_low_kwh": energy_kwh * (1 - spread), "energy_high_kwh": energy_kwh * (1 + spread),
        "cpu_method": "rapl" if gpu else "model:load x TDP",
        "gpu_method": "nvml:energy-counter" if gpu else "none",
        "ram_method": "model:W per DIMM", "idle_kwh": energy_kwh / 3, "wasted_kwh": 0.0,
        "codecarbon_kwh": energy_kwh * (1.12 if "train" in stage else 0.9),
        "samples": None if made is None else int(made),
        "parameters": PARAMETERS[(row["family"], row["size"])] if stage == "train_diffusion" else None,
        "devices": 1, "startup_s": 3.0, "warnings": warning, "attempt_id": f"{stage}-{item}",
    }  # fmt: skip
    return {column: known.get(column) for column in LEDGER_COLUMNS}


def _interrupted(record: dict[str, Any]) -> dict[str, Any]:
    return record | {
        "outcome": "interrupted",
        "attempt_id": f"{record['attempt_id']}-first",
        "ended_at": record["started_at"],
    }


def _write_artefacts(results: Path, plan: pd.DataFrame) -> Example:
    rng = np.random.default_rng(0)
    cohorts, real, pictures = [], [], []
    for _, row in plan.drop_duplicates("cohort").iterrows():
        folder = results / "cohorts" / row["cohort"]
        folder.mkdir(parents=True, exist_ok=True)
        cohorts.append(folder / "cohort.json")
        cohorts[-1].write_text(json.dumps(_cohort(row)), encoding="utf-8")
        real.append(_write_picture(folder / "real.png", row, 0.02, rng))
    for position, (_, row) in enumerate(plan.iterrows()):
        folder = results / "runs" / row["run"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fidelity.json").write_text(json.dumps(_scores(row, position)), encoding="utf-8")
        pictures.append(_write_picture(folder / "samples.png", row, 0.15, rng))
    return Example(results, cohorts, pictures, real)


def _cohort(row: pd.Series) -> dict[str, Any]:
    volumes = row["spatial_dims"] == 3
    skipped = [{"patient": "petct", "reason": "fills 0.2 of the field of view's height"}] if volumes else []
    return {
        "cohort": row["cohort"], "images": "ct",
        "spatial_dims": int(row["spatial_dims"]), "resolution": int(row["resolution"]),
        "shape": [int(row["resolution"])] * int(row["spatial_dims"]),
        "patients_train": 3 if volumes else 4, "patients_heldout": 1,
        "images_train": 3 if volumes else 351,
        "images_heldout": 1 if volumes else 83, "copies": 24 if volumes else 4,
        "skipped": skipped, "credit": "made-up example, not images of people",
    }  # fmt: skip


def _scores(row: pd.Series, position: int) -> dict[str, Any]:
    better = {"tiny": 0.8, "nano": 1.0}[row["size"]] * {"unet": 0.9, "dit": 1.0}[row["family"]]
    distance = (180 if row["spatial_dims"] == 2 else 240) * better * (1.06 if row["steps"] < 50 else 1.0) + position % 5
    return {
        "run": row["run"], "real_patients": 1, "real_images": 83, "train_patients": 4,
        "fid_efficientnet_lite0": distance,
        "fid_efficientnet_lite0_train_reference": 96.0,
        "kid_efficientnet_lite0": distance / 2500, "kid_efficientnet_lite0_std": 0.004,
        "ms_ssim": 0.41, "ms_ssim_real": 0.36, "not_computed": "",
    }  # fmt: skip


def _write_picture(path: Path, row: pd.Series, noise: float, rng: np.random.Generator) -> Path:
    """Ellipses with noise, as tiles: something to look at that is nobody's body."""
    side, columns, rows = 128, (6, 2) if row["spatial_dims"] == 3 else (4, 4), 0
    columns, rows = columns
    y, x = np.mgrid[-1:1:128j, -1:1:128j]  # (128, 128) each
    page = np.zeros((rows * side, columns * side))
    for place in range(rows * columns):
        width, height = rng.uniform(0.6, 0.9), rng.uniform(0.45, 0.7)
        tile = ((x / width) ** 2 + (y / height) ** 2 < 1) * 0.55
        for centre in (-0.35, 0.35):
            tile -= (((x - centre) / 0.2) ** 2 + ((y + 0.05) / 0.28) ** 2 < 1) * 0.4
        top, left = place // columns * side, place % columns * side
        page[top : top + side, left : left + side] = tile + np.kron(rng.normal(0, noise, (16, 16)), np.ones((8, 8)))
    Image.fromarray((np.clip(page, 0, 1) * 255).astype(np.uint8)).save(path)
    return path


def build_page(example: Example, title: str, out: Path) -> None:
    """The dashboard of an example."""
    build_dashboard(example.tables, example.plan, example.cohorts, example.pictures, example.real_pictures, title, out)
