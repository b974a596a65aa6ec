"""The energy of each stage: what was kept, and what was lost with attempts that ended early."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from emissions.figures.theme import (
    KEPT_COLOUR,
    PAPER,
    WASTED_COLOUR,
    axis,
    empty_figure,
    energy_scale,
    energy_text,
    layout,
    legend_key,
    rows_of,
    significant,
    stage_name,
)

_ROW_PX = 34
_FRAME_PX = 74  # what an axis with its title takes besides the rows


def waste(table: pd.DataFrame) -> go.Figure:
    """A bar a stage, kept energy first and wasted energy after it; without waste all bars are whole.

    Args:
        table: `waste.waste_by_stage`.
    """
    if table.empty:
        return empty_figure("No stage has run.")
    largest_kwh = float(table["energy_kwh"].max())
    factor, unit = energy_scale(largest_kwh)
    wasted = bool((table["wasted_kwh"] > 0).any())
    names = table["stage"].map(stage_name).tolist()
    figure = go.Figure(
        layout=layout(
            _FRAME_PX + _ROW_PX * len(table),
            barmode="stack",
            bargap=0.4,
            # Room for the text behind the longest bar.
            xaxis=axis(
                f"Energy, {unit}", range=[0, (largest_kwh * factor or 1.0) * (1.22 if wasted else 1.04)], nticks=6
            ),
            yaxis=axis(showgrid=False, autorange="reversed"),
        )
    )
    text = [
        f"<b>{stage_name(row.stage)}</b><br>kept {energy_text(row.kept_kwh)}, wasted {energy_text(row.wasted_kwh)}"
        + (f"<br>ended early: {row.ended_early}" if row.ended_early else "")
        for row in rows_of(table)
    ]
    marks = (
        ("kept_kwh", {"color": KEPT_COLOUR, "line": {"width": 0}}, [""] * len(table)),
        (
            "wasted_kwh",
            {
                "color": WASTED_COLOUR,
                "line": {"width": 0},
                "pattern": {"shape": "x", "size": 6, "solidity": 0.25, "fillmode": "overlay", "fgcolor": PAPER},
            },
            [_label(row.wasted_kwh, row.wasted_percent) for row in rows_of(table)],
        ),
    )
    for column, marker, labels in marks:
        figure.add_bar(
            x=(table[column] * factor).tolist(),
            y=names,
            orientation="h",
            marker=marker,
            text=labels,
            textposition="outside",
            textfont={"color": WASTED_COLOUR},
            cliponaxis=False,
            hovertext=text,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    keys = [
        legend_key("kept", KEPT_COLOUR, "square"),
        legend_key("wasted" if wasted else "wasted: none", WASTED_COLOUR, "cross-hatch"),
    ]
    figure.update_layout(meta={"legend": keys})
    return figure


def _label(wasted_kwh: float, percent: float) -> str:
    return f"{significant(percent, 2)} %" if wasted_kwh > 0 else ""
