"""Energy and quality in one picture."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from emissions.figures.cost import sampler_label
from emissions.figures.theme import (
    INK,
    MUTED,
    RULE,
    SYMBOLS,
    a_unit,
    axis,
    empty_figure,
    family_colour,
    family_name,
    has_value,
    layout,
    legend_key,
    log_axis,
    mass_text,
    significant,
    size_rank,
)

FID_NAME = "FID (EfficientNet-Lite0)"
_FID = "fid_efficientnet_lite0"


def frontier(table: pd.DataFrame) -> pd.DataFrame:
    """The runs that no other run beats in both grams and distance, from the cheapest on."""
    ordered = table.sort_values(["generation_g_per_sample", _FID], ignore_index=True)
    best = ordered[_FID].cummin().shift()
    return ordered[best.isna() | (ordered[_FID] < best)]


def fidelity(table: pd.DataFrame) -> go.Figure:
    """Distance to held-out real images against grams per sample, for the runs of one cohort.

    Args:
        table: rows of `compare.fidelity` of one dimension and resolution; others do not compare.
    """
    known = table.dropna(subset=[_FID, "generation_g_per_sample"])
    if known.empty:
        return empty_figure(f"No run has an {FID_NAME}.")
    kind = known["sample_kind"].iloc[0]
    figure = go.Figure(
        layout=layout(
            380,
            xaxis=log_axis(f"CO₂e to generate one {kind}", known["generation_g_per_sample"], mass_text),
            yaxis=axis(FID_NAME, rangemode="tozero"),
        )
    )
    best = frontier(known)
    if len(best) > 1:
        line = {"color": RULE, "width": 6, "shape": "hv"}
        x, y = best["generation_g_per_sample"].tolist(), best[_FID].tolist()
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")
    ways = sorted(set(zip(known["steps"], known["sampler"], strict=True)))
    symbols = {way: SYMBOLS[position % len(SYMBOLS)] for position, way in enumerate(ways)}
    figure.add_scatter(
        x=known["generation_g_per_sample"].tolist(),
        y=known[_FID].tolist(),
        mode="markers",
        marker={
            "symbol": [symbols[way] for way in zip(known["steps"], known["sampler"], strict=True)],
            "size": [11 + 5 * min(size_rank(size), 5) for size in known["size"]],
            "color": [family_colour(family) for family in known["family"]],
            "opacity": 1,
            "line": {"width": 1.5, "color": "#ffffff"},
        },
        text=[_hover(row) for _, row in known.iterrows()],
        hovertemplate="%{text}<extra></extra>",
    )
    keys = [legend_key(family_name(family), family_colour(family)) for family in dict.fromkeys(known["family"])]
    keys += [legend_key(sampler_label(sampler, steps), INK, symbol) for (steps, sampler), symbol in symbols.items()]
    figure.update_layout(meta={"legend": [*keys, legend_key("best for its cost", "#cfd7dd", "line")]})
    _add_reference(figure, known)
    return figure


def _hover(row: pd.Series) -> str:
    lines = [
        f"<b>{family_name(row['family'])} {row['size']}</b>, {sampler_label(row['sampler'], row['steps'])}",
        f"{FID_NAME} {significant(row[_FID])}",
        f"{mass_text(row['generation_g_per_sample'])} {a_unit(row['sample_kind'])}",
    ]
    if has_value(row.get("ms_ssim")):
        lines.append(f"MS-SSIM between samples {row['ms_ssim']:.2f}")
    return "<br>".join(lines)


def _add_reference(figure: go.Figure, table: pd.DataFrame) -> None:
    """The distance of real training images to the same held-out ones: what perfect copies would score."""
    reference = table.get(f"{_FID}_train_reference")
    if reference is None or reference.dropna().empty:
        return
    value = float(reference.dropna().median())
    figure.add_hline(y=value, line={"color": INK, "width": 1.2, "dash": "dot"})
    figure.add_annotation(
        x=0,
        xref="paper",
        y=value,
        xanchor="left",
        yanchor="bottom",
        text=f"real training images: {significant(value)}",
        showarrow=False,
        font={"size": 12, "color": MUTED},
    )
