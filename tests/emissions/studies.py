"""A small made-up study for the accounting's tests: plan, records with round numbers, files on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from emissions.ledger import collect_attempts, collect_ledger
from emissions.phases import STAGES
from emissions.records import LEDGER_COLUMNS, append_journal, write_record
from emissions.retries import merge

FOLDERS = {
    "images": "images",
    "cohort": "cohorts",
    "autoencoder": "autoencoders",
    "model": "models",
    "run": "runs",
}
ENERGY_KWH = {
    "fetch_images": 0.001,
    "prepare_cohort": 0.002,
    "extract_reference_features": 0.003,
    "train_autoencoder": 0.08,
    "encode_latents": 0.008,
    "train_diffusion": 0.4,
    "generate_samples": 0.1,
    "audit_fidelity": 0.01,
}
ENERGY_COLUMNS = tuple(column for column in LEDGER_COLUMNS if column.endswith("_kwh"))

IN_WINDOW = 0.98  # the part of an energy that was not used in starting up


def carbon(**changes: Any) -> dict[str, Any]:
    """The config's `carbon` section, with changes."""
    return {
        "zone": "DE", "year": 2024, "pue": 1.0, "pue_by_zone": {}, "intensity": "tables", "fallback": True,
        "file": {"path": None, "time": None, "value": None, "kind": None},
        "live": {"url": None, "token_file": None, "cache": None, "max_age_h": 1.0, "timeout_s": 10.0},
    } | changes  # fmt: skip


def make_plan(
    sizes: tuple[str, ...] = ("nano", "tiny"),
    dims: tuple[int, ...] = (2, 3),
    resolutions: tuple[int, ...] = (32, 64),
    samplers: tuple[tuple[str, int], ...] = (("ddim", 50), ("dpmpp", 20)),
    families: tuple[str, ...] = ("unet",),
) -> pd.DataFrame:
    """Every combination as a run, keyed as the project does it."""
    rows = []
    for d, resolution, family, size, (sampler, steps) in product(dims, resolutions, families, sizes, samplers):
        cohort = f"ct-{d}d-{resolution}"
        model = f"{family}-{size}-{cohort}-x1-s0"
        rows.append(
            {
                "run": f"{model}-{sampler}-{steps}", "model": model, "autoencoder": f"{cohort}-kl",
                "cohort": cohort, "images": "ct", "family": family, "size": size, "spatial_dims": d,
                "resolution": resolution, "sampler": sampler, "steps": steps, "devices": 1, "seed": 0,
                "samples": 8 if d == 2 else 4,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def make_record(stage: str, item: str, **changes: Any) -> dict[str, Any]:
    """One ok attempt of 60 s with the stage's round energy, 10 % either way, that had half of its node.

    CPU and RAM miss by 8 and 6 % of it below, which makes 10 in quadrature, and by 4.8 and 3.6 % above, which with
    the 4 % that no sensor sees makes 10 as well. `changes` replace values.
    """
    energy_kwh = changes.pop("energy_kwh", ENERGY_KWH.get(stage, 0.1))
    record: dict[str, Any] = dict.fromkeys(LEDGER_COLUMNS)
    record |= {
        "stage": stage, "item": item, "attempts": 1, "outcome": "ok",
        "started_at": "2026-01-15T10:00:00.000Z", "ended_at": "2026-01-15T10:01:00.000Z", "duration_s": 60.0,
        "startup_s": 1.0, "node": "bench",
        "cpu_kwh": 0.75 * energy_kwh, "ram_kwh": 0.25 * energy_kwh, "energy_kwh": energy_kwh,
        "cpu_low_kwh": 0.67 * energy_kwh, "cpu_high_kwh": 0.798 * energy_kwh,
        "ram_low_kwh": 0.19 * energy_kwh, "ram_high_kwh": 0.286 * energy_kwh, "unseen_kwh": 0.04 * energy_kwh,
        "energy_low_kwh": 0.9 * energy_kwh, "energy_high_kwh": 1.1 * energy_kwh, "cpu_method": "rapl",
        "gpu_method": "none", "ram_method": "model:W per DIMM", "wasted_kwh": 0.0,
        "idle_kwh": 0.3 * energy_kwh, "startup_kwh": (1 - IN_WINDOW) * energy_kwh, "metering_kwh": 0.01 * energy_kwh,
        "cpu_s": 50.0, "node_kwh": 2 * energy_kwh, "rest_kwh": 0.1 * energy_kwh,
        "codecarbon_kwh": 1.8 * energy_kwh, "codecarbon_node_kwh": 2 * energy_kwh,
        "warnings": "", "attempt_id": f"{stage}/{item}/ok", "earlier_attempts": "",
    }  # fmt: skip
    return record | changes


def early_attempt(record: dict[str, Any], outcome: str, number: int, share: float = 0.5) -> dict[str, Any]:
    """An attempt at the same that used `share` of the record's energy and then ended without a result."""
    scaled = {column: share * record[column] for column in ENERGY_COLUMNS if record[column] is not None}
    ended = {"outcome": outcome, "attempt_id": f"{record['attempt_id']}-early-{number}"}
    return record | scaled | ended | {"wasted_kwh": share * record["energy_kwh"]}


def items_of(plan: pd.DataFrame) -> list[tuple[str, str]]:
    """Every (stage, item) of a plan of images that follow no masks, in the study's order."""
    known = [*ENERGY_KWH, *(["audit_motion"] if "frames" in plan and plan["frames"].any() else [])]
    return [(stage, item) for stage, phase in STAGES.items() if stage in known for item in plan[phase.key].unique()]


def write_study(
    results: Path, plan: pd.DataFrame, early: Mapping[str, Sequence[str]] | None = None, **changes: Any
) -> list[Path]:
    """Write plan.csv, cohort.json, fidelity.json, the records and the journal; returns the records' paths.

    early: stage -> outcomes of the attempts that ended early at its first item, each after half of the energy.
    """
    pending = dict(early or {})
    (results / "emissions").mkdir(parents=True, exist_ok=True)
    plan.to_csv(results / "plan.csv", index=False)
    paths = []
    samples = plan.set_index("run")["samples"]
    for stage, item in items_of(plan):
        work = {"samples": int(samples[item])} if stage == "generate_samples" else {}
        record = make_record(stage, item, **work, **changes)
        ended_early = [early_attempt(record, outcome, number) for number, outcome in enumerate(pending.pop(stage, ()))]
        path = results / FOLDERS[STAGES[stage].key] / item / "emissions" / f"{stage}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, merge(ended_early, record))
        for attempt in (*ended_early, record):
            append_journal(results / "emissions" / "journal.jsonl", attempt)
        paths.append(path)
    counts = {"patients_train": 3, "patients_heldout": 1, "images_train": 120, "images_heldout": 40}
    for cohort in plan["cohort"].unique():
        (results / "cohorts" / cohort / "cohort.json").write_text(json.dumps(counts))
    for run in plan["run"]:
        scores = {"run": run, "fid_efficientnet_lite0": 12.5, "ms_ssim": None, "per_image": [1, 2]}
        (results / "runs" / run / "fidelity.json").write_text(json.dumps(scores))
    return paths


def collect(results: Path, plan: pd.DataFrame, paths: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ledger and attempts of a study on disk."""
    journal = results / "emissions" / "journal.jsonl"
    return collect_ledger(plan, paths), collect_attempts(plan, paths, journal)
