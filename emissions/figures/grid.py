"""Where and when: the world map of zones and the heat map of months."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pycountry

from emissions.figures.theme import (
    INK,
    INTENSITY_SCALE,
    MONTHS,
    MUTED,
    SWING_SCALE,
    axis,
    empty_figure,
    has_value,
    layout,
    mass_text,
    ratio_text,
    rows_of,
    significant,
)

_LAND_WITHOUT_DATA = "#eceff1"


def alpha3(zone: str) -> str | None:
    """ISO 3166-1 alpha-3 code of a national zone; None for part of a country, and for Kosovo (XK)."""
    country = pycountry.countries.get(alpha_2=zone)
    return country.alpha_3 if country else None


def world_map(by_zone: pd.DataFrame, zone_points: pd.DataFrame, study_zone: str) -> go.Figure:
    """The study's emissions had it run in each zone: polygons, and points for sub-national and small zones.

    Args:
        by_zone: `places.by_zone`.
        zone_points: `zone, latitude_deg, longitude_deg` of the zones that have no polygon at 1:110 million.
        study_zone: the zone that is ringed.
    """
    zones = by_zone.dropna(subset=["emissions_g"]).merge(zone_points, on="zone", how="left")
    if zones.empty:
        return empty_figure("No zone has an intensity.")
    own = by_zone.loc[by_zone["zone"] == study_zone, "emissions_g"]
    zones["hover"] = [_zone_hover(row, float(own.iloc[0]) if len(own) else None) for _, row in zones.iterrows()]
    is_point = zones["latitude_deg"].notna()
    countries, points = zones[~is_point], zones[is_point]
    figure = go.Figure(
        layout=layout(
            540,
            margin={"l": 0, "r": 0, "t": 4, "b": 4},
            coloraxis={
                "colorscale": INTENSITY_SCALE,
                "cmin": 0,
                "cmax": float(zones["emissions_g"].max()),
                "colorbar": {
                    "orientation": "h",
                    "thickness": 10,
                    "len": 0.62,
                    "x": 0.5,
                    "y": -0.02,
                    "yanchor": "top",
                    "outlinewidth": 0,
                    "nticks": 6,
                    "tickformat": "~s",
                    "ticksuffix": "g",
                    "tickfont": {"size": 12, "color": INK},
                    "title": {
                        "text": "CO₂e of this study in each zone",
                        "side": "top",
                        "font": {"size": 12.5, "color": MUTED},
                    },
                },
            },
            geo={
                "projection": {"type": "natural earth"},
                "lataxis": {"range": [-56, 84]},
                "showframe": False,
                "showcoastlines": False,
                "showland": True,
                "landcolor": _LAND_WITHOUT_DATA,
                "showcountries": False,
                "showlakes": False,
                "bgcolor": "rgba(0,0,0,0)",
            },
        )
    )
    figure.add_choropleth(
        locations=[alpha3(zone) for zone in countries["zone"]],
        locationmode="ISO-3",
        z=countries["emissions_g"].tolist(),
        coloraxis="coloraxis",
        marker={"line": {"color": "#ffffff", "width": 0.5}},
        text=countries["hover"].tolist(),
        hovertemplate="%{text}<extra></extra>",
        name="countries",
    )
    figure.add_scattergeo(
        lat=points["latitude_deg"].tolist(),
        lon=points["longitude_deg"].tolist(),
        mode="markers",
        marker={
            "color": points["emissions_g"].tolist(),
            "coloraxis": "coloraxis",
            "size": 7,
            "line": {"color": "#ffffff", "width": 0.8},
        },
        text=points["hover"].tolist(),
        hovertemplate="%{text}<extra></extra>",
        name="sub-national and small zones",
    )
    _ring_study_zone(figure, zones, study_zone)
    return figure


def _zone_hover(row: pd.Series, own_g: float | None) -> str:
    name = row["zone_name"] if has_value(row.get("zone_name")) else row["zone"]
    lines = [
        f"<b>{name}</b> ({row['zone']})",
        f"{mass_text(row['emissions_g'])} CO₂e",
        f"{significant(row['carbon_intensity_g_per_kwh'])} g/kWh",
    ]
    if own_g:
        lines.append(f"{ratio_text(row['emissions_g'] / own_g)} the study's own")
    return "<br>".join(lines)


def _ring_study_zone(figure: go.Figure, zones: pd.DataFrame, study_zone: str) -> None:
    own = zones[zones["zone"] == study_zone]
    if own.empty:
        return
    row = own.iloc[0]
    if has_value(row["latitude_deg"]):
        figure.add_scattergeo(
            lat=[row["latitude_deg"]],
            lon=[row["longitude_deg"]],
            mode="markers",
            marker={"size": 14, "color": "rgba(0,0,0,0)", "line": {"color": INK, "width": 2}},
            hoverinfo="skip",
        )
    else:
        figure.add_choropleth(
            locations=[alpha3(study_zone)],
            locationmode="ISO-3",
            z=[row["emissions_g"]],
            coloraxis="coloraxis",
            marker={"line": {"color": INK, "width": 2}},
            text=[row["hover"]],
            hovertemplate="%{text}<extra></extra>",
            name="study zone",
        )


def season_rows(by_season: pd.DataFrame, study_zone: str, rows: int = 24) -> list[str]:
    """Zones for the heat map: the study's own, then countries from the largest swing to the smallest.

    They are taken at even steps of that ranking, so that the picture shows the range, not only its extremes.
    """
    national = by_season[~by_season["zone"].str.contains("-") & (by_season["zone"] != study_zone)]
    months = national.groupby("zone")["carbon_intensity_g_per_kwh"]
    swing = (months.max() / months.min()).sort_values(ascending=False)
    wanted = min(rows - 1, len(swing))
    steps = [round(index * (len(swing) - 1) / max(wanted - 1, 1)) for index in range(wanted)]
    own = [study_zone] if (by_season["zone"] == study_zone).any() else []
    return own + [str(swing.index[step]) for step in steps]


def _month_hover(row: Any) -> str:
    return (
        f"<b>{row.zone_name}, {MONTHS[int(row.month) - 1]}</b><br>"
        f"{significant(row.carbon_intensity_g_per_kwh)} g/kWh, {mass_text(row.emissions_g)} CO₂e for this "
        f"study<br>{row.percent:+.0f} % against the zone's year"
    )


def season_heat_map(by_season: pd.DataFrame, study_zone: str) -> go.Figure:
    """Each month's carbon intensity over the mean of the zone's twelve months, the study's zone first.

    Args:
        by_season: `places.by_season`; zones without months are left out.
    """
    by_season = by_season.dropna(subset=["month"])
    chosen = season_rows(by_season, study_zone)
    if not chosen:
        return empty_figure("No zone has seasonal data.")
    months = by_season[by_season["zone"].isin(chosen)].copy()
    mean = months.groupby("zone")["carbon_intensity_g_per_kwh"].transform("mean")
    months["percent"] = 100 * (months["carbon_intensity_g_per_kwh"] / mean - 1)
    months["hover"] = [_month_hover(row) for row in rows_of(months)]
    percent = months.pivot(index="zone", columns="month", values="percent").loc[chosen]
    text = months.pivot(index="zone", columns="month", values="hover").loc[chosen]
    names = dict(zip(months["zone"], months["zone_name"], strict=True))
    labels = [f"<b>{names[zone]}</b>" if zone == study_zone else str(names[zone]) for zone in chosen]
    # Colours for the many: the few months beyond keep the darkest one.
    reach = min(float(months["percent"].abs().quantile(0.97)), 60.0) or 1.0
    return go.Figure(
        go.Heatmap(
            z=percent.to_numpy().tolist(),
            x=[MONTHS[int(month) - 1] for month in percent.columns],
            y=labels,
            text=text.to_numpy().tolist(),
            hovertemplate="%{text}<extra></extra>",
            colorscale=SWING_SCALE,
            zmid=0,
            zmin=-reach,
            zmax=reach,
            xgap=2,
            ygap=2,
            colorbar={
                "orientation": "h",
                "thickness": 10,
                "len": 0.7,
                "x": 0.5,
                "y": 0.0,
                "yanchor": "top",
                "ypad": 22,
                "outlinewidth": 0,
                "ticksuffix": " %",
                "tickfont": {"size": 12, "color": INK},
                "title": {
                    "text": "carbon intensity against the mean of the zone's own year",
                    "side": "bottom",
                    "font": {"size": 12.5, "color": MUTED},
                },
            },
        ),
        layout=layout(
            118 + 22 * len(chosen),
            margin={"l": 10, "r": 12, "t": 28, "b": 90},
            xaxis=axis(showgrid=False, side="top", tickangle=0),
            yaxis=axis(showgrid=False, autorange="reversed"),
        ),
    )
