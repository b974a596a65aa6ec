"""The whole study, tiny, as a user runs it; and what a second invocation does and does not do again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emissions.records import LEDGER_COLUMNS
from tests.workflow.snake import BASE, TINY, jobs_of, snakemake

pytestmark = pytest.mark.study


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / "results" / name, keep_default_na=False, na_values=[""])


def overlay(folder: Path, text: str) -> Path:
    path = folder / "overlay.yaml"
    path.write_text(text)
    return path


def test_the_ledger_has_a_row_with_energy_for_every_stage_and_item_of_the_plan(tiny_study):
    plan, ledger = read(tiny_study, "plan.csv"), read(tiny_study, "emissions/ledger.csv")
    expected = {("fetch_images", "ct")}
    expected |= {(s, key) for key in plan.cohort for s in ("prepare_cohort", "extract_reference_features")}
    expected |= {(s, key) for key in plan.autoencoder for s in ("train_autoencoder", "encode_latents")}
    expected |= {("train_diffusion", key) for key in plan.model}
    expected |= {(s, key) for key in plan.run for s in ("generate_samples", "audit_fidelity")}
    assert set(zip(ledger.stage, ledger["item"], strict=True)) == expected
    assert len(ledger) == len(expected)
    assert (ledger.energy_kwh > 0).all()
    assert (ledger.energy_low_kwh <= ledger.energy_kwh).all()
    assert (ledger.energy_kwh <= ledger.energy_high_kwh).all()
    assert list(ledger.columns[: len(LEDGER_COLUMNS)]) == list(LEDGER_COLUMNS)


def test_ours_and_codecarbons_energy_agree(tiny_study):
    """Of the whole machine in CodeCarbon's own windows: jobs side by side share it, and it counts it for each."""
    ledger = read(tiny_study, "emissions/ledger.csv").dropna(subset=["codecarbon_kwh", "codecarbon_node_kwh"])
    assert len(ledger) > 5  # the shortest stages are over before it has started
    assert ledger.codecarbon_kwh.sum() == pytest.approx(ledger.codecarbon_node_kwh.sum(), rel=0.25)


def test_work_is_counted(tiny_study):
    ledger = read(tiny_study, "emissions/ledger.csv").set_index("stage")
    assert (ledger.loc["train_diffusion", "images_seen"] >= 16).all()
    assert (ledger.loc["generate_samples", "samples"] > 0).all()
    assert (ledger.loc["generate_samples", "flops"] > 1e6).all()
    assert set(ledger.loc["train_diffusion", "family"]) == {"unet", "dit"}


def test_every_zone_and_month_is_priced(tiny_study):
    zones, seasons = read(tiny_study, "emissions/by_zone.csv"), read(tiny_study, "emissions/by_season.csv")
    assert len(zones) == zones.zone.nunique() == 352
    germany = seasons[seasons.zone == "DE"]
    assert sorted(germany.month) == list(range(1, 13))
    assert germany.emissions_g.nunique() == 12
    namibia = seasons[seasons.zone == "NA"]
    assert len(namibia) in (1, 12)


def test_energy_and_fidelity_meet_in_one_table(tiny_study):
    fidelity = read(tiny_study, "emissions/fidelity.csv")
    assert len(fidelity) == len(read(tiny_study, "plan.csv"))
    assert (fidelity.generation_g_per_sample > 0).all()
    assert (fidelity.fid_efficientnet_lite0 > 0).all()


def test_samples_have_the_shape_of_their_cohort(tiny_study):
    for _, run in read(tiny_study, "plan.csv").iterrows():
        samples = np.load(tiny_study / f"results/runs/{run.run}/samples.npy")
        assert samples.shape == (run.samples, 1, *(run.resolution,) * run.spatial_dims)
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1


def test_no_patient_is_on_both_sides(tiny_study):
    for info in (tiny_study / "results/cohorts").glob("*/cohort.json"):
        patients = json.loads(info.read_text())["patients"]
        sides = {side: {p["patient"] for p in patients if p["split"] == side} for side in ("train", "heldout")}
        assert sides["train"] and sides["heldout"]
        assert not sides["train"] & sides["heldout"]


def test_the_page_and_the_summary_are_there(tiny_study):
    assert (tiny_study / "results/dashboard/index.html").stat().st_size > 1e6
    assert "kWh" in (tiny_study / "results/summary.txt").read_text()


def test_a_second_run_does_nothing(tiny_study):
    assert jobs_of(snakemake(tiny_study, "-n")) == {}


def test_another_zone_trains_nothing(tiny_study):
    jobs = jobs_of(snakemake(tiny_study, "-n", configs=(TINY, overlay(tiny_study, "carbon: {zone: FR}"))))
    assert "price_ledger" in jobs
    after_the_ledger = {"price_ledger", "whatif", "propose_schedule", "measure_savings", "compare_emissions"}
    assert set(jobs) <= after_the_ledger | {"build_dashboard", "print_summary", "all"}


def test_another_resolution_runs_only_what_is_new(tiny_study):
    more = overlay(
        tiny_study,
        "matrix: {include: [{spatial_dims: 3}, {family: unet, sampler: ddim}, {family: unet, resolution: 32}]}",
    )
    jobs = jobs_of(snakemake(tiny_study, "-n", configs=(TINY, more)))
    for rule in ("prepare_cohort", "train_autoencoder", "encode_latents", "train_diffusion", "generate_samples"):
        assert jobs[rule] == 1, rule
    assert "fetch_images" not in jobs


def test_another_sampler_trains_nothing(tiny_study):
    more = overlay(tiny_study, "matrix: {sampler: [dpmpp, ddpm]}")
    jobs = jobs_of(snakemake(tiny_study, "-n", configs=(TINY, more)))
    assert jobs["generate_samples"] > 0
    assert not {"train_diffusion", "train_autoencoder", "encode_latents"} & set(jobs)


def test_snakemakes_own_report_can_be_made(tiny_study):
    finished = snakemake(tiny_study, "--report=report.html")
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert (tiny_study / "report.html").stat().st_size > 1e6


def test_the_default_study_parses(tmp_path):
    jobs = jobs_of(snakemake(tmp_path, "-n", configs=()))
    assert jobs["train_diffusion"] == 12
    assert jobs["generate_samples"] == jobs["audit_fidelity"] == 24
    assert BASE.exists()
