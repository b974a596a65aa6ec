"""A made-up study for tests of figures and the dashboard: plausible records, through the real accounting.

Energies follow simple laws (they grow with parameters and cells, generation also with steps), so that tests
know what a table has to say. Nothing here was measured, and nothing here is ever shown to a user.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from emissions.acting.pauses import PauseLog, pauses_path
from emissions.acting.savings import write_savings
from emissions.acting.starts import starts_path
from emissions.compare import write_comparisons
from emissions.dashboard import build_dashboard
from emissions.ledger import write_ledger
from emissions.phases import STAGES
from emissions.pricing import write_prices
from emissions.records import LEDGER_COLUMNS, append_journal, parse_utc, utc_text, write_record
from emissions.retries import merge
from emissions.schedule.propose import write_schedule
from emissions.tables import read_table, write_table
from emissions.uncertainty import STARTUP_ERROR, Interval, combine, unseen
from tests.emissions.studies import FOLDERS, carbon, items_of

COMPARISONS = (
    "by_size", "by_resolution", "by_stage", "by_sampler", "by_devices",
    "by_model", "by_method", "by_zone", "by_season", "by_hour", "fidelity",
)  # fmt: skip
PARAMETERS = {
    ("unet", "nano"): 700_000,
    ("unet", "tiny"): 2_800_000,
    ("dit", "nano"): 1_270_000,
    ("dit", "tiny"): 4_170_000,
}
POWER_W = 21.0
GPU_POWER_W = 180.0
SIDE_BY_SIDE = ("train_diffusion", "generate_samples")
# Stage -> attempts that ended early at its first item: outcome, and the parts of the work that it did and that a
# checkpoint kept.
EARLY = {
    "train_autoencoder": [("interrupted", 0.3, 0.0)],
    "train_diffusion": [("killed", 0.5, 0.4), ("killed", 0.3, 0.1)],
    "generate_samples": [("failed", 0.6, 0.0)],
}


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


def write_example(
    results: Path, *, zone: str = "DE", gpu: bool = False, small: bool = False, moving: bool = False
) -> Example:
    """Write a results/ folder.

    gpu: measured by RAPL and NVML, not estimated; small: one 2D model and run, and no attempt that ended early;
    moving: of sequences, in 2D+t and 3D+t.
    """
    runs = _small_plan() if small else _moving_plan() if moving else _plan()
    plan = pd.DataFrame(runs)
    write_table(plan, results / "plan.csv")
    clock = datetime(2026, 11, 23, 9, 12, tzinfo=UTC)
    journal, records = results / "emissions" / "journal.jsonl", []
    early = {} if small else dict(EARLY)
    for stage in dict.fromkeys(stage for stage, _ in items_of(plan)):
        phase = STAGES[stage]
        for item, row in plan.drop_duplicates(phase.key).set_index(phase.key, drop=False).iterrows():
            attempts, kept_kwh = _attempts(stage, str(item), row, clock, gpu, early.pop(stage, ()))
            duration_s = sum(attempt["duration_s"] + 4 for attempt in attempts)
            # Models and runs go two at a time, as the next starts when half of this one is over.
            clock += timedelta(seconds=duration_s / (2 if stage in SIDE_BY_SIDE else 1))
            path = results / FOLDERS[phase.key] / str(item) / "emissions" / f"{stage}.json"
            write_record(path, merge(attempts[:-1], attempts[-1], kept_kwh))
            for attempt in attempts:
                append_journal(journal, attempt)
            records.append(path)
    example = _write_artefacts(results, plan)
    ledger, attempts_path, priced = (example.tables / f"{name}.csv" for name in ("ledger", "attempts", "priced"))
    write_ledger(example.plan, records, journal, ledger, attempts_path)
    write_prices(ledger, attempts_path, [], priced, carbon(zone=zone, pue=1.1))
    outputs = {name: example.tables / f"{name}.csv" for name in (*COMPARISONS, *(["motion"] if moving else []))}
    scores = [results / "runs" / run["run"] / "fidelity.json" for run in runs]
    motion = [path.with_name("motion.json") for path in scores if moving]
    write_comparisons(priced, example.plan, scores, outputs, year=2024, pue=1.1, motion_paths=motion)
    _write_savings(example, ledger, attempts_path, carbon(zone=zone, pue=1.1), acted=not small)
    write_schedule(ledger, example.plan, example.tables / "schedule.csv", carbon(zone=zone, pue=1.1), slack_h=24)
    return example


def _write_savings(
    example: Example, ledger: Path, attempts_path: Path, carbon_section: dict[str, Any], *, acted: bool
) -> None:
    """acted: the study was asked for six hours before it began, and its last training paused."""
    starts, pauses = starts_path(example.results), pauses_path(example.results)
    if acted:
        began = datetime(2026, 11, 23, 9, 12, tzinfo=UTC)
        plan = {"requested_at": utc_text(began - timedelta(hours=6)), "planned_start": utc_text(began)}
        starts.write_text(json.dumps([plan | {"deadline": utc_text(began + timedelta(hours=9))}]))
        training = read_table(attempts_path).query("stage == 'train_diffusion'").iloc[-1]
        ended = parse_utc(training["ended_at"])
        log = PauseLog(pauses, str(training["attempt_id"]), None)
        log.ended(ended - timedelta(seconds=30), ended - timedelta(seconds=5))
    write_savings(ledger, attempts_path, [], starts, pauses, example.tables / "savings.csv", carbon_section)


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


def _moving_plan() -> list[dict[str, Any]]:
    samplers = (("ddim", 50), ("dpmpp", 20))
    return [
        _run("dit", "nano", dims, 48, sampler, steps, 8) | {"frames": 12}
        for dims, (sampler, steps) in product((2, 3), samplers)
    ]


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
        "audit_motion": 0.5,
    }[stage]


def _attempts(
    stage: str, item: str, row: pd.Series, start: datetime, gpu: bool, early: Sequence[tuple[str, float, float]]
) -> tuple[list[dict[str, Any]], float]:
    """The attempts at one item, the ok one last, and the energy of the early ones that was not in vain."""
    whole_s, done, kept_kwh, attempts = _seconds(stage, row), 0.0, 0.0, []
    for number, (outcome, ran, kept) in enumerate(early):
        attempt = _record(stage, item, row, start, ran * whole_s, gpu)
        attempt |= {"outcome": outcome, "attempt_id": f"{stage}-{item}-early-{number}"}
        attempt["wasted_kwh"] = attempt["energy_kwh"]
        attempts.append(attempt)
        start += timedelta(seconds=ran * whole_s + 4)
        kept_kwh += attempt["energy_kwh"] * kept / ran
        done += kept
    attempts.append(_record(stage, item, row, start, (1 - done) * whole_s, gpu))
    if stage == "train_diffusion":
        attempts[-1] |= {"images_seen": 4000, "images_resumed": round(4000 * done)}
    return attempts, kept_kwh


def _record(stage: str, item: str, row: pd.Series, start: datetime, seconds: float, gpu: bool) -> dict[str, Any]:
    duration_s = round(seconds, 3)
    hour_kw = duration_s / 3.6e6  # kWh of one watt over the window
    startup_kwh, window_kwh = 3.0 * POWER_W / 3.6e6, POWER_W * hour_kw
    ram_kwh, gpu_kwh = 6.0 * hour_kw, GPU_POWER_W * hour_kw if gpu else 0.0
    # Sensors err by 5 %; a model of the CPU by far more, and memory by half.
    cpu_below, cpu_above = (0.05, 0.05) if gpu else (0.6, 0.3)
    cpu = Interval(window_kwh, (1 - cpu_below) * window_kwh, (1 + cpu_above) * window_kwh)
    startup = Interval(startup_kwh, (1 - STARTUP_ERROR) * startup_kwh, (1 + STARTUP_ERROR) * startup_kwh)
    gpus = Interval(gpu_kwh, 0.95 * gpu_kwh, 1.05 * gpu_kwh)
    ram = Interval(ram_kwh, 0.5 * ram_kwh, 1.5 * ram_kwh)
    unseen_kwh = unseen(window_kwh + startup_kwh + gpu_kwh + ram_kwh)
    whole = combine([cpu, startup, gpus, ram], unseen_kwh)
    # What CodeCarbon reads is the whole machine, with a second job beside this one or without, and no start-up.
    machine_kwh = (1.9 if stage in SIDE_BY_SIDE else 1.02) * (window_kwh + gpu_kwh + ram_kwh)
    warning = "" if gpu else "no RAPL on this machine: CPU energy is a model of load and TDP"
    known = {
        "stage": stage, "item": item, "attempts": 1, "outcome": "ok",
        "started_at": utc_text(start), "ended_at": utc_text(start + timedelta(seconds=duration_s)),
        "duration_s": duration_s, "node": "example", "cpu_model": "Example CPU 2-Core Processor",
        "gpu_model": "Example GPU" if gpu else None, "gpu_count": 1 if gpu else 0,
        "cpu_kwh": window_kwh + startup_kwh, "gpu_kwh": gpu_kwh, "ram_kwh": ram_kwh,
        "energy_kwh": whole.energy, "energy_low_kwh": whole.low, "energy_high_kwh": whole.high,
        "cpu_low_kwh": cpu.low + startup.low, "cpu_high_kwh": cpu.high + startup.high,
        "gpu_low_kwh": gpus.low, "gpu_high_kwh": gpus.high, "ram_low_kwh": ram.low, "ram_high_kwh": ram.high,
        "unseen_kwh": unseen_kwh, "startup_s": 3.0, "startup_kwh": startup_kwh, "metering_kwh": 0.15 * hour_kw,
        "cpu_method": "rapl" if gpu else "model:load x TDP",
        "gpu_method": "nvml:energy-counter" if gpu else "none", "ram_method": "model:W per DIMM",
        # A counter does not tell what an idle machine would have used.
        "idle_kwh": None if gpu else 8.0 * hour_kw, "wasted_kwh": 0.0, "cpu_s": 0.9 * duration_s,
        "node_kwh": machine_kwh + 0.15 * hour_kw, "rest_kwh": 0.02 * machine_kwh,
        "gpu_integral_kwh": 0.99 * gpu_kwh if gpu else None, "gpu_utilisation_percent": 85.0 if gpu else None,
        "gpu_memory_gb": 5.5 if gpu else None,
        "codecarbon_kwh": machine_kwh * (1.12 if "train" in stage else 0.9), "codecarbon_node_kwh": machine_kwh,
        "samples": int(row["samples"]) if stage == "generate_samples" else None,
        "parameters": PARAMETERS[(row["family"], row["size"])] if stage == "train_diffusion" else None,
        "devices": 1, "warnings": warning, "attempt_id": f"{stage}-{item}", "earlier_attempts": "",
        "identity": "example",
    }  # fmt: skip
    return {column: known.get(column) for column in LEDGER_COLUMNS}


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
        if "frames" in row:
            (folder / "motion.json").write_text(json.dumps(_motion(row)), encoding="utf-8")
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
        "skipped": skipped, "credit": "made-up example, not images of people", **_of_frames(row),
    }  # fmt: skip


def _of_frames(row: pd.Series) -> dict[str, Any]:
    """What cohort.json says of sequences only."""
    if "frames" not in row:
        return {}
    side, slices = int(row["resolution"]), [6] if row["spatial_dims"] == 3 else []
    shape = [*slices, side, side, int(row["frames"])]
    return {"frames": shape[-1], "shape": shape, "patients": [{"patient": "made-up", "synthetic": True}]}


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


def _motion(row: pd.Series) -> dict[str, Any]:
    """Of stacks all figures, of single slices those over time; samples are a little worse than held-out ones."""
    stacks = bool(row["spatial_dims"] == 3)
    found: dict[str, Any] = {"run": row["run"], "frames": row["frames"]}
    for prefix, count, worse in (("", 8, 0.1), ("heldout_", 2, 0.0), ("train_", 6, 0.0)):
        figures = {
            "temporal_coherence": 0.5 - worse - row["steps"] * worse / 1000, "cycle_gap": 0.9,
            "slice_consistency": 0.88 - worse if stacks else None, "slice_synchrony": 0.3 - worse if stacks else None,
            "ejection_fraction": 0.41 - worse if stacks else None, "thickening": 0.33 - worse if stacks else None,
        }  # fmt: skip
        found[f"{prefix}sequences"] = count
        found[f"{prefix}hearts"] = count - bool(worse) if stacks else None
        for name, value in figures.items():
            found |= {prefix + name: value, f"{prefix}{name}_std": None if value is None else value / 10}
    for split in ("heldout", "train"):
        known = {f"{split}_true_ejection_fraction": 0.46, f"{split}_true_ejection_fraction_std": None}
        found |= known if stacks else dict.fromkeys(known)
    return found | {"not_computed": "" if stacks else "ejection fraction: a single slice has no volume"}


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
