"""The hour of the day in the study's zone, season by season."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from emissions.figures.theme import INK, axis, empty_figure, layout, mass_text, rows_of, significant
from emissions.grid.zones import SEASONS

_COLOURS = {"winter": "#2f6690", "spring": "#189a87", "summer": "#e08a1e", "autumn": "#8c6d1f"}
_DASHES = {"winter": "solid", "spring": "dash", "summer": "solid", "autumn": "dot"}  # not by colour alone


def hours_of_day(by_hour: pd.DataFrame, study_zone: str) -> go.Figure:
    """Carbon intensity by local hour: the mean of the year, and of each season where the zone has seasons.

    Args:
        by_hour: `places.by_hour`.
    """
    own = by_hour[by_hour["zone"] == study_zone].sort_values("hour")
    if own.empty:
        return empty_figure("The study's zone has an annual value only and no hours.")
    hours = own["hour"].tolist()
    figure = go.Figure(
        layout=layout(
            320,
            xaxis=axis("Hour of the day, the zone's own time", dtick=3, range=[-0.3, 23.3]),
            yaxis=axis("gCO₂e per kWh", rangemode="tozero"),
            showlegend=True,
            legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        )
    )
    for season in SEASONS:
        values = own[f"{season}_g_per_kwh"]
        if values.notna().all():
            figure.add_scatter(
                x=hours,
                y=values.tolist(),
                name=season,
                mode="lines",
                line={"color": _COLOURS[season], "dash": _DASHES[season], "width": 2},
                hovertemplate=f"{season}, %{{x}}:00<br>%{{y:.0f}} g/kWh<extra></extra>",
            )
    text = [
        f"all year, {row.hour}:00<br>{significant(row.carbon_intensity_g_per_kwh)} g/kWh, "
        f"{mass_text(row.emissions_g)} CO₂e for this study"
        for row in rows_of(own)
    ]
    figure.add_scatter(
        x=hours,
        y=own["carbon_intensity_g_per_kwh"].tolist(),
        name="all year",
        mode="lines+markers",
        line={"color": INK, "width": 2.5},
        marker={"size": 6, "color": INK},
        text=text,
        hovertemplate="%{text}<extra></extra>",
    )
    return figure
