"""Where the interval of the energy comes from, part by part."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from emissions.breakdown import energy_parts
from emissions.figures.theme import (
    COMPONENT_COLOURS,
    INK,
    MUTED,
    axis,
    empty_figure,
    energy_scale,
    energy_text,
    error_bars,
    layout,
    legend_key,
    rows_of,
)

PART_NAMES = {
    "cpu": "CPU, at work",
    "startup": "CPU, starting up",
    "gpu": "GPU",
    "ram": "RAM",
    "unseen": "No sensor sees it",
    "whole": "All together",
}
_COLOURS = COMPONENT_COLOURS | {"startup": COMPONENT_COLOURS["cpu"]}
_EXPLAINED = {"unseen": "power supply, fans, board", "whole": "sum of all rows"}


def interval(ledger: pd.DataFrame) -> go.Figure:
    """Energy of each part with its interval; dotted: what no sensor sees, alone and on top of the whole."""
    table = energy_parts(ledger).dropna(subset=["low_kwh", "high_kwh"])
    if table.empty:
        return empty_figure("No component's interval is known.")
    factor, unit = energy_scale(float(table["high_kwh"].max()))
    table[["energy", "low", "high"]] = table[["energy_kwh", "low_kwh", "high_kwh"]] * factor
    table["label"] = [
        f"{PART_NAMES[row.part]}<br><span style='color:{MUTED}'>{_EXPLAINED.get(row.part, row.method)}</span>"
        for row in rows_of(table)
    ]
    figure = go.Figure(
        layout=layout(
            84 + 46 * len(table),
            xaxis=axis(f"Energy, {unit}", rangemode="tozero", nticks=6),
            yaxis=axis(autorange="reversed", categoryorder="array", categoryarray=table["label"].tolist()),
        )
    )
    keys = [legend_key("energy, with its interval", INK, "interval")]
    unseen = float(table.loc[table["part"] == "unseen", "high"].sum())
    for row in rows_of(table):
        of_sensors = row.part not in ("unseen", "whole")
        if unseen > 0 and not of_sensors:
            _add_unseen(figure, row, unseen, f"at most {energy_text(unseen / factor)} more")
        if row.part != "unseen":
            _add_energy(figure, row, row.high if of_sensors else row.high - unseen)
    if unseen > 0:
        keys.append(legend_key("at most, where no sensor sees it", INK, "dots"))
    figure.update_layout(meta={"legend": keys})
    return figure


def _add_energy(figure: go.Figure, row: Any, top: float) -> None:
    """A part's energy and its whiskers, up to `top`."""
    value = pd.Series([row.energy])
    what = f"<b>{energy_text(row.energy_kwh)}</b> ({energy_text(row.low_kwh)} to {energy_text(row.high_kwh)})"
    figure.add_scatter(
        x=[row.energy],
        y=[row.label],
        mode="markers",
        cliponaxis=False,  # a small energy lies on the axis
        marker={
            "size": 13 if row.part == "whole" else 9,
            "symbol": "diamond" if row.part == "whole" else "circle",
            "color": _COLOURS.get(row.part, INK),
        },
        error_x=error_bars(value, pd.Series([row.low]), pd.Series([top])),
        text=[f"{PART_NAMES[row.part]}<br>{what}"],
        hovertemplate="%{text}<extra></extra>",
    )


def _add_unseen(figure: go.Figure, row: Any, unseen: float, text: str) -> None:
    """The last piece of the row's interval, dotted up to a stop."""
    figure.add_scatter(
        x=[row.high - unseen, row.high],
        y=[row.label] * 2,
        mode="lines+markers",
        line={"color": INK, "width": 2, "dash": "dot"},
        marker={"size": [0, 11], "symbol": "line-ns-open", "color": INK},
        text=[text] * 2,
        hovertemplate="%{text}<extra></extra>",
    )
