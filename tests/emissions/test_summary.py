"""The summary at the end of a study."""

import json
from datetime import timedelta

import pandas as pd
import pytest

from emissions.acting.savings import measure_savings
from emissions.grid.intensity import CREDIT, intensity_of
from emissions.pricing import write_prices
from emissions.records import parse_utc, utc_text
from emissions.summary import MAX_SAMPLER_LINES, energy_text, mass_text, significant, summarise, summary_text
from tests.emissions.studies import IN_WINDOW, carbon, collect, make_plan
from tests.emissions.test_compare import total_kwh, write_tables


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_tables(folder, make_plan())
    return folder


def test_the_figures_are_those_of_the_tables(results):
    study = summarise(results)
    assert study["totals"]["energy_kwh"] == pytest.approx(total_kwh(make_plan()))
    assert study["totals"]["codecarbon_kwh"] == pytest.approx(0.9 * study["totals"]["codecarbon_node_kwh"])
    assert study["totals"]["codecarbon_node_kwh"] == pytest.approx(2 * study["totals"]["energy_kwh"])
    assert study["totals"]["car_km"] == pytest.approx(study["totals"]["emissions_g"] / 107.5)
    assert study["phases"][0]["break_even_samples"] == pytest.approx(
        1.776 / 4 / (IN_WINDOW * 0.8 / 64)
    )  # of one of four models
    assert study["places"]["zones"] == 352
    assert study["seasons"]["ratio"] > 1
    assert [row["patients_heldout"] for row in study["patients"]] == [1, 1]
    assert json.loads(json.dumps(study, allow_nan=False)) == study


def test_the_text_fits_a_screen_and_says_what_it_rests_on(results):
    text = summary_text(results)
    assert len(text.splitlines()) < 40
    assert max(len(line) for line in text.splitlines()) <= 110
    for words in (
        "kWh (", "g CO2e (", "km by car (107.5 g/km", "Germany (DE)", "average lifecycle", "hourly 2021-2024",
        "trained on 3 patients", "held out 1", "measured    cpu 75 % (rapl)",
        "estimated   ram 25 % (model:W per DIMM)",
        "annual means of 2024", "352 zones", "index.html", "wasted      nothing: no attempt ended early",
    ):  # fmt: skip
        assert words in text
    assert CREDIT in " ".join(text.split())


def test_the_text_says_what_attempts_that_ended_early_took(tmp_path):
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    early = {"train_diffusion": ["killed", "failed"], "generate_samples": ["killed"]}
    write_tables(tmp_path, plan, early=early)
    wasted_kwh = 0.4 + 0.1 / 2  # twice half of a training, once half of a generation
    percent = 100 * wasted_kwh / (total_kwh(plan) + wasted_kwh)
    assert f"450 Wh ({significant(percent, 2)} %) in 3 attempts that ended early: 1 failed, 2 killed" in summary_text(
        tmp_path
    )


def test_codecarbon_is_compared_over_the_rows_that_know_both(tmp_path):
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    write_tables(tmp_path, plan)
    assert "9 stages" not in summary_text(tmp_path)
    priced_path = tmp_path / "emissions/priced.csv"
    priced = pd.read_csv(priced_path, keep_default_na=False, na_values=[""])
    whole_kwh = priced["energy_kwh"].sum()
    priced.loc[priced["stage"] == "train_diffusion", "codecarbon_node_kwh"] = None
    priced.to_csv(priced_path, index=False)
    ours = energy_text(2 * (whole_kwh - 0.4))
    assert f"our meters {ours} (-10.0 %), in 9 stages" in summary_text(tmp_path)
    priced["codecarbon_node_kwh"] = None
    priced.to_csv(priced_path, index=False)
    assert "CodeCarbon" not in summary_text(tmp_path)


def test_many_samplers_do_not_flood_the_screen(results, tmp_path):
    plan = make_plan(resolutions=(32,), sizes=("nano",), samplers=tuple(("ddim", steps) for steps in range(1, 12)))
    write_tables(tmp_path, plan)
    text = summary_text(tmp_path)
    assert f"and {22 - MAX_SAMPLER_LINES} more in by_sampler.csv" in text
    assert len(text.splitlines()) < 40


def test_a_zone_without_seasons_says_so(results, tmp_path):
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    write_tables(tmp_path, plan)
    paths = sorted(tmp_path.glob("*/*/emissions/*.json"))
    ledger, attempts = collect(tmp_path, plan, paths)
    ledger.to_csv(tmp_path / "ledger.csv", index=False)
    attempts.to_csv(tmp_path / "attempts.csv", index=False)
    priced = tmp_path / "emissions/priced.csv"
    write_prices(tmp_path / "ledger.csv", tmp_path / "attempts.csv", [], priced, carbon(zone="NA", pue=1.5))
    text = summary_text(tmp_path)
    assert "NA: annual value only: no seasonal data" in text
    assert "PUE 1.5" in text


def test_a_study_that_waited_says_what_that_saved(results, tmp_path):
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    write_tables(tmp_path, plan)
    assert "acted" not in summary_text(tmp_path)
    attempts = pd.read_csv(tmp_path / "emissions/attempts.csv")
    planned = parse_utc(attempts["started_at"].min())
    request = {"requested_at": utc_text(planned - timedelta(hours=5)), "planned_start": utc_text(planned)}
    savings = measure_savings(attempts, intensity_of("DE", 2024), 1.0, [request])
    savings.to_csv(tmp_path / "emissions/savings.csv", index=False)
    text = summary_text(tmp_path)
    assert "acted       waited 5.0 h: " in text and len(text.splitlines()) < 40
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_study_that_did_not_run_is_one_clear_error(tmp_path, results):
    with pytest.raises(FileNotFoundError, match=r"priced\.csv.*run the study first"):
        summarise(tmp_path)
    (tmp_path / "emissions").mkdir()
    pd.read_csv(results / "emissions/priced.csv").iloc[:0].to_csv(tmp_path / "emissions/priced.csv", index=False)
    with pytest.raises(ValueError, match="no rows"):
        summarise(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1230000"),
        (0.000012345, "0.0000123"),
        (None, "-"),
        (float("nan"), "-"),
        (99.99, "100"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert significant(value) == text


def test_units_keep_numbers_readable():
    assert energy_text(0.0123) == "12.3 Wh"
    assert energy_text(2.0) == "2 kWh"
    assert mass_text(0.00042) == "420 ug"
    assert mass_text(1234.0) == "1.23 kg"
    assert mass_text(None) == "-"
    assert energy_text(0.0) == "0 kWh"
