"""Comparisons: allocation conserves, like is compared with like, places and seasons."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emissions import compare
from emissions.acting.savings import measure_savings
from emissions.allocation import EXTENSIVE_COLUMNS, allocate, sample_kind
from emissions.grid.intensity import AnnualIntensity, intensity_of
from emissions.grid.local_time import by_local_hour
from emissions.grid.zones import find_zone
from emissions.pricing import price_ledger
from emissions.tables import read_table
from tests.emissions.studies import ENERGY_KWH, IN_WINDOW, collect, items_of, make_plan, make_record, write_study

HUNDRED = AnnualIntensity(zone=find_zone("DE"), source="made up", basis="made up", year=2024, value_g_per_kwh=100.0)


def shares_of(plan, energies=None, intensity=HUNDRED, keep=lambda stage, item: True):
    """Shares of a study with `ENERGY_KWH` (or `energies` by stage and item), priced at 100 g/kWh."""
    samples = plan.set_index("run")["samples"]
    records = []
    for stage, item in items_of(plan):
        if not keep(stage, item):
            continue
        work = {"samples": int(samples[item])} if stage == "generate_samples" else {}
        work |= {"parameters": 1000} if stage == "train_diffusion" else {}
        energy_kwh = (energies or {}).get((stage, item), ENERGY_KWH[stage])
        records.append(make_record(stage, item, energy_kwh=energy_kwh, **work))
    return allocate(price_ledger(pd.DataFrame(records), intensity, 1.0), plan)


def total_kwh(plan):
    return sum(ENERGY_KWH[stage] for stage, _ in items_of(plan))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_shared_stages_are_allocated_and_nothing_is_lost_or_doubled(data):
    full = make_plan()
    plan = full.loc[sorted(data.draw(st.sets(st.sampled_from(list(full.index)), min_size=1))), :]
    energies = {key: data.draw(st.floats(0, 1e3)) for key in items_of(plan)}
    shares = shares_of(plan, energies)
    back = shares.groupby(["stage", "item"])["energy_kwh"].sum()
    for key, energy_kwh in energies.items():
        assert back[key] == pytest.approx(energy_kwh, rel=1e-12, abs=1e-12)
    for table in (
        compare.by_size(shares),
        compare.by_resolution(shares),
        compare.by_stage(shares),
        compare.by_sampler(shares),
        compare.by_devices(shares),
    ):
        assert table["energy_kwh"].sum() == pytest.approx(sum(energies.values()), rel=1e-12, abs=1e-12)
        assert table["emissions_g"].sum() == pytest.approx(100 * sum(energies.values()), rel=1e-12, abs=1e-9)


def test_a_shared_stage_is_split_equally_over_its_users():
    plan = make_plan(dims=(2,), resolutions=(32,))  # 2 models x 2 samplers share an autoencoder
    shares = shares_of(plan)
    autoencoder = shares[shares["stage"] == "train_autoencoder"]
    assert list(autoencoder["energy_kwh"]) == [0.02] * 4
    model = shares[shares["stage"] == "train_diffusion"]
    assert list(model["energy_kwh"]) == [0.2] * 4
    assert set(EXTENSIVE_COLUMNS) <= set(shares.columns)


def test_an_item_that_no_run_uses_and_an_unknown_stage_are_refused():
    plan = make_plan(dims=(2,), resolutions=(32,))
    with pytest.raises(ValueError, match="no run of the plan uses"):
        allocate(price_ledger(pd.DataFrame([make_record("train_diffusion", "x")]), HUNDRED, 1.0), plan)
    with pytest.raises(ValueError, match="unknown stage 'paint'"):
        allocate(price_ledger(pd.DataFrame([make_record("paint", "x")]), HUNDRED, 1.0), plan)


def test_by_size_has_parameters_and_figures_per_sample():
    plan = make_plan(dims=(2,), resolutions=(32,))
    doubled = {("train_diffusion", "unet-tiny-ct-2d-32-x1-s0"): 0.8}
    table = compare.by_size(shares_of(plan, doubled)).set_index("size")
    nano, tiny = table.loc["nano"], table.loc["tiny"]
    assert nano["parameters"] == 1000
    assert nano["sample_kind"] == "image"
    shared = 0.001 + 0.002 + 0.003 + 0.08 + 0.008
    assert nano["energy_kwh"] == pytest.approx(shared / 2 + 0.4 + 2 * 0.11)
    assert nano["training_kwh"] == pytest.approx(0.044 + 0.4)
    assert nano["generation_kwh"] == pytest.approx(0.2)
    assert nano["samples"] == 16
    assert nano["generation_g_per_sample"] == pytest.approx(IN_WINDOW * 100 * 0.2 / 16)
    assert nano["generation_low_g_per_sample"] == pytest.approx(IN_WINDOW * 90 * 0.2 / 16)
    assert nano["emissions_g_per_sample"] == pytest.approx(100 * nano["energy_kwh"] / 16)
    assert nano["ratio_to_smallest"] == 1.0
    assert tiny["ratio_to_smallest"] == pytest.approx(tiny["energy_kwh"] / nano["energy_kwh"])


def test_rows_are_compared_over_the_same_other_factors():
    """The tiny model only exists at 64: it is compared with nano at 64, though nano has 32 too."""
    plan = make_plan(dims=(2,))
    plan = plan[~((plan["size"] == "tiny") & (plan["resolution"] == 32))]
    costly = {("generate_samples", run): 1.0 for run in plan.loc[plan["resolution"] == 64, "run"]}
    table = compare.by_size(shares_of(plan, costly)).set_index("size")
    assert table["matched"].all()
    assert list(table["runs"]) == [4, 2]
    assert list(table["compared_runs"]) == [2, 2]
    assert list(table["generation_g_per_sample"]) == pytest.approx([IN_WINDOW * 100 / 8] * 2)
    assert table["energy_kwh"].sum() == pytest.approx(shares_of(plan, costly)["energy_kwh"].sum())


def test_rows_with_nothing_in_common_say_so():
    plan = make_plan(dims=(2,))
    plan = plan[(plan["size"] == "nano") == (plan["resolution"] == 32)]
    table = compare.by_size(shares_of(plan))
    assert not table["matched"].any()
    assert list(table["compared_runs"]) == list(table["runs"])


def test_figures_per_sample_are_sums_over_sums():
    """8 images at 0.1 kWh and 8 at 0.3: the mean weighs samples, and 3D has volumes."""
    plan = make_plan(resolutions=(32,), sizes=("nano",))
    energies = {("generate_samples", run): 0.3 for run in plan.loc[plan["sampler"] == "ddim", "run"]}
    shares = shares_of(plan, energies)
    table = compare.by_resolution(shares).set_index("spatial_dims")
    assert table.loc[2, "generation_g_per_sample"] == pytest.approx(IN_WINDOW * 100 * 0.4 / 16)
    assert list(table["sample_kind"]) == ["image", "volume"]
    assert list(table["ratio_to_smallest"]) == [1.0, 1.0]  # an image is not compared with a volume
    assert (sample_kind(2), sample_kind(3)) == ("image", "volume")


def test_samplers_are_compared_by_generation():
    plan = make_plan(dims=(3,), resolutions=(32,), sizes=("nano",))
    energies = {("generate_samples", run): 0.25 for run in plan.loc[plan["sampler"] == "ddim", "run"]}
    table = compare.by_sampler(shares_of(plan, energies)).set_index("sampler")
    assert list(table.index) == ["ddim", "dpmpp"]
    assert table.loc["ddim", "ratio_to_smallest"] == pytest.approx(2.5)
    assert table.loc["ddim", "ratio_basis"] == "generation_g_per_sample over the smallest in 3D"
    assert table.loc["ddim", "seconds_per_sample"] == 60 / 4
    assert table.loc["ddim", "training_kwh"] == pytest.approx((0.4 + 0.088) / 2)


def test_by_stage_shares_add_up_to_100_percent():
    plan = make_plan()
    table = compare.by_stage(shares_of(plan))
    assert table["share_percent"].sum() == pytest.approx(100)
    assert list(table["stage"].drop_duplicates()) == list(ENERGY_KWH)
    training = table[(table["stage"] == "train_diffusion") & (table["spatial_dims"] == 2)].iloc[0]
    assert (training["phase"], training["items"], training["runs"]) == ("training", 4, 8)
    assert (training["energy_kwh"], training["training_kwh"]) == pytest.approx((1.6, 1.6))
    assert training["samples"] == 64
    assert training["emissions_g_per_sample"] == pytest.approx(160 / 64)


def test_by_stage_keeps_what_was_wasted_and_what_came_beside_the_work():
    plan = make_plan(dims=(2,), resolutions=(32,))
    table = compare.by_stage(shares_of(plan)).set_index("stage")
    assert table["startup_kwh"].to_dict() == pytest.approx((0.02 * table["energy_kwh"]).to_dict())
    assert table["metering_kwh"].to_dict() == pytest.approx((0.01 * table["energy_kwh"]).to_dict())
    assert (table["wasted_kwh"] == 0).all()


def test_a_stage_with_an_unknown_metering_has_no_sum_of_it():
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    items = [("train_diffusion", plan["model"].iloc[0]), *(("generate_samples", run) for run in plan["run"])]
    records = [make_record(stage, item, samples=8) for stage, item in items]
    records[1]["metering_kwh"] = None
    table = compare.by_stage(allocate(price_ledger(pd.DataFrame(records), HUNDRED, 1.0), plan)).set_index("stage")
    assert table["metering_kwh"].to_dict() == pytest.approx(
        {"train_diffusion": 0.004, "generate_samples": np.nan}, nan_ok=True
    )


def test_the_break_even_is_where_generation_costs_as_much_as_training():
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    table = compare.by_model(shares_of(plan)).set_index("sampler")
    row = table.loc["ddim"]
    assert row["training_kwh"] == pytest.approx(0.488)  # the denoiser, and all of the autoencoder it alone uses
    assert row["generation_kwh_per_sample"] == pytest.approx(IN_WINDOW * 0.1 / 8)
    assert row["break_even_samples"] == pytest.approx(0.488 / (IN_WINDOW * 0.1 / 8))
    assert row["break_even_samples"] * row["generation_kwh_per_sample"] == pytest.approx(row["training_kwh"])
    assert row["training_over_generation"] == pytest.approx(4.88)
    assert row["extrapolated_generation_kwh_10000_samples"] == pytest.approx(IN_WINDOW * 125.0)
    assert row["extrapolated_training_over_generation_10000_samples"] == pytest.approx(0.488 / (IN_WINDOW * 125))


def test_a_run_without_samples_has_no_figures_per_sample():
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    shares = shares_of(plan, keep=lambda stage, item: stage != "generate_samples")
    assert compare.by_sampler(shares)["generation_g_per_sample"].isna().all()
    assert compare.by_model(shares).empty
    assert compare.by_zone(shares, 2024, 1.0)["emissions_g_per_image"].isna().all()


def test_by_method_says_what_was_measured():
    ledger = pd.DataFrame([make_record("train_diffusion", "m", energy_kwh=1.0)])
    table = compare.by_method(ledger).set_index("component")
    assert list(table["measured"]) == [True, False, False]
    assert list(table["present"]) == [True, False, True]
    assert list(table["share_percent"]) == pytest.approx([75.0, 0.0, 25.0])


def test_by_zone_has_352_zones_at_the_annual_mean_of_the_year():
    plan = make_plan()
    table = compare.by_zone(shares_of(plan), 2024, 1.2)
    assert len(table) == table["zone"].nunique() == 352
    assert table["zone"].notna().all()
    namibia, germany = (table.set_index("zone").loc[zone] for zone in ("NA", "DE"))
    assert namibia["zone_name"] == "Namibia"
    assert germany["carbon_intensity_g_per_kwh"] == 341
    assert germany["emissions_g"] == pytest.approx(total_kwh(plan) * 1.2 * 341)
    assert germany["emissions_high_g"] == pytest.approx(1.1 * germany["emissions_g"])
    assert germany["car_km"] == pytest.approx(germany["emissions_g"] / 107.5)
    assert germany["has_seasonal_data"]
    assert not namibia["has_seasonal_data"]
    assert (table["year"] == 2024).all()
    assert table["ratio_to_smallest"].min() == 1.0
    assert round(table["ratio_to_smallest"].max()) == 57  # the span of the annual lifecycle means of 2024
    volumes = plan.loc[plan["spatial_dims"] == 3, "samples"].sum()
    dims = shares_of(plan).groupby("spatial_dims")["energy_kwh"].sum()
    assert germany["emissions_g_per_volume"] == pytest.approx(dims[3] * 1.2 * 341 / volumes)


def test_by_zone_says_when_another_year_stands_in():
    table = compare.by_zone(shares_of(make_plan(dims=(2,))), 2030, 1.0)
    assert (table["year"] == 2025).all()
    assert table["intensity_source"].str.contains("no value for 2030: nearest year").all()


def test_by_season_gives_germany_12_different_months():
    plan = make_plan()
    table = compare.by_season(shares_of(plan), 2024, 1.0)
    germany = table[table["zone"] == "DE"]
    assert list(germany["month"]) == list(range(1, 13))
    assert germany["emissions_g"].nunique() == 12
    assert germany["ratio_to_smallest"].min() == 1.0
    assert (germany["basis"] == "hourly 2021-2024").all()
    july = germany[germany["month"] == 7].iloc[0]
    assert july["season"] == "summer"
    assert july["emissions_g"] == pytest.approx(total_kwh(plan) * july["carbon_intensity_g_per_kwh"])


def test_a_zone_without_seasons_says_so_and_repeats_nothing():
    table = compare.by_season(shares_of(make_plan(dims=(2,))), 2024, 1.0)
    namibia = table[table["zone"] == "NA"]
    assert len(namibia) == 1
    assert namibia["basis"].iloc[0] == "annual value only: no seasonal data"
    assert namibia[["month", "season", "ratio_to_smallest"]].isna().all(axis=None)
    counts = table.groupby("zone").size()
    assert (counts == 12).sum() == 157
    assert (counts == 1).sum() == 355 - 157


def test_july_is_winter_in_the_south_and_nothing_in_the_tropics():
    table = compare.by_season(shares_of(make_plan(dims=(2,))), 2024, 1.0)
    july = table[table["month"] == 7].set_index("zone")["season"]
    assert (july["AU-NSW"], july["SG"]) == ("winter", "tropical")


def test_an_hour_is_that_of_the_zones_own_clock_and_its_season_that_of_its_hemisphere():
    plan = make_plan(dims=(2,))
    table = compare.by_hour(shares_of(plan), 2024, 1.0)
    assert len(table) == 24 * 157
    california = table[table["zone"] == "US-CAL-CISO"]
    assert california["carbon_intensity_g_per_kwh"].idxmin() in california.index[9:15]  # the sun at its noon
    assert california["emissions_g"].mean() == pytest.approx(
        total_kwh(plan) * intensity_of("US-CAL-CISO", 2024).month_means().mean()
    )
    sydney = table[table["zone"] == "AU-NSW"].set_index("hour")
    july = by_local_hour(intensity_of("AU-NSW", 2024).table_g_per_kwh, "Australia/Sydney", 2024)[[5, 6, 7], 12]
    assert sydney.loc[12, "winter_g_per_kwh"] == pytest.approx(july.mean())
    assert table.loc[table["zone"] == "SG", "winter_g_per_kwh"].isna().all()


def test_fidelity_joins_energy_and_every_scalar_of_the_score():
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    scores = {run: {"run": "no", "fid_efficientnet_lite0": 3.5, "list": [1], "real_patients": 1} for run in plan["run"]}
    table = compare.fidelity(shares_of(plan), scores)
    assert list(table["run"]) == list(plan["run"])
    assert list(table["fid_efficientnet_lite0"]) == [3.5, 3.5]
    assert "list" not in table.columns
    assert table["generation_kwh_per_sample"].iloc[0] == pytest.approx(IN_WINDOW * 0.1 / 8)
    assert table["generation_g_per_sample"].iloc[0] == pytest.approx(IN_WINDOW * 100 * 0.1 / 8)
    with pytest.raises(ValueError, match=r"no fidelity\.json"):
        compare.fidelity(shares_of(plan), {})


def write_tables(tmp_path, plan, **study):
    """Everything that `write_comparisons` reads and writes, for a study of these records (`studies.write_study`)."""
    ledger, attempts = collect(tmp_path, plan, write_study(tmp_path, plan, **study))
    attempts.to_csv(tmp_path / "emissions/attempts.csv", index=False)
    intensity = intensity_of("DE", 2024)
    price_ledger(ledger, intensity, 1.0, attempts=attempts).to_csv(tmp_path / "emissions/priced.csv", index=False)
    measure_savings(attempts, intensity, 1.0).to_csv(tmp_path / "emissions/savings.csv", index=False)
    names = ["by_size", "by_resolution", "by_stage", "by_sampler", "by_devices", "by_model", "by_method"]
    names += ["by_zone", "by_season", "by_hour", "fidelity"]
    scores = [tmp_path / "runs" / run / "fidelity.json" for run in plan["run"]]
    outputs = {name: tmp_path / "emissions" / f"{name}.csv" for name in names}
    compare.write_comparisons(tmp_path / "emissions/priced.csv", tmp_path / "plan.csv", scores, outputs, 2024, 1.0)
    return outputs, scores


def test_the_whole_step_reads_and_writes_files(tmp_path):
    plan = make_plan()
    outputs, scores = write_tables(tmp_path, plan)
    tables = {name: read_table(path) for name, path in outputs.items()}
    for name, table in tables.items():
        assert len(table) > 0
        if name.startswith("by_") and name not in ("by_method", "by_model"):
            assert {"energy_kwh", "emissions_g", "ratio_to_smallest"} <= set(table.columns)
    assert "NA" in set(tables["by_zone"]["zone"])
    assert np.isclose(tables["by_size"]["energy_kwh"].sum(), total_kwh(plan))
    scores[0].write_text("{")
    with pytest.raises(ValueError, match=r"fidelity\.json"):
        compare.read_scores(scores)
    with pytest.raises(ValueError, match=r"ledger\.csv.*no column zone"):
        ledger, _ = collect(tmp_path, plan, write_study(tmp_path, plan))
        ledger.to_csv(tmp_path / "ledger.csv", index=False)
        compare.write_comparisons(tmp_path / "ledger.csv", tmp_path / "plan.csv", [], {}, 2024, 1.0)


def test_starting_up_is_in_the_totals_and_in_no_figure_per_sample():
    plan = make_plan(dims=(2,), resolutions=(32,), sizes=("nano",))
    shares = shares_of(plan)
    row = compare.by_sampler(shares).iloc[0]
    assert row["generation_kwh"] == pytest.approx(0.1)
    assert row["generation_kwh_per_sample"] * row["samples"] == pytest.approx(IN_WINDOW * 0.1)
    without = compare.by_sampler(shares.assign(in_window=1.0)).iloc[0]
    assert without["generation_kwh_per_sample"] * without["samples"] == pytest.approx(0.1)
