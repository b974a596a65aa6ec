"""The figures: what is drawn is what the table says, in every shape of study."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions import figures, findings
from emissions.figures import theme
from emissions.figures.grid import alpha3, season_rows
from emissions.figures.methods import stage_energy
from emissions.figures.quality import frontier
from emissions.grid.zones import data_table
from emissions.places_section import place_section
from emissions.records import is_measured
from emissions.tables import read_table
from emissions.waste import waste_by_stage
from tests.emissions.example_results import COMPARISONS, write_example

TOPOLOGY = Path(figures.__file__).parents[1] / "data" / "world_110m.json"
OF_TABLE = {
    "training_against_generation": "by_model",
    "break_even": "by_model",
    "by_size": "by_size",
    "by_resolution": "by_resolution",
    "by_sampler": "by_sampler",
    "by_devices": "by_devices",
    "by_stage": "by_stage",
    "components": "by_method",
    "codecarbon_ratio": "ledger",
    "fidelity": "fidelity",
    "interval": "ledger",
    "waste": "waste",
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    example = write_example(tmp_path_factory.mktemp("study") / "results")
    names = (*COMPARISONS, "schedule", "savings", "ledger", "attempts")
    tables = {name: read_table(example.tables / f"{name}.csv") for name in names}
    return tables | {"waste": waste_by_stage(tables["by_stage"], tables["ledger"], tables["attempts"])}


def plain(figure: go.Figure) -> dict:
    return json.loads(figure.to_json())


def shown_x(figure: go.Figure) -> list[float]:
    return [value for trace in plain(figure)["data"] for value in trace.get("x", []) if value is not None]


@pytest.mark.parametrize(("name", "table"), OF_TABLE.items())
def test_every_figure_names_its_axis_its_unit_and_its_keys(
    name: str, table: str, tables: dict[str, pd.DataFrame]
) -> None:
    figure = getattr(figures, name)(tables[table])
    title = figure.layout.xaxis.title.text
    assert any(unit in title for unit in ("CO₂e", "Wh", "Samples", "over ours"))
    assert figure.layout.meta["legend"]
    assert "NaN" not in figure.to_json() and "Infinity" not in figure.to_json()


@pytest.mark.parametrize(("name", "table"), OF_TABLE.items())
def test_an_empty_table_gives_a_figure_that_says_so(name: str, table: str, tables: dict[str, pd.DataFrame]) -> None:
    figure = getattr(figures, name)(tables[table].iloc[:0])
    assert figure.layout.annotations[0].text
    if name == "codecarbon_ratio":  # its sentence is about sums of the ledger
        assert findings.codecarbon(stage_energy(tables[table].iloc[:0]))
    elif name == "waste":
        assert findings.waste(tables[table].iloc[:0], tables["attempts"])
    else:
        assert getattr(findings, name)(tables[table].iloc[:0])


def test_extrapolation_is_hollow_and_ten_thousand_times_one_sample(tables: dict[str, pd.DataFrame]) -> None:
    by_model = tables["by_model"]
    figure = figures.training_against_generation(by_model)
    hollow = [trace for trace in plain(figure)["data"] if str(trace.get("marker", {}).get("symbol")).endswith("-open")]
    drawn = sorted(value for trace in hollow for value in trace["x"])
    assert drawn == pytest.approx(sorted(by_model["generation_g_per_sample"] * 10_000))
    assert all("extrapolated from" in text for trace in hollow for text in trace["text"])


def test_break_even_axis_holds_every_value_and_the_published_number(tables: dict[str, pd.DataFrame]) -> None:
    figure = figures.break_even(tables["by_model"])
    low, high = figure.layout.xaxis.range
    values = [*tables["by_model"]["break_even_samples"], 10_000]
    assert low < math.log10(min(values)) and math.log10(max(values)) < high
    assert figure.layout.shapes[0].x0 == 10_000


@pytest.mark.parametrize("name", ["by_size", "by_resolution", "by_sampler"])
def test_generation_is_drawn_with_its_interval(name: str, tables: dict[str, pd.DataFrame]) -> None:
    made = plain(getattr(figures, name)(tables[name]))["data"][0]
    table = tables[name].set_index("generation_g_per_sample")
    for value, above, below in zip(made["x"], made["error_x"]["array"], made["error_x"]["arrayminus"], strict=True):
        row = table.loc[value]
        assert value + above == pytest.approx(row["generation_high_g_per_sample"])
        assert value - below == pytest.approx(row["generation_low_g_per_sample"])


def test_stages_add_up_to_the_study(tables: dict[str, pd.DataFrame]) -> None:
    figure = figures.by_stage(tables["by_stage"])
    assert figure.layout.xaxis.title.text.endswith(", g")
    assert sum(shown_x(figure)) == pytest.approx(tables["by_stage"]["emissions_g"].sum())


def test_kept_and_wasted_add_up_to_each_stage_and_waste_is_hatched(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["waste"]
    kept, wasted = plain(figures.waste(table))["data"]
    assert figures.waste(table).layout.xaxis.title.text == "Energy, Wh"
    drawn = [a + b for a, b in zip(kept["x"], wasted["x"], strict=True)]
    assert drawn == pytest.approx((1000 * table["energy_kwh"]).tolist())
    assert sum(wasted["x"]) == pytest.approx(1000 * tables["ledger"]["wasted_kwh"].sum())
    assert wasted["marker"]["pattern"]["shape"] and "pattern" not in kept["marker"]
    assert [label != "" for label in wasted["text"]] == (table["wasted_kwh"] > 0).tolist()
    assert any("1 interrupted" in text for text in wasted["hovertext"])
    lost = {"train_autoencoder", "train_diffusion", "generate_samples"}
    assert set(table.loc[table["wasted_kwh"] > 0, "stage"]) == lost


def test_without_waste_every_bar_is_whole_and_the_legend_says_none(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["waste"].assign(wasted_kwh=0.0, kept_kwh=tables["waste"]["energy_kwh"], wasted_percent=0.0)
    figure = figures.waste(table)
    kept, wasted = plain(figure)["data"]
    assert kept["x"] == pytest.approx((1000 * table["energy_kwh"]).tolist())
    assert set(wasted["x"]) == {0.0} and set(wasted["text"]) == {""}
    assert "wasted: none" in [key["label"] for key in figure.layout.meta["legend"]]


def test_kept_and_wasted_differ_in_lightness() -> None:
    lighter, darker = _luminance(theme.KEPT_COLOUR), _luminance(theme.WASTED_COLOUR)
    assert (lighter + 0.05) / (darker + 0.05) >= 3  # WCAG 2.2, graphical objects


def test_the_interval_ends_in_what_no_sensor_sees(tables: dict[str, pd.DataFrame]) -> None:
    ledger = tables["ledger"]
    traces = plain(figures.interval(ledger))["data"]
    dotted = [trace["x"] for trace in traces if trace["mode"] == "lines+markers"]
    unseen, high = 1000 * ledger["unseen_kwh"].sum(), 1000 * ledger["energy_high_kwh"].sum()
    assert dotted[0] == pytest.approx([0.0, unseen]) and dotted[1] == pytest.approx([high - unseen, high])
    whole = next(trace for trace in traces if trace["marker"]["symbol"] == "diamond")
    assert whole["x"][0] == pytest.approx(1000 * ledger["energy_kwh"].sum())
    assert whole["x"][0] + whole["error_x"]["array"][0] == pytest.approx(high - unseen)
    assert whole["x"][0] - whole["error_x"]["arrayminus"][0] == pytest.approx(1000 * ledger["energy_low_kwh"].sum())
    circles = [trace for trace in traces if trace["marker"]["symbol"] == "circle"]
    assert sum(trace["x"][0] for trace in circles) == pytest.approx(whole["x"][0])


def test_without_anything_unseen_nothing_is_dotted(tables: dict[str, pd.DataFrame]) -> None:
    figure = figures.interval(tables["ledger"].assign(unseen_kwh=0.0))
    assert all(trace["mode"] == "markers" for trace in plain(figure)["data"])
    assert [key["symbol"] for key in figure.layout.meta["legend"]] == ["interval"]


def test_codecarbon_is_compared_with_our_meters_in_its_own_windows(tables: dict[str, pd.DataFrame]) -> None:
    ledger = tables["ledger"]
    ours, theirs = plain(figures.codecarbon_ratio(ledger))["data"]
    drawn = dict(zip(theirs["y"], theirs["x"], strict=True))
    assert drawn["train diffusion"] == pytest.approx(1.12) and drawn["generate samples"] == pytest.approx(0.9)
    rows = ledger[ledger["stage"] == "generate_samples"]
    high = (rows["energy_high_kwh"].sum() - rows["unseen_kwh"].sum()) / rows["energy_kwh"].sum()
    assert 1 + ours["error_x"]["array"][theirs["y"].index("generate samples")] == pytest.approx(high)
    unknown = figures.codecarbon_ratio(ledger.assign(codecarbon_node_kwh=math.nan))
    assert not unknown.data and unknown.layout.annotations[0].text


def test_the_map_shows_every_zone_once_and_rings_the_study_zone(tables: dict[str, pd.DataFrame]) -> None:
    figure = plain(figures.world_map(tables["by_zone"], data_table("zone_points.csv"), "DE"))
    countries, points, ring = figure["data"]
    assert len(countries["z"]) + len(points["lat"]) == len(tables["by_zone"]) == 352
    polygons = {shape["id"] for shape in json.loads(TOPOLOGY.read_text())["objects"]["countries"]["geometries"]}
    assert set(countries["locations"]) <= polygons
    assert len(set(countries["locations"])) == len(countries["locations"])
    assert ring["locations"] == ["DEU"]


@pytest.mark.parametrize(("zone", "kind"), [("SG", "scattergeo"), ("US-CAL-CISO", "scattergeo"), ("NA", "choropleth")])
def test_the_ring_follows_the_kind_of_zone(zone: str, kind: str, tables: dict[str, pd.DataFrame]) -> None:
    figure = plain(figures.world_map(tables["by_zone"], data_table("zone_points.csv"), zone))
    assert figure["data"][-1]["type"] == kind and len(figure["data"]) == 3


def test_alpha3_knows_namibia_and_not_parts_of_countries() -> None:
    assert alpha3("NA") == "NAM"
    assert alpha3("DE") == "DEU"
    assert alpha3("US-CAL-CISO") is None
    assert alpha3("XK") is None


def test_season_rows_put_the_study_first_and_span_the_range(tables: dict[str, pd.DataFrame]) -> None:
    by_season = tables["by_season"].dropna(subset=["month"])
    rows = season_rows(by_season, "DE", rows=10)
    assert rows[0] == "DE" and len(rows) == len(set(rows)) == 10
    months = by_season[by_season["zone"].isin(rows[1:])].groupby("zone")["carbon_intensity_g_per_kwh"]
    swings = (months.max() / months.min()).loc[rows[1:]].tolist()
    assert swings == sorted(swings, reverse=True)


def test_season_heat_map_shows_each_zone_against_its_own_mean(tables: dict[str, pd.DataFrame]) -> None:
    figure = plain(figures.season_heat_map(tables["by_season"], "DE"))
    heat = figure["data"][0]
    assert heat["y"][0] == "<b>Germany</b>" and len(heat["x"]) == 12
    for row in heat["z"]:
        assert sum(row) == pytest.approx(0, abs=1e-6)


def test_hours_of_the_day_are_lines_by_season_and_the_years_mean(tables: dict[str, pd.DataFrame]) -> None:
    figure = plain(figures.hours_of_day(tables["by_hour"], "DE"))
    assert [line["name"] for line in figure["data"]] == ["winter", "spring", "summer", "autumn", "all year"]
    own = tables["by_hour"][tables["by_hour"]["zone"] == "DE"]
    assert figure["data"][-1]["y"] == own["carbon_intensity_g_per_kwh"].tolist()
    tropical = plain(figures.hours_of_day(tables["by_hour"], "SG"))
    assert [line["name"] for line in tropical["data"]] == ["all year"]
    assert "annual value only" in findings.hour(tables["by_hour"], "AE")
    assert figures.hours_of_day(tables["by_hour"], "AE").layout.height < 200


def test_the_place_section_holds_its_ratios_against_what_was_published(tables: dict[str, pd.DataFrame]) -> None:
    section = place_section(tables, "DE")
    extremes, policies, savings = section.tables
    assert [row[4] for row in extremes.rows] == ["up to 94 times"] * 3 + ["up to 50 %"]
    assert {row[5] for row in extremes.rows} <= {"reached", "not reached"}
    assert [row[0] for row in policies.rows] == ["now", "best single start", "whole DAG"]
    assert {row[0]: row[1] for row in savings.rows}["train_diffusion"] == "1"
    still = tables["savings"].assign(moved_h=0.0, pauses=0)
    assert len(place_section(tables | {"savings": still}, "DE").tables) == 2, (
        "a study that did not act has no table of it"
    )


def test_season_heat_map_of_a_zone_without_months_shows_the_others(tables: dict[str, pd.DataFrame]) -> None:
    heat = plain(figures.season_heat_map(tables["by_season"], "AE"))["data"][0]
    assert not any("Emirates" in label for label in heat["y"])
    assert "annual value only" in findings.season(tables["by_season"], "AE")


def test_frontier_holds_what_nothing_beats() -> None:
    table = pd.DataFrame(
        {"generation_g_per_sample": [1.0, 2.0, 3.0, 4.0], "fid_efficientnet_lite0": [9.0, 9.5, 7.0, 8.0]}
    )
    assert frontier(table)["generation_g_per_sample"].tolist() == [1.0, 3.0]


def test_fidelity_is_named_after_its_network_and_shows_the_reference(tables: dict[str, pd.DataFrame]) -> None:
    group = tables["fidelity"].query("spatial_dims == 3")
    figure = figures.fidelity(group)
    assert figure.layout.yaxis.title.text == "FID (EfficientNet-Lite0)"
    assert any("96" in note.text for note in figure.layout.annotations)


def test_estimates_are_hatched_and_measurements_solid(tmp_path: Path) -> None:
    example = write_example(tmp_path / "results", gpu=True, small=True)
    by_method = read_table(example.tables / "by_method.csv")
    for bar in plain(figures.components(by_method))["data"]:
        method = re.sub("<[^>]*>", " ", bar["y"][0]).split(maxsplit=1)[1]
        assert bool(bar["marker"]["pattern"]["shape"]) is not is_measured(method)
    assert "%" in findings.components(by_method)


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_masses_keep_three_digits(grams: float) -> None:
    number, unit = theme.mass_text(grams).split(" ")
    factor = {"t": 1e6, "kg": 1e3, "g": 1.0, "mg": 1e-3, "µg": 1e-6}[unit]
    assert float(number.replace(",", "")) * factor == pytest.approx(grams, rel=0.0051)


@given(st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=20))
def test_log_axes_hold_all_values_and_have_ticks(values: list[float]) -> None:
    axis = theme.log_axis("x", values, theme.mass_text)
    low, high = axis["range"]
    assert low < math.log10(min(values)) and math.log10(max(values)) < high
    assert axis["tickvals"] and all(low <= math.log10(tick) <= high for tick in axis["tickvals"])


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2.2, relative luminance


@pytest.mark.parametrize("colour", [theme.INK, theme.MUTED])
def test_text_has_enough_contrast_on_white(colour: str) -> None:
    assert 1.05 / (_luminance(colour) + 0.05) >= 4.5


def test_the_intensity_scale_darkens_all_the_way() -> None:
    luminance = [_luminance(colour) for _, colour in theme.INTENSITY_SCALE]
    assert luminance == sorted(luminance, reverse=True)


def test_sizes_of_published_generators_have_the_order_of_their_letters():
    sizes = ["medlord", "voldit-L/2", "tiny", "voldit-XS/4", "cardiodit-B", "nano", "voldit-S/4"]
    assert sorted(sizes, key=theme.size_rank) == [
        "nano", "tiny", "voldit-XS/4", "voldit-S/4", "cardiodit-B", "voldit-L/2", "medlord",
    ]  # fmt: skip
