"""What training, generating and each choice of size, resolution and sampler cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from emissions.allocation import dims_name
from emissions.compare import EXTRAPOLATED_SAMPLES
from emissions.figures.theme import (
    INK,
    MUTED,
    PHASE_COLOURS,
    RULE,
    SYMBOLS,
    axis,
    count_text,
    empty_figure,
    error_bars,
    family_colour,
    family_name,
    groups_of,
    has_value,
    layout,
    legend_key,
    log_axis,
    mass_text,
    model_label,
    positive,
    rows_of,
    sampler_name,
    shape_name,
    significant,
    size_rank,
    stage_name,
)

_ROW_PX = 34
_FRAME_PX = 74  # what an axis with its title takes besides the rows


def by_model_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by dimension, resolution, family and size, with `label`: how a model is called on an axis."""
    ranked = table.assign(rank=table["size"].map(size_rank))
    ranked = ranked.sort_values(
        ["spatial_dims", "resolution", "family", "rank", "devices", "seed"],
        ascending=[True, True, False, True, True, True],
        ignore_index=True,
    )
    labels = ranked.apply(model_label, axis=1)
    for column, mark in (("devices", "x{}"), ("seed", "seed {}")):
        if ranked[column].nunique() > 1:  # only what tells models apart
            labels = labels + " " + ranked[column].map(mark.format)
    return ranked.drop(columns="rank").assign(label=labels)


def sampler_label(sampler: str, steps: int) -> str:
    return f"{sampler_name(sampler)}, {steps} steps"


def training_against_generation(by_model: pd.DataFrame) -> go.Figure:
    """Per model: training, generation as run, and generation of 10,000 samples by extrapolation (hollow).

    Args:
        by_model: `compare.by_model`; grams at the study's own price.
    """
    known = by_model.dropna(subset=["training_g", "generation_g_per_sample"])
    if known.empty:
        return empty_figure("No model has been trained and sampled.")
    table = by_model_order(known)
    table["extrapolated_g"] = table["generation_g_per_sample"] * EXTRAPOLATED_SAMPLES
    models = table.drop_duplicates("model")
    shown = pd.concat([table["training_g"], table["generation_g"], table["extrapolated_g"]])
    figure = go.Figure(
        layout=layout(
            _FRAME_PX + _ROW_PX * len(models),
            xaxis=log_axis("CO₂e per model", shown, mass_text),
            yaxis=_rows(models["label"].tolist()),
        )
    )
    _add_spans(figure, table)
    _add_marks(
        figure,
        models["training_g"],
        models["label"],
        [f"Training {row.label}<br><b>{mass_text(row.training_g)}</b>" for row in rows_of(models)],
        {"symbol": "square", "size": 12, "color": PHASE_COLOURS["training"]},
    )
    keys = [legend_key("training", PHASE_COLOURS["training"], "square")]
    for symbol, name, group in _by_way(table):
        keys += _add_generation(figure, group, name, symbol)
    figure.update_layout(meta={"legend": keys})
    return figure


def _rows(labels: Sequence[str]) -> dict[str, Any]:
    """The axis of named rows, the first on top."""
    spread = [len(labels) - 0.5, -0.5]
    return axis(categoryorder="array", categoryarray=list(labels), range=spread)


def _by_way(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Symbol, name and rows of each sampler and number of steps, cheapest first."""
    for position, ((steps, sampler), group) in enumerate(groups_of(table, ["steps", "sampler"])):
        yield SYMBOLS[position % len(SYMBOLS)], sampler_label(sampler, steps), group


def _add_generation(figure: go.Figure, group: pd.DataFrame, name: str, symbol: str) -> list[dict[str, Any]]:
    colour = PHASE_COLOURS["generation"]
    as_run = [
        f"{row.label}, {name}<br><b>{mass_text(row.generation_g)}</b> for {row.samples} {row.sample_kind}s"
        for row in rows_of(group)
    ]
    extrapolated = [
        f"{row.label}, {name}<br><b>{mass_text(row.extrapolated_g)}</b> for {EXTRAPOLATED_SAMPLES:,} "
        f"{row.sample_kind}s, extrapolated from {row.samples}"
        for row in rows_of(group)
    ]
    marker = {"symbol": symbol, "size": 11, "color": colour}
    hollow = {"symbol": f"{symbol}-open", "size": 11, "color": colour, "line": {"width": 2}}
    _add_marks(figure, group["generation_g"], group["label"], as_run, marker)
    _add_marks(figure, group["extrapolated_g"], group["label"], extrapolated, hollow)
    return [
        legend_key(f"generating, as run: {name}", colour, symbol),
        legend_key(f"the same, extrapolated to {EXTRAPOLATED_SAMPLES:,}", colour, symbol, hollow=True),
    ]


def _add_marks(
    figure: go.Figure,
    x: pd.Series,
    y: Sequence[str] | pd.Series,
    text: list[str],
    marker: dict[str, Any],
    **more: Any,
) -> None:
    figure.add_scatter(
        x=positive(x),
        y=list(y),
        mode="markers",
        marker=marker,
        text=text,
        hovertemplate="%{text}<extra></extra>",
        **more,
    )


def _add_spans(figure: go.Figure, table: pd.DataFrame) -> None:
    """A pale line per model from its least to its most, so that the eye stays in the row."""
    of_model = table.groupby("label")[["training_g", "generation_g", "extrapolated_g"]]
    lowest, highest = of_model.min().min(axis=1), of_model.max().max(axis=1)
    x: list[float | None] = []
    y: list[str | None] = []
    for label in lowest.index:
        x += [lowest[label], highest[label], None]
        y += [label, label, None]
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": RULE, "width": 4}, hoverinfo="skip")


def break_even(by_model: pd.DataFrame) -> go.Figure:
    """Per model and sampler: after how many samples generating has cost as much energy as training."""
    known = by_model[by_model["break_even_samples"] > 0]
    if known.empty:
        return empty_figure("No model has been trained and sampled.")
    table = by_model_order(known)
    labels = table["label"].drop_duplicates().tolist()
    shown = [*table["break_even_samples"], EXTRAPOLATED_SAMPLES]
    figure = go.Figure(
        layout=layout(
            _FRAME_PX + _ROW_PX * len(labels),
            xaxis=log_axis("Samples to break even", shown, count_text),
            yaxis=_rows(labels),
        )
    )
    figure.add_vline(x=EXTRAPOLATED_SAMPLES, line={"color": INK, "width": 1.2, "dash": "dot"})
    keys = []
    for symbol, name, group in _by_way(table):
        text = [
            f"{row.label}, {name}<br><b>{count_text(row.break_even_samples)}</b> {row.sample_kind}s"
            for row in rows_of(group)
        ]
        marker = {"symbol": symbol, "size": 12, "color": PHASE_COLOURS["generation"]}
        _add_marks(figure, group["break_even_samples"], group["label"], text, marker)
        keys.append(legend_key(name, PHASE_COLOURS["generation"], symbol))
    keys.append(legend_key(f"{EXTRAPOLATED_SAMPLES:,} samples", INK, "dots"))
    figure.update_layout(meta={"legend": keys})
    return figure


def per_sample(
    table: pd.DataFrame,
    labels: Sequence[str],
    colours: Sequence[str],
    keys: list[dict[str, Any]] | None = None,
) -> go.Figure:
    """Grams per image or volume, a row each: generating it alone (filled, with its interval), and with its
    share of all the rest, training above all (hollow).

    Args:
        table: a comparison with `generation_g_per_sample`, its low and high, and `emissions_g_per_sample`.
        labels: name of each row on the axis.
        colours: colour of each row.
        keys: what the colours mean, for the legend.
    """
    table = table.reset_index(drop=True)
    made, whole = table["generation_g_per_sample"], table["emissions_g_per_sample"]
    low, high = table["generation_low_g_per_sample"], table["generation_high_g_per_sample"]
    if made.dropna().empty:
        return empty_figure("Nothing has been generated.")
    figure = go.Figure(
        layout=layout(
            _FRAME_PX + _ROW_PX * len(table),
            xaxis=log_axis("CO₂e per sample", pd.concat([made, whole, low, high]), mass_text),
            yaxis=_rows(labels),
        )
    )
    for row in range(1, len(table)):
        if table["spatial_dims"][row] != table["spatial_dims"][row - 1]:
            figure.add_hline(y=row - 0.5, line={"color": MUTED, "width": 1, "dash": "dot"})
    kinds = table["sample_kind"]
    text = [f"{a}<br><b>{mass_text(b)}</b> to generate one {c}" for a, b, c in zip(labels, made, kinds, strict=True)]
    _add_marks(figure, made, labels, text, {"size": 12, "color": list(colours)}, error_x=error_bars(made, low, high))
    text = [f"{a}<br><b>{mass_text(b)}</b> a {c}, all stages" for a, b, c in zip(labels, whole, kinds, strict=True)]
    marker = {"symbol": "circle-open", "size": 12, "color": list(colours), "line": {"width": 2}}
    _add_marks(figure, whole, labels, text, marker)
    what = [
        legend_key("generating one", INK if keys else colours[0]),
        legend_key("with its share of training and the rest", INK if keys else colours[0], hollow=True),
    ]
    figure.update_layout(meta={"legend": [*(keys or []), *what]})
    return figure


def by_size(comparison: pd.DataFrame) -> go.Figure:
    """Grams per sample by dimension, family and size, with the denoiser's parameters in the row's name."""
    table = comparison.assign(rank=comparison["size"].map(size_rank))
    table = table.sort_values(["spatial_dims", "family", "rank"], ascending=[True, False, True], ignore_index=True)
    labels = [
        f"{dims_name(row.spatial_dims, row.sample_kind)} · {family_name(row.family)} {row.size}"
        + (f" · {significant(row.parameters / 1e6, 2)} M" if has_value(row.parameters) else "")
        for row in rows_of(table)
    ]
    families = dict.fromkeys(table["family"])
    keys = [legend_key(family_name(family), family_colour(family)) for family in families]
    return per_sample(table, labels, [family_colour(family) for family in table["family"]], keys)


def by_resolution(comparison: pd.DataFrame) -> go.Figure:
    """Grams per sample by dimension and resolution."""
    table = comparison.sort_values(["spatial_dims", "resolution"], ignore_index=True)
    labels = [shape_name(row.spatial_dims, row.resolution, row.sample_kind) for row in rows_of(table)]
    return per_sample(table, labels, [PHASE_COLOURS["generation"]] * len(table))


def by_sampler(comparison: pd.DataFrame) -> go.Figure:
    """Grams per sample by dimension, sampler and number of steps."""
    table = comparison.sort_values(["spatial_dims", "steps", "sampler"], ignore_index=True)
    labels = [
        f"{dims_name(row.spatial_dims, row.sample_kind)} · {sampler_label(row.sampler, row.steps)}"
        for row in rows_of(table)
    ]
    return per_sample(table, labels, [PHASE_COLOURS["generation"]] * len(table))


def by_devices(comparison: pd.DataFrame) -> go.Figure:
    """Grams per sample by dimension and number of devices."""
    table = comparison.sort_values(["spatial_dims", "devices"], ignore_index=True)
    labels = [
        f"{dims_name(row.spatial_dims, row.sample_kind)} · {row.devices} device{'' if row.devices == 1 else 's'}"
        for row in rows_of(table)
    ]
    return per_sample(table, labels, [PHASE_COLOURS["generation"]] * len(table))


def by_stage(comparison: pd.DataFrame) -> go.Figure:
    """The study's emissions by stage, in the order of the flow, coloured by phase, with their interval."""
    if comparison.empty:
        return empty_figure("No stage has run.")
    columns = ["emissions_g", "emissions_low_g", "emissions_high_g", "share_percent"]
    stages = comparison.groupby(["stage", "phase"], sort=False)[columns].sum().reset_index()
    stages["label"] = stages["stage"].map(stage_name)
    largest_g = float(stages["emissions_high_g"].max())
    factor, unit = (1.0, "g") if largest_g >= 0.5 else (1e3, "mg") if largest_g >= 5e-4 else (1e6, "µg")
    values, low, high = (stages[f"emissions{end}_g"] * factor for end in ("", "_low", "_high"))
    figure = go.Figure(
        go.Bar(
            x=values.tolist(),
            y=stages["label"].tolist(),
            orientation="h",
            marker={"color": [PHASE_COLOURS[phase] for phase in stages["phase"]], "line": {"width": 0}},
            error_x=error_bars(values, low, high),
            text=[
                f"{row.label}<br><b>{mass_text(row.emissions_g)}</b>, {row.share_percent:.1f} % of the energy"
                for row in rows_of(stages)
            ],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        ),
        layout=layout(
            _FRAME_PX + 38 * len(stages),
            bargap=0.4,
            xaxis=axis(f"CO₂e, {unit}", rangemode="tozero", nticks=7),
            yaxis=_rows(stages["label"].tolist()) | {"showgrid": False},
        ),
    )
    keys = [legend_key(phase, PHASE_COLOURS[phase], "square") for phase in dict.fromkeys(stages["phase"])]
    figure.update_layout(meta={"legend": keys})
    return figure
