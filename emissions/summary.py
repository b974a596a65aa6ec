"""The summary of a study: one screen of plain text, from the tables under results/."""

from __future__ import annotations

import calendar
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emissions.acting.savings import SAVINGS_COLUMNS, savings_of, savings_text
from emissions.allocation import dims_name, sample_kind
from emissions.breakdown import codecarbon_sums
from emissions.equivalents import CAR_G_PER_KM, car_km
from emissions.grid.intensity import CREDIT
from emissions.grid.zones import find_zone
from emissions.ledger import read_ledger
from emissions.phases import phase_of
from emissions.pricing import sources_text
from emissions.tables import read_table
from emissions.waste import early_count, ended_early, outcomes_text

MAX_SAMPLER_LINES = 6  # keeps the text on one screen

_ENERGY_UNITS = ((1.0, "kWh"), (1e-3, "Wh"), (1e-6, "mWh"), (1e-9, "uWh"))
_MASS_UNITS = ((1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "ug"))


def summarise(results: str | Path) -> dict[str, Any]:
    """The study's main figures as a dictionary that JSON can hold; unknown values are None.

    Raises FileNotFoundError or ValueError naming the table that is missing or unreadable.
    """
    folder = Path(results) / "emissions"
    ledger = read_ledger(folder / "priced.csv")
    if ledger.empty:
        raise ValueError(f"{folder / 'priced.csv'}: has no rows; run the study first")
    tables = {name: read_table(folder / f"{name}.csv") for name in ("by_stage", "by_sampler", "by_method")}
    places = {name: read_table(folder / f"{name}.csv") for name in ("by_zone", "by_season")}
    attempts = read_table(folder / "attempts.csv", required=("outcome",))
    plan = read_table(Path(results) / "plan.csv", required=("run", "cohort", "spatial_dims"))
    return _plain(
        {
            "totals": _totals(ledger, attempts),
            "phases": _phases(tables["by_stage"]),
            "samplers": tables["by_sampler"].to_dict("records"),
            "places": _places(places["by_zone"]),
            "seasons": _seasons(places["by_season"], str(ledger["zone"].iloc[0])),
            "savings": savings_of(read_table(folder / "savings.csv", required=SAVINGS_COLUMNS)),
            "patients": _patients(Path(results), plan),
            "methods": tables["by_method"].to_dict("records"),
            "dashboard": str(Path(results) / "dashboard" / "index.html"),
            "credit": CREDIT,
        }
    )


def summary_text(results: str | Path) -> str:
    """`summarise` as aligned text of fewer than 40 lines. Raises as it does."""
    study = summarise(results)
    sections = [
        _totals_lines(study["totals"]),
        _phase_lines(study["phases"]),
        _sampler_lines(study["samplers"]),
        _place_lines(study["places"], study["seasons"], study["savings"]),
        _trust_lines(study),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent; "-" when unknown."""
    if value is None or not np.isfinite(value):
        return "-"
    rounded = float(f"{value:.{digits}g}")
    return np.format_float_positional(rounded, trim="-")


def energy_text(energy_kwh: float | None) -> str:
    """An energy in the unit of the kWh family that keeps its number readable."""
    return _with_unit(energy_kwh, _ENERGY_UNITS)


def mass_text(emissions_g: float | None) -> str:
    """Grams of CO2e in kg, g, mg or ug, whichever keeps the number readable."""
    return _with_unit(emissions_g, _MASS_UNITS)


def _with_unit(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    if value is None:
        return "-"
    factor, unit = next(((f, u) for f, u in units if abs(value) >= f or (value == 0 and f == 1.0)), units[-1])
    return f"{significant(value / factor)} {unit}"


def _plain(value: Any) -> Any:
    """The same with what JSON can hold: plain Python values, and None for what is missing."""
    if isinstance(value, dict):
        return {key: _plain(content) for key, content in value.items()}
    if isinstance(value, list):
        return [_plain(content) for content in value]
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _totals(ledger: pd.DataFrame, attempts: pd.DataFrame) -> dict[str, Any]:
    first = ledger.iloc[0]
    zone = find_zone(first["zone"])
    sums = {
        column: float(ledger[column].astype("float64").sum())
        for column in (
            "energy_kwh", "energy_low_kwh", "energy_high_kwh", "emissions_g", "emissions_low_g",
            "emissions_high_g", "duration_s", "wasted_kwh",
        )
    }  # fmt: skip
    codecarbon = codecarbon_sums(ledger)
    compared = int(codecarbon["rows"])
    early = early_count(ledger)
    weights = ledger["energy_kwh"].astype("float64")
    intensity = ledger["carbon_intensity_g_per_kwh"].astype("float64")
    return sums | {
        "car_km": car_km(sums["emissions_g"]),
        "stages": len(ledger),
        "attempts": int(ledger["attempts"].sum()),
        "warnings": int((ledger["warnings"].fillna("") != "").sum()),
        "ended_early": early,
        "ended_early_how": outcomes_text(ended_early(attempts)["outcome"], early),
        # Of whole machines, so that they compare with each other and not with the jobs' energy.
        "codecarbon_stages": compared,
        "codecarbon_kwh": codecarbon["codecarbon_kwh"] if compared else None,
        "codecarbon_node_kwh": codecarbon["codecarbon_node_kwh"] if compared else None,
        "zone": zone.zone,
        "zone_name": zone.zone_name,
        "pue": float(first["pue"]),
        "intensity_source": sources_text(ledger),
        "intensity_kind": first["intensity_kind"],
        "carbon_intensity_g_per_kwh": float((weights * intensity).sum() / (weights.sum() or 1)),
    }


def _phases(by_stage: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    own = by_stage[[not phase_of(stage).control for stage in by_stage["stage"]]]  # without what follows masks
    for dims, group in own.groupby("spatial_dims"):
        training, generation = (group[group["phase"] == phase] for phase in ("training", "generation"))
        training_kwh, generation_kwh = training["energy_kwh"].sum(), generation["energy_kwh"].sum()
        startup_kwh = generation["startup_kwh"].sum()  # paid once a run, however many samples it makes
        in_window = 1 - startup_kwh / generation_kwh if generation_kwh else 1.0
        samples = group["samples"].iloc[0]
        models = group.loc[group["stage"] == "train_diffusion", "items"].sum()
        of_one_model_kwh = training_kwh / models if models else None
        rows.append(
            {
                "spatial_dims": dims,
                "sample_kind": group["sample_kind"].iloc[0],
                "runs": group["runs"].max(),
                "samples": samples,
                "training_kwh": training_kwh,
                "training_g": training["emissions_g"].sum(),
                "generation_kwh": generation_kwh,
                "generation_g": generation["emissions_g"].sum(),
                "generation_g_per_sample": in_window * generation["emissions_g"].sum() / samples if samples else None,
                "break_even_samples": of_one_model_kwh * samples / (generation_kwh - startup_kwh)
                if of_one_model_kwh and generation_kwh > startup_kwh
                else None,
            }
        )
    return rows


def _places(by_zone: pd.DataFrame) -> dict[str, Any]:
    columns = ["zone", "zone_name", "carbon_intensity_g_per_kwh", "emissions_g", "year"]
    ordered = by_zone.sort_values(["carbon_intensity_g_per_kwh", "zone"])
    cleanest, dirtiest = (ordered.iloc[place][columns].to_dict() for place in (0, -1))
    ratio = dirtiest["carbon_intensity_g_per_kwh"] / cleanest["carbon_intensity_g_per_kwh"]
    return {"zones": len(by_zone), "cleanest": cleanest, "dirtiest": dirtiest, "ratio": ratio}


def _seasons(by_season: pd.DataFrame, zone: str) -> dict[str, Any]:
    rows = by_season[by_season["zone"] == zone]
    if rows.empty:
        raise ValueError(f"by_season.csv: has no zone {zone}; run compare_emissions again")
    found: dict[str, Any] = {"zone": zone, "basis": rows["basis"].iloc[0]}
    months = rows.dropna(subset="month").sort_values("carbon_intensity_g_per_kwh")
    if months.empty:
        return found | {"ratio": None}
    columns = ["month", "season", "carbon_intensity_g_per_kwh"]
    cleanest, dirtiest = (months.iloc[place][columns].to_dict() for place in (0, -1))
    return found | {"ratio": months["ratio_to_smallest"].max(), "cleanest": cleanest, "dirtiest": dirtiest}


def _patients(results: Path, plan: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for dims, group in plan.groupby("spatial_dims"):
        counts = [_cohort(results / "cohorts" / cohort / "cohort.json") for cohort in group["cohort"].unique()]
        # Cohorts of one dimension differ in resolution; where one leaves out a patient, the smallest is what
        # holds.
        first = group.iloc[0]
        about = {"spatial_dims": dims, "sample_kind": sample_kind(first["spatial_dims"], first.get("frames", 0))}
        rows.append(about | {key: min(count[key] for count in counts) for key in counts[0]})
    return rows


def _cohort(path: Path) -> dict[str, int]:
    keys = ("patients_train", "patients_heldout", "images_train", "images_heldout")
    try:
        cohort = json.loads(path.read_text(encoding="utf-8"))
        return {key: int(cohort[key]) for key in keys}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such cohort; run the study first") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a cohort's description ({error!r})") from error


def _totals_lines(totals: dict[str, Any]) -> list[str]:
    def interval(name: str, unit: str) -> str:
        value, low, high = (significant(totals[name.format(bound)]) for bound in ("", "_low", "_high"))
        return f"{value} {unit} ({low} to {high})"

    minutes = significant(totals["duration_s"] / 60)
    intensity = f"{significant(totals['carbon_intensity_g_per_kwh'])} g/kWh, PUE {totals['pue']:.3g}"
    car = f"({CAR_G_PER_KM} g/km, average new EU car of 2020)"
    return [
        "What this study took",
        _line("energy", interval("energy{}_kwh", "kWh")),
        _line("emissions", interval("emissions{}_g", "g CO2e")),
        _line("as much as", f"{significant(totals['car_km'])} km by car {car}"),
        _line("time", f"{minutes} min, added up over {totals['stages']} stages"),
        _line("wasted", _waste_text(totals)),
        _line("priced at", f"{totals['zone_name']} ({totals['zone']}): {intensity}"),
        _line("", f"{totals['intensity_kind']}; {totals['intensity_source']}"),
    ]


def _waste_text(totals: dict[str, Any]) -> str:
    early = totals["ended_early"]
    if not early:
        return "nothing: no attempt ended early"
    percent = significant(100 * totals["wasted_kwh"] / (totals["energy_kwh"] or 1), 2)
    attempts = f"{early} attempt{'' if early == 1 else 's'} that ended early"
    return f"{energy_text(totals['wasted_kwh'])} ({percent} %) in {attempts}: {totals['ended_early_how']}"


def _phase_lines(phases: list[dict[str, Any]]) -> list[str]:
    head = f"  {'':6}{'runs':>6}{'training':>14}{'generation':>14}{'samples':>10}   as costly as training one"
    lines = ["Training against generation", head]
    for row in phases:
        columns = (
            dims_name(row["spatial_dims"], row["sample_kind"]).ljust(6),
            f"{row['runs']:>6}",
            energy_text(row["training_kwh"]).rjust(14),
            energy_text(row["generation_kwh"]).rjust(14),
            f"{row['samples']:>10}",
            f"   {significant(row['break_even_samples'])} {row['sample_kind']}s",
        )
        lines.append("  " + "".join(columns))
    return lines


def _sampler_lines(samplers: list[dict[str, Any]]) -> list[str]:
    head = f"  {'':6}{'sampler':<12}{'steps':>6}{'CO2e':>14}{'time':>14}{'ratio':>10}"
    lines = ["Generating one sample (mean over the same models)", head]
    by_dims: dict[int, list[dict[str, Any]]] = {}
    for row in samplers:
        by_dims.setdefault(row["spatial_dims"], []).append(row)
    each = max(1, MAX_SAMPLER_LINES // len(by_dims)) if len(samplers) > MAX_SAMPLER_LINES else None
    shown = [row for rows in by_dims.values() for row in rows[:each]]
    for row in shown:
        columns = (
            dims_name(row["spatial_dims"], row["sample_kind"]).ljust(6),
            f"{row['sampler']:<12}{row['steps']:>6}",
            mass_text(row["generation_g_per_sample"]).rjust(14),
            f"{significant(row['seconds_per_sample'])} s".rjust(14),
            f"{significant(row['ratio_to_smallest'])}x".rjust(10),
        )
        lines.append("  " + "".join(columns))
    if len(shown) < len(samplers):
        lines.append(f"  and {len(samplers) - len(shown)} more in by_sampler.csv")
    return lines


def _place_lines(places: dict[str, Any], seasons: dict[str, Any], savings: dict[str, float]) -> list[str]:
    clean, dirty = places["cleanest"], places["dirtiest"]
    years = " and ".join(str(year) for year in sorted({clean["year"], dirty["year"]}))
    between = " to ".join(f"{zone['zone_name']} {mass_text(zone['emissions_g'])}" for zone in (clean, dirty))
    lines = [
        "The same work elsewhere and at other times",
        _line("place", f"{significant(places['ratio'])}x: {between}"),
        _line("", f"annual means of {years}, average lifecycle, {places['zones']} zones"),
    ]
    if savings["waited_h"] or savings["pauses"]:
        lines.append(_line("acted", savings_text(savings, mass_text)))
    if seasons["ratio"] is None:
        return [*lines, _line("season", f"{seasons['zone']}: {seasons['basis']}")]
    clean, dirty = (calendar.month_name[int(seasons[end]["month"])] for end in ("cleanest", "dirtiest"))
    more_percent = 100 * (seasons["ratio"] - 1)
    return [
        *lines,
        _line("season", f"{seasons['zone']}: {dirty} emits {more_percent:.0f} % more than {clean}"),
        _line("", f"monthly means, typical year ({seasons['basis']})"),
    ]


def _trust_lines(study: dict[str, Any]) -> list[str]:
    totals = study["totals"]
    lines = ["How far to trust it"]
    for row in study["patients"]:
        counted = "sequences" if row["sample_kind"] == "sequence" else "images"
        trained = f"trained on {row['patients_train']} patients ({row['images_train']} {counted})"
        heldout = f"held out {row['patients_heldout']} ({row['images_heldout']} {counted})"
        lines.append(_line("patients", f"{dims_name(row['spatial_dims'], row['sample_kind'])}: {trained}, {heldout}"))
    for measured, word in ((True, "measured"), (False, "estimated")):
        parts = [row for row in study["methods"] if row["present"] and row["measured"] is measured]
        shares = [f"{part['component']} {_percent(part)} ({part['method']})" for part in parts]
        lines.append(_line(word, ", ".join(shares) or "nothing"))
    if totals["codecarbon_node_kwh"]:
        theirs, ours = totals["codecarbon_kwh"], totals["codecarbon_node_kwh"]
        of_all = "" if totals["codecarbon_stages"] == totals["stages"] else f", in {totals['codecarbon_stages']} stages"
        beside = f"{energy_text(theirs)} for the whole machines, our meters {energy_text(ours)}"
        lines.append(_line("CodeCarbon", f"{beside} ({100 * (theirs / ours - 1):+.1f} %){of_all}"))
    if totals["warnings"]:
        lines.append(_line("warnings", f"in {totals['warnings']} stages: column `warnings` of ledger.csv"))
    credit = textwrap.wrap(study["credit"], 88)
    lines.append(_line("dashboard", f"{study['dashboard']} (or: make dashboard)"))
    return [*lines, _line("data", credit[0]), *(_line("", rest) for rest in credit[1:])]


def _line(label: str, text: str) -> str:
    return f"  {label:<12}{text}"


def _percent(part: dict[str, Any]) -> str:
    return f"{significant(part['share_percent'], 2)} %"
