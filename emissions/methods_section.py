"""The dashboard's last section: how the energy was found, how sure it is, and what of it bought nothing."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from emissions import figures, findings
from emissions.breakdown import codecarbon_sums, energy_parts, overheads, rest_percent
from emissions.charts import Chart, Columns, Section, Table, text_table
from emissions.figures.interval import PART_NAMES
from emissions.figures.methods import stage_energy
from emissions.figures.theme import count_text, energy_text, has_value, ratio_text, significant, stage_name
from emissions.waste import waste_by_stage

INTERVAL_RULE = (
    "In every row the half-widths of the components, which err for different reasons, are combined in quadrature, and "
    "what no sensor sees comes on top of the high end; over rows, low ends and high ends are added up, as the same "
    "sensors err the same way in all of them."
)
OVERLAP_FACTOR = 1.05  # nearer to one, CodeCarbon's totals are those of the jobs
_OVERHEAD_PLACES = {
    "idle": "inside: the jobs' part of what idle machines would have used",
    "startup": "inside the CPU's: CPU time before the window, mostly imports",
    "metering": "beside: the recorder and CodeCarbon",
}
_OVERHEAD_NAMES = {"idle": "Idle baseline", "startup": "Start-up", "metering": "Metering"}


def methods_section(tables: dict[str, pd.DataFrame]) -> Section:
    """tables: `ledger`, `attempts`, `by_method` and `by_stage`."""
    ledger = tables["ledger"]
    charts = [
        _components(tables["by_method"]),
        _interval(ledger),
        _waste(tables["by_stage"], ledger, tables["attempts"]),
        _codecarbon(ledger),
    ]
    title = "What was measured, estimated and wasted"
    return Section("methods", title, "", charts, [_overheads(ledger), *_warnings(ledger)])


def _components(by_method: pd.DataFrame) -> Chart:
    present = by_method[by_method["present"].astype(bool)]
    named = present.assign(
        component=present["component"].str.upper(),
        how=present["measured"].map({True: "measured", False: "estimated"}),
    )
    columns: Columns = {
        "component": ("Component", None),
        "method": ("Method", None),
        "how": ("How", None),
        "energy_kwh": ("Energy", energy_text),
        "share_percent": ("Share, %", significant),
        "rows": ("Stages and items", count_text),
    }
    return Chart(
        "components",
        "Energy by component and method",
        findings.components(by_method),
        figures.components(by_method),
        text_table(named, columns),
        "Hatched: estimated by a model. Solid: read from a sensor.",
    )


def _interval(ledger: pd.DataFrame) -> Chart:
    parts = energy_parts(ledger)
    columns: Columns = {
        "part": ("Part", None),
        "method": ("Method", None),
        "energy_kwh": ("Energy", energy_text),
        "low_kwh": ("low", energy_text),
        "high_kwh": ("high", energy_text),
    }
    return Chart(
        "interval",
        "Where the interval comes from",
        findings.interval(ledger),
        figures.interval(ledger),
        text_table(parts.assign(part=parts["part"].map(PART_NAMES)), columns),
        INTERVAL_RULE,
    )


def _waste(by_stage: pd.DataFrame, ledger: pd.DataFrame, attempts: pd.DataFrame) -> Chart:
    stages = waste_by_stage(by_stage, ledger, attempts)
    columns: Columns = {
        "stage": ("Stage", None),
        "wasted_kwh": ("Wasted", energy_text),
        "wasted_percent": ("Wasted, %", significant),
        "kept_kwh": ("Kept", energy_text),
        "ended_early": ("Ended early", None),
        "attempts": ("Attempts", count_text),
    }
    return Chart(
        "waste",
        "Kept and wasted",
        findings.waste(stages, attempts),
        figures.waste(stages),
        text_table(stages.assign(stage=stages["stage"].map(stage_name)), columns),
        "Wasted: energy of attempts that failed or were stopped, as far as no later attempt went on from their work. "
        "It is part of every figure of this page.",
    )


def _codecarbon(ledger: pd.DataFrame) -> Chart:
    stages = stage_energy(ledger)
    columns: Columns = {
        "stage": ("Stage", None),
        "codecarbon_node_kwh": ("Our meters", energy_text),
        "codecarbon_kwh": ("CodeCarbon", energy_text),
        "ratio": ("Ratio", significant),
        "energy_kwh": ("The jobs' own", energy_text),
    }
    return Chart(
        "codecarbon",
        "CodeCarbon beside our own meters",
        findings.codecarbon(stages),
        figures.codecarbon_ratio(ledger),
        text_table(stages.assign(stage=stages["stage"].map(stage_name)), columns),
        "Both are of the whole machine, in CodeCarbon's own windows. " + _overlap_note(ledger) if len(stages) else "",
    )


def _overlap_note(ledger: pd.DataFrame) -> str:
    """That CodeCarbon's totals must not be added up, where they hold clearly more than the jobs."""
    sums = codecarbon_sums(ledger)
    if sums["codecarbon_node_kwh"] <= OVERLAP_FACTOR * sums["energy_kwh"]:
        return ""
    factor = ratio_text(sums["codecarbon_kwh"] / sums["energy_kwh"])
    return (
        f"Added up over the jobs, CodeCarbon's totals are {factor} the jobs' own energy, since each holds whatever "
        "ran beside its job, and jobs that overlapped are in it more than once."
    )


def _overheads(ledger: pd.DataFrame) -> Table:
    table = overheads(ledger)
    places = [
        _OVERHEAD_PLACES[part] + ("" if rows in (0, len(ledger)) else f" (known in {rows:,} of {len(ledger):,} rows)")
        for part, rows in zip(table["part"], table["rows"], strict=True)
    ]
    columns: Columns = {
        "part": ("Overhead", None),
        "energy_kwh": ("Energy", energy_text),
        "share_percent": ("Of the jobs', %", significant),
        "place": ("Inside the jobs' energy or beside it", None),
    }
    named = table.assign(part=table["part"].map(_OVERHEAD_NAMES), place=places)
    return text_table(named, columns, "Overheads", findings.overheads(table, rest_percent(ledger)))


def _warnings(ledger: pd.DataFrame) -> Iterable[Table]:
    told = ledger[ledger["warnings"].map(has_value)]
    if told.empty:
        return
    grouped = told.groupby("warnings", sort=False)
    frame = grouped.agg(
        stages=("stage", lambda stages: ", ".join(dict.fromkeys(map(stage_name, stages)))),
        rows=("item", "size"),
    )
    yield text_table(
        frame.reset_index(),
        {"warnings": ("Warning", None), "stages": ("Stages", None), "rows": ("Rows", count_text)},
        "Warnings of the meters",
        f"{findings.plural(len(told), 'row')} of the ledger's {len(ledger):,} came with a warning.",
    )
