"""The dashboard's section on other places and other times: where, which month, which hour, and when to run it next."""

from __future__ import annotations

import pandas as pd

from emissions import figures, findings
from emissions.acting.savings import savings_of, savings_text
from emissions.charts import Chart, Columns, Section, Table, text_table
from emissions.extremes import between_months, between_places
from emissions.figures.theme import MONTHS, mass_text, significant
from emissions.grid.intensity import NO_SEASONS
from emissions.grid.zones import SEASONS, data_table


def place_section(tables: dict[str, pd.DataFrame], study_zone: str) -> Section:
    """tables: `by_zone`, `by_season` and `by_hour` of `compare.write_comparisons`; `schedule` of `schedule.propose`;
    `savings` of `acting.savings`.
    """
    by_zone, by_season, by_hour = tables["by_zone"], tables["by_season"], tables["by_hour"]
    of_zone: Columns = {
        "zone": ("Zone", None),
        "zone_name": ("Name", None),
        "carbon_intensity_g_per_kwh": ("g/kWh", significant),
        "emissions_g": ("CO₂e of this study", mass_text),
        "ratio_to_smallest": ("Ratio to the cleanest", significant),
    }
    charts = [
        Chart(
            "world",
            "Where it runs",
            findings.world_map(by_zone, study_zone),
            figures.world_map(by_zone, data_table("zone_points.csv"), study_zone),
            text_table(by_zone, of_zone),
            "Countries are polygons; parts of countries and small states are points. Pale grey: no zone of "
            "its own. Average lifecycle intensity, annual means.",
            shape="wide",
        ),
        Chart(
            "season",
            "When it runs",
            findings.season(by_season, study_zone),
            figures.season_heat_map(by_season, study_zone),
            _season_table(by_season),
            f"{by_season['month'].isna().sum()} zones are not drawn ({NO_SEASONS}).",
            shape="wide",
        ),
        Chart(
            "hour",
            "At which hour",
            findings.hour(by_hour, study_zone),
            figures.hours_of_day(by_hour, study_zone),
            _hour_table(by_hour, study_zone),
            "Seasons are those of the zone's own hemisphere; hours are its own, summer time included.",
            shape="wide",
        ),
    ]
    below = [_extremes_table(by_zone, study_zone), _policy_table(tables["schedule"])]
    savings = savings_of(tables["savings"])
    if savings["waited_h"] or savings["pauses"]:
        below.append(_savings_table(tables["savings"], savings))
    return Section("place", "The same work elsewhere, and at another time", "", charts, below)


def _extremes_table(by_zone: pd.DataFrame, study_zone: str) -> Table:
    """How far apart places and months are, on which basis, beside what was published."""
    found = [*between_places(int(by_zone["year"].mode().iloc[0])), between_months(study_zone)]
    rows = [
        {
            "basis": one.basis,
            "cleanest": f"{one.cleanest}: {one.cleanest_g_per_kwh:.0f} g/kWh",
            "dirtiest": f"{one.dirtiest}: {one.dirtiest_g_per_kwh:.0f} g/kWh",
            "ratio": one.ratio,
            "published": one.published,
            "reached": "reached" if one.reaches else "not reached",
        }
        for one in found
        if one is not None
    ]
    columns: Columns = {
        "basis": ("Basis", None),
        "cleanest": ("Cleanest", None),
        "dirtiest": ("Dirtiest", None),
        "ratio": ("Ratio", significant),
        "published": ("Published", None),
        "reached": ("On this basis", None),
    }
    lead = (
        "A ratio means little without its basis. The Latent Pollution Model study (arXiv 2407.14892) does not say that "
        "of its figures; direct factors, single hours and a ratio of PUE can each make a ratio larger."
    )
    return text_table(pd.DataFrame(rows), columns, "How far apart places and times are", lead)


def _season_table(by_season: pd.DataFrame) -> Table:
    months = by_season.dropna(subset=["month"])
    wide = months.pivot(index=["zone", "zone_name"], columns="month", values="carbon_intensity_g_per_kwh")
    wide.columns = [MONTHS[int(month) - 1] for month in wide.columns]
    columns: Columns = {"zone": ("Zone", None), "zone_name": ("Name, g/kWh", None)}
    columns |= {str(month): (str(month), significant) for month in wide.columns}
    return text_table(wide.reset_index(), columns)


def _hour_table(by_hour: pd.DataFrame, study_zone: str) -> Table:
    own = by_hour[by_hour["zone"] == study_zone]
    columns: Columns = {
        "hour": ("Hour", lambda hour: f"{int(hour)}:00"),
        "carbon_intensity_g_per_kwh": ("g/kWh, all year", significant),
        "emissions_g": ("CO₂e of this study", mass_text),
        **{f"{season}_g_per_kwh": (season, significant) for season in SEASONS},
    }
    return text_table(own, columns)


def _policy_table(schedule: pd.DataFrame) -> Table:
    """A row per policy of `results/emissions/schedule.csv`: when it begins and ends, and what it saves."""
    rows = []
    for policy, starts in schedule.groupby("policy", sort=False):
        grams, now_g = float(starts["emissions_g"].sum()), float(starts["now_g"].sum())
        rows.append(
            {
                "policy": policy,
                "begins": f"{pd.Timestamp(starts['planned_start'].min()):%Y-%m-%d %H:%M}",
                "ends": f"{pd.Timestamp(starts['planned_end'].max()):%Y-%m-%d %H:%M}",
                "emissions_g": grams,
                "saved_percent": 100 * (1 - grams / now_g) if now_g > 0 else float("nan"),
            }
        )
    columns: Columns = {
        "policy": ("Plan", None),
        "begins": ("Begins, UTC", None),
        "ends": ("Ends, UTC", None),
        "emissions_g": ("CO₂e", mass_text),
        "saved_percent": ("Saved, %", significant),
    }
    kind, source = schedule["intensity_kind"].iloc[0], schedule["intensity_source"].iloc[0]
    lead = f"Had this study been free to wait. {str(kind).capitalize()} intensity: {source}."
    return text_table(pd.DataFrame(rows), columns, "When to run it", lead)


def _savings_table(table: pd.DataFrame, savings: dict[str, float]) -> Table:
    """A row per stage of what the study emitted, having waited and paused, and would have at once."""
    sums = table.groupby("stage", sort=False)[["pauses", "paused_h", "at_once_g", "emissions_g", "saved_g"]].sum()
    columns: Columns = {
        "stage": ("Stage", None),
        "pauses": ("Pauses", lambda count: f"{count:.0f}"),
        "paused_h": ("Paused, h", significant),
        "at_once_g": ("CO₂e at once", mass_text),
        "emissions_g": ("CO₂e as it ran", mass_text),
        "saved_g": ("Saved", mass_text),
    }
    lead = savings_text(savings, mass_text) + ". Energy used in pauses is in what was emitted."
    return text_table(sums.reset_index(), columns, "What waiting and pausing saved", lead[0].upper() + lead[1:])
