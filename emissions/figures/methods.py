"""What was measured and what was estimated, and the same energy as CodeCarbon saw it."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from emissions.figures.theme import (
    COMPONENT_COLOURS,
    INK,
    MUTED,
    PAPER,
    PHASE_COLOURS,
    axis,
    empty_figure,
    energy_scale,
    energy_text,
    error_bars,
    layout,
    legend_key,
    rows_of,
    significant,
    stage_name,
)
from emissions.phases import STAGES

_OVERLAY = {"fillmode": "overlay", "fgcolor": PAPER}  # white lines over the bar's own colour


def components(by_method: pd.DataFrame) -> go.Figure:
    """One bar a component and method: solid where a sensor was read, hatched where a model stood in.

    Args:
        by_method: `compare.by_method`; components that the machine does not have are left out.
    """
    table = by_method[by_method["present"] & (by_method["energy_kwh"] > 0)]
    table = table.sort_values("energy_kwh", ascending=False, ignore_index=True)
    if table.empty:
        return empty_figure("No component has an energy of its own.")
    largest_kwh = float(table["energy_kwh"].max())
    factor, unit = energy_scale(largest_kwh)
    figure = go.Figure(
        layout=layout(
            84 + 64 * len(table),
            barmode="overlay",
            bargap=0.45,
            # Room for the text that stands outside the longest bar.
            xaxis=axis(f"Energy, {unit}", range=[0, largest_kwh * factor * 1.28], nticks=6),
            yaxis=axis(showgrid=False, autorange="reversed"),
        )
    )
    for row in rows_of(table):  # a trace each: plotly takes no list of colours below a pattern
        figure.add_bar(
            x=[row.energy_kwh * factor],
            y=[f"{row.component.upper()}<br><span style='color:{MUTED}'>{row.method}</span>"],
            orientation="h",
            marker={
                "color": COMPONENT_COLOURS[str(row.component)],
                "line": {"width": 0},
                "pattern": {"shape": "" if row.measured else "/", "size": 7, "solidity": 0.35} | _OVERLAY,
            },
            text=[energy_text(row.energy_kwh)],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}<br>%{text}<extra></extra>",
        )
    keys = [
        legend_key("measured by a sensor", MUTED, "square"),
        legend_key("estimated by a model", MUTED, "hatch"),
    ]
    figure.update_layout(meta={"legend": keys})
    return figure


def stage_energy(ledger: pd.DataFrame) -> pd.DataFrame:
    """Per stage, for the same machines and windows: CodeCarbon's energy and that of our own meters, over the rows
    that know both; `ratio`, and the jobs' own energy in these rows.

    `low` and `high` bound the ratio by our interval: that of the jobs' energy, which is a share of the same sensors,
    without what no sensor sees, as CodeCarbon does not see it either.
    """
    seen = ledger.dropna(subset=["codecarbon_kwh", "codecarbon_node_kwh"])
    columns = ["energy_kwh", "energy_low_kwh", "energy_high_kwh", "unseen_kwh", "codecarbon_kwh", "codecarbon_node_kwh"]
    table = seen.astype(dict.fromkeys(columns, "float64")).groupby("stage")[columns].sum().reset_index()
    table = table[(table["codecarbon_node_kwh"] > 0) & (table["energy_kwh"] > 0)]
    table["ratio"] = table["codecarbon_kwh"] / table["codecarbon_node_kwh"]
    table["low"] = table["energy_low_kwh"] / table["energy_kwh"]
    table["high"] = (table["energy_high_kwh"] - table["unseen_kwh"]) / table["energy_kwh"]
    table["order"] = table["stage"].map(list(STAGES).index)
    return table.sort_values("order", ignore_index=True).drop(columns="order")


def codecarbon_ratio(ledger: pd.DataFrame) -> go.Figure:
    """CodeCarbon's energy over that of our meters in its windows, by stage; the line is our interval round 1."""
    table = stage_energy(ledger)
    if table.empty:
        return empty_figure("No stage has CodeCarbon's figure and ours of the same window.")
    one = pd.Series(1.0, index=table.index)
    names = table["stage"].map(stage_name)
    text = [
        f"<b>{name}</b><br>whole machine, our meters: {energy_text(row.codecarbon_node_kwh)}<br>"
        f"CodeCarbon: {energy_text(row.codecarbon_kwh)}, {significant(row.ratio)} times ours"
        for name, row in zip(names, rows_of(table), strict=True)
    ]
    figure = go.Figure(
        layout=layout(
            74 + 34 * len(table),
            xaxis=axis("Energy over ours", rangemode="tozero", nticks=7),
            yaxis=axis(autorange="reversed"),
        )
    )
    marks = (
        (one, {"symbol": "line-ns", "size": 14, "line": {"width": 2.5, "color": INK}}),
        (table["ratio"], {"symbol": "diamond", "size": 12, "color": PHASE_COLOURS["generation"]}),
    )
    for values, marker in marks:
        figure.add_scatter(
            x=values.tolist(),
            y=names.tolist(),
            mode="markers",
            marker=marker,
            text=text,
            hovertemplate="%{text}<extra></extra>",
        )
    figure.data[0].error_x = error_bars(one, table["low"], table["high"])
    keys = [
        legend_key("our meters, with their interval", INK, "interval"),
        legend_key("CodeCarbon", PHASE_COLOURS["generation"], "diamond"),
    ]
    figure.update_layout(meta={"legend": keys})
    return figure
