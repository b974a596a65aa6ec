"""One self-contained page from a study's tables: it opens without a network, from a disk or a mail."""

from __future__ import annotations

import json
import logging
from calendar import month_name
from collections.abc import Iterable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from emissions.acting.savings import SAVINGS_COLUMNS
from emissions.adherence import DICE
from emissions.allocation import dims_name
from emissions.charts import Section
from emissions.compare import EXTRAPOLATED_SAMPLES
from emissions.equivalents import CAR_G_PER_KM, CAR_SOURCE, car_km
from emissions.figures.theme import (
    PHASE_COLOURS,
    distance_text,
    duration_text,
    energy_text,
    groups_of,
    mass_text,
    rows_of,
    significant,
)
from emissions.files import atomic_path
from emissions.findings import plural, range_text
from emissions.gallery import by_folder, kind_of, patients_text, read_cohort, shown_cohorts
from emissions.grid.intensity import CREDIT
from emissions.grid.zones import find_zone
from emissions.ledger import read_ledger
from emissions.phases import phase_of
from emissions.pricing import sources_text
from emissions.schedule.policies import START_COLUMNS
from emissions.sections import all_sections
from emissions.tables import read_table
from emissions.waste import early_count

logger = logging.getLogger(__name__)

COMPARISONS = (
    "by_model",
    "by_size",
    "by_resolution",
    "by_sampler",
    "by_devices",
    "by_stage",
    "by_method",
    "by_zone",
    "by_season",
    "by_hour",
    "fidelity",
)
MAX_BYTES = 7_000_000
_MONTHS = month_name[1:]
_NO_WASTE = "no attempt ended early"


def build_dashboard(
    tables_dir: str | Path,
    plan: str | Path,
    cohorts: Iterable[str | Path],
    pictures: Iterable[str | Path],
    real_pictures: Iterable[str | Path],
    title: str,
    out_path: str | Path,
    controlled_pictures: Iterable[str | Path] = (),
) -> None:
    """Write the page.

    Args:
        tables_dir: `results/emissions`, with ledger.csv, attempts.csv, priced.csv, schedule.csv, savings.csv, by_*.csv
            and, where the plan has frames, motion.csv; where samples followed masks, adherence.csv.
        plan: plan.csv, one row a run.
        cohorts: `results/cohorts/{cohort}/cohort.json` of each cohort.
        pictures: `results/runs/{run}/samples.png` of each run.
        real_pictures: `results/cohorts/{cohort}/real.png` of each cohort.
        controlled_pictures: `results/runs/{run}/controlled.png` of each run, where samples followed masks.

    Raises:
        ValueError: a table, picture or cohort that does not say what it should, with its name.
        OSError: what cannot be read or written.
    """
    folder = Path(tables_dir)
    tables = {name: read_table(folder / f"{name}.csv") for name in COMPARISONS}
    tables["ledger"] = read_ledger(folder / "ledger.csv")
    tables["savings"] = read_table(folder / "savings.csv", required=SAVINGS_COLUMNS)
    tables["schedule"] = read_table(folder / "schedule.csv", required=START_COLUMNS)
    tables["attempts"] = read_table(folder / "attempts.csv", required=("stage", "outcome", "energy_kwh"))
    priced = read_ledger(folder / "priced.csv")
    if priced.empty:
        raise ValueError(f"{folder / 'priced.csv'}: has no rows; run the study first")
    runs = read_table(plan, required=("run", "model", "cohort"))
    if "frames" in runs and runs["frames"].any():
        tables["motion"] = read_table(folder / "motion.csv", required=("run", "temporal_coherence"))
    if (priced["stage"] == "audit_adherence").any():
        tables["adherence"] = read_table(folder / "adherence.csv", required=("run", *DICE))
    infos = [read_cohort(path) for path in cohorts]
    sections = all_sections(tables, study_zone=str(priced["zone"].iloc[0]))
    found = (by_folder(paths) for paths in (pictures, real_pictures, controlled_pictures))
    shown = shown_cohorts(infos, runs, tables["fidelity"], *found)
    price = price_data(priced, tables["by_zone"], tables["by_season"])
    page = _render(_context(title, priced, runs, infos, tables, sections, shown, price), sections, price)
    if len(page.encode()) > MAX_BYTES:
        logger.warning(
            "%s: %.1f MB, mostly pictures; use fewer samples per picture", out_path, len(page.encode()) / 1e6
        )
    with atomic_path(out_path) as temporary:
        temporary.write_text(page, encoding="utf-8")


# --- the page -----------------------------------------------------------------------------------------------


def _render(context: dict[str, Any], sections: list[Section], price: dict[str, Any]) -> str:
    """Fill the template; nothing in it comes from anywhere but this process."""
    figures = {chart.id: json.loads(chart.figure.to_json()) for section in sections for chart in section.charts}
    topology = json.loads((resources.files("emissions") / "data" / "world_110m.json").read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=jinja2.BaseLoader(), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.from_string(_template("dashboard.html")).render(
        **context,
        css=Markup(_template("dashboard.css")),
        javascript=Markup(_template("dashboard.js")),
        plotly_js=Markup(get_plotlyjs()),
        topology=_json(topology),
        page_data=_json({"figures": figures, "price": price}),
    )


def _template(name: str) -> str:
    return (resources.files("emissions") / "templates" / name).read_text(encoding="utf-8")


def _json(value: Any) -> Markup:
    """JSON for a script element: no NaN, and nothing that ends the element early."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("</", "<\\/").replace("<!--", "<\\!--"))


def _context(
    title: str,
    priced: pd.DataFrame,
    runs: pd.DataFrame,
    infos: list[dict[str, Any]],
    tables: dict[str, pd.DataFrame],
    sections: list[Section],
    shown: list[dict[str, Any]],
    price: dict[str, Any],
) -> dict[str, Any]:
    phases = _phases(priced)
    return {
        "title": title,
        "lead": _lead(priced, runs, tables["by_model"], price),
        "facts": _facts(priced, runs, infos, price),
        "study_zone": price["zone"],
        "zones": [
            {
                "zone": zone,
                "label": f"{entry['name']} ({zone}){'' if entry['months'] else ', annual value only'}",
            }
            for zone, entry in sorted(price["zones"].items(), key=lambda pair: pair[1]["name"].casefold())
        ],
        "months": _MONTHS,
        "cards": _cards(priced),
        "phases": phases,
        "strip_label": "Energy by phase: " + ", ".join(f"{phase['name']} {phase['percent']}" for phase in phases),
        "price_note": price["note"],
        "sections": [asdict_shallow(section) for section in sections],
        "cohorts": shown,
        "credits": _credits(infos, priced),
    }


def asdict_shallow(section: Section) -> dict[str, Any]:
    """A section for the template, its charts with their height and without their figures."""
    charts = [
        {
            "id": chart.id,
            "title": chart.title,
            "lead": chart.lead,
            "note": chart.note,
            "shape": chart.shape,
            "legend": chart.legend,
            "height": chart.height,
            "table": asdict(chart.table) if chart.table else None,
        }
        for chart in section.charts
    ]
    return {
        "id": section.id,
        "title": section.title,
        "intro": section.intro,
        "charts": charts,
        "tables": [asdict(table) for table in section.tables],
    }


def _lead(priced: pd.DataFrame, runs: pd.DataFrame, by_model: pd.DataFrame, price: dict[str, Any]) -> str:
    grams = price["as_run"]["total_g"]
    text = (
        f"Training {plural(runs['model'].nunique(), 'model')} and generating in {plural(len(runs), 'run')} "
        f"took {energy_text(price['energy_kwh'])} and emitted {mass_text(grams)} of CO₂e in "
        f"{price['zones'][price['zone']]['name']}, as much as driving {distance_text(car_km(grams))}."
    )
    known = by_model[by_model["break_even_samples"] > 0]
    if known.empty:
        return text
    largest = known[known["spatial_dims"] == known["spatial_dims"].max()]
    times = EXTRAPOLATED_SAMPLES / largest["break_even_samples"]
    return (
        f"{text} By extrapolation, {EXTRAPOLATED_SAMPLES:,} {largest['sample_kind'].iloc[0]}s would take "
        f"{range_text(times)} times the energy of training the model that makes them."
    )


def _facts(
    priced: pd.DataFrame, runs: pd.DataFrame, infos: list[dict[str, Any]], price: dict[str, Any]
) -> list[dict[str, str]]:
    hardware = [str(value) for column in ("cpu_model", "gpu_model") for value in priced[column].dropna().unique()]
    facts = {
        "Images": _images_text(infos),
        "Runs": f"{plural(len(runs), 'run')} of {plural(runs['model'].nunique(), 'model')}",
        "Hardware": ", ".join(dict.fromkeys(hardware)) or "unknown",
        "When": _period(priced),
        "Grid": f"{price['zones'][price['zone']]['name']}, PUE {significant(price['pue'])}",
    }
    return [{"name": name, "value": value} for name, value in facts.items()]


def _images_text(infos: list[dict[str, Any]]) -> str:
    """The patients behind each dimension: "2D: 4 patients in training, 1 held out"."""
    texts: dict[str, list[str]] = {}
    for info in sorted(infos, key=lambda info: info["spatial_dims"]):
        dims = dims_name(info["spatial_dims"], kind_of(info))
        texts.setdefault(patients_text(info), []).append(dims)
    return "; ".join(f"{' and '.join(dict.fromkeys(dims))}: {text}" for text, dims in texts.items())


def _period(priced: pd.DataFrame) -> str:
    first = pd.Timestamp(priced["started_at"].min())
    last = pd.Timestamp(priced["ended_at"].max())
    start, end = f"{first.day} {first:%B %Y}", f"{last.day} {last:%B %Y}"
    return start if start == end else f"{start} to {end}"


def _cards(priced: pd.DataFrame) -> list[dict[str, str]]:
    def spread(text: Any, column: str, unit: str) -> str:
        low, high = (float(priced[f"{column}_{end}_{unit}"].sum()) for end in ("low", "high"))
        return f"{text(low)} to {text(high)}"

    energy_kwh, grams = float(priced["energy_kwh"].sum()), float(priced["emissions_g"].sum())
    early = early_count(priced)
    wasted = f"{plural(early, 'attempt')} ended early: {energy_text(float(priced['wasted_kwh'].sum()))} wasted"
    rows = (
        ("energy", "Energy", energy_text(energy_kwh), spread(energy_text, "energy", "kwh")),
        ("emissions", "Emissions, CO₂e", mass_text(grams), spread(mass_text, "emissions", "g")),
        ("car", "As far by car", distance_text(car_km(grams)), f"at {CAR_G_PER_KM:g} g of CO₂ a kilometre"),
        # Jobs that ran side by side are added up.
        ("time", "Time of all jobs", duration_text(float(priced["duration_s"].sum())), wasted if early else _NO_WASTE),
    )
    return [{"id": key, "name": name, "value": value, "note": note} for key, name, value, note in rows]


def _phases(priced: pd.DataFrame) -> list[dict[str, Any]]:
    phase = priced["stage"].map(lambda stage: phase_of(stage).phase)
    sums = dict(groups_of(priced.assign(phase=phase), "phase"))
    total_kwh = float(priced["energy_kwh"].sum()) or 1.0
    rows = []
    for key, colour in PHASE_COLOURS.items():
        if key not in sums:
            continue
        share = float(sums[key]["energy_kwh"].sum()) / total_kwh
        rows.append(
            {
                "key": key,
                "name": key.capitalize(),
                "colour": colour,
                "share": share,
                "percent": f"{significant(100 * share, 2)} %",
                "mass": mass_text(float(sums[key]["emissions_g"].sum())),
            }
        )
    return rows


def _credits(infos: list[dict[str, Any]], priced: pd.DataFrame) -> list[str]:
    images = [f"Images: {info['credit']}" for info in infos if info.get("credit")]
    kinds = ", ".join(dict.fromkeys(priced["intensity_kind"].astype(str)))
    return list(
        dict.fromkeys(
            [
                f"{CREDIT}.",
                f"Prices: {kinds} carbon intensity; {sources_text(priced)}. Emissions are energy, times PUE, times "
                "intensity; the making of the hardware is not in them.",
                f"Kilometres by car: {CAR_SOURCE}.",
                *images,
                "Country shapes: world_110m of plotly.js, MIT licence. Charts: plotly.js, MIT licence.",
            ]
        )
    )


# --- prices in the page -------------------------------------------------------------------------------------


def price_data(priced: pd.DataFrame, by_zone: pd.DataFrame, by_season: pd.DataFrame) -> dict[str, Any]:
    """What the page needs to price the same energy in another zone or month.

    `zones`: zone -> name, `year` (g/kWh, the annual mean) and `months` (12 x g/kWh, null without them).
    """
    months = by_season.dropna(subset=["month"]).sort_values("month").groupby("zone")["carbon_intensity_g_per_kwh"]
    monthly = {str(zone): [round(float(value), 1) for value in values] for zone, values in months}
    zones = {
        str(row.zone): {
            "name": str(row.zone_name),
            "year": round(float(row.carbon_intensity_g_per_kwh), 1),
            "months": monthly.get(str(row.zone)),
        }
        for row in rows_of(by_zone)
    }
    zone = str(priced["zone"].iloc[0])
    if zone not in zones:  # the few that have a typical year and no annual value
        mean = round(sum(monthly[zone]) / 12, 1)
        zones[zone] = {"name": find_zone(zone).zone_name, "year": mean, "months": monthly[zone]}
    phases = priced.groupby(priced["stage"].map(lambda stage: phase_of(stage).phase))
    energy = {bound: float(priced[f"energy{bound}_kwh"].sum()) for bound in ("", "_low", "_high")}
    mean_g_per_kwh = float(priced["emissions_g"].sum()) / (energy[""] * float(priced["pue"].iloc[0]) or 1.0)
    when = " at the hours the study ran" if zones[zone]["months"] else ", which has an annual value only"
    return {
        "zone": zone,
        "zones": zones,
        "months": _MONTHS,
        "pue": float(priced["pue"].iloc[0]),
        "car_g_per_km": CAR_G_PER_KM,
        "energy_kwh": energy[""],
        "energy_low_kwh": energy["_low"],
        "energy_high_kwh": energy["_high"],
        "phases_kwh": {str(phase): float(value) for phase, value in phases["energy_kwh"].sum().items()},
        "as_run": {
            "total_g": float(priced["emissions_g"].sum()),
            "low_g": float(priced["emissions_low_g"].sum()),
            "high_g": float(priced["emissions_high_g"].sum()),
            "phases_g": {str(phase): float(value) for phase, value in phases["emissions_g"].sum().items()},
        },
        "note": f"{zones[zone]['name']}{when}: {round(mean_g_per_kwh)} g per kWh "
        f"({sources_text(priced)}). Choose another place or month to price the same energy.",
    }
