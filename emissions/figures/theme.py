"""What all figures share: colours, type, number formats, and names people can read.

Colours are told apart with every common colour-vision deficiency (each set differs in lightness too), and
text keeps a contrast of at least 4.5 on white. Symbols repeat what colour says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from emissions.allocation import dims_name

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "#1c2733"
MUTED = "#56636f"  # 6.2 : 1 on white
RULE = "#e3e8ec"
PAPER = "#ffffff"

PHASE_COLOURS = {"data": "#9aa8b5", "training": "#2f6690", "generation": "#e08a1e", "audit": "#6aa79b"}
FAMILY_COLOURS = {"unet": "#6b4fa0", "dit": "#189a87", "unet-slices": "#c2571a"}
COMPONENT_COLOURS = {"cpu": "#2f6690", "gpu": "#6aa79b", "ram": "#d9a441"}
# Told apart by lightness first: what was kept is pale, what was lost is dark.
KEPT_COLOUR, WASTED_COLOUR = "#9db4c8", "#8c2d04"
OTHER_COLOURS = ("#6b4fa0", "#189a87", "#c2571a", "#2f6690", "#8c6d1f", "#a23b72")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")

# Clean to dirty, pale to dark: lightness falls all the way, so it reads in grey as well.
INTENSITY_SCALE = [
    [0.0, "#dcefe8"],
    [0.25, "#f2dcae"],
    [0.5, "#e2a257"],
    [0.75, "#b45a30"],
    [1.0, "#5a1f1b"],
]
# Below and above a zone's own mean: blue and orange, never red and green.
SWING_SCALE = [[0.0, "#1f5f8b"], [0.25, "#8fb8d1"], [0.5, "#f7f6f3"], [0.75, "#eab676"], [1.0, "#b35806"]]

FAMILY_NAMES = {"unet": "U-Net", "dit": "DiT", "unet-slices": "U-Net by slice"}
SAMPLER_NAMES = {"ddpm": "DDPM", "ddim": "DDIM", "dpmpp": "DPM-Solver++", "euler": "Euler", "heun": "Heun"}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_SIZE_ORDER = ("nano", "tiny", "xs", "s", "b", "l", "xl")


def layout(height: int, *, top: int = 12, **changes: Any) -> dict[str, Any]:
    """The plotly layout every figure starts from; `changes` win. Titles and legends stay in the page."""
    base: dict[str, Any] = {
        "height": height,
        "autosize": True,
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "margin": {"l": 10, "r": 16, "t": top, "b": 48},
        "showlegend": False,  # the page draws it, from `legend_key`, so that it wraps
        "template": "none",
        "hoverlabel": {
            "bgcolor": INK,
            "font": {"family": FONT, "size": 13, "color": PAPER},
            "bordercolor": INK,
        },
        "dragmode": False,
    }
    return base | changes


def axis(title: str | None = None, **changes: Any) -> dict[str, Any]:
    """A quiet axis: light rules, no frame, a title with its unit."""
    base: dict[str, Any] = {
        "title": {"text": title, "font": {"size": 13, "color": MUTED}, "standoff": 12},
        "gridcolor": RULE,
        "zeroline": False,
        "linecolor": RULE,
        "ticks": "",
        "tickfont": {"size": 12.5, "color": INK},
        "automargin": True,
        "fixedrange": True,
    }
    return base | changes


def log_axis(title: str, values: Iterable[float], text: Callable[[float], str], **changes: Any) -> dict[str, Any]:
    """A logarithmic axis round all values above zero, with round ticks written by `text` ("100 mg")."""
    logs = [math.log10(value) for value in values if has_value(value) and value > 0]
    low, high = (min(logs), max(logs)) if logs else (0.0, 1.0)
    pad = max(0.07 * (high - low), (1 - (high - low)) / 2, 0.08)  # a decade at least, else an axis has no ticks
    low, high = low - pad, high + pad
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    every = 2 if high - low > 7 else 1
    decades = range(math.floor(low), math.ceil(high) + 1, every)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    marks = {
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [text(tick) for tick in ticks],
        "tickangle": 0,
    }
    return axis(f"{title} · log scale", **{"type": "log", "range": [low, high], **marks, **changes})


def legend_key(label: str, colour: str, symbol: str = "circle", *, hollow: bool = False) -> dict[str, Any]:
    """One entry of a figure's legend, for `layout.meta["legend"]`.

    Symbols are plotly's, and "line", "dots", "interval", "hatch" and "cross-hatch".
    """
    return {"label": label, "colour": colour, "symbol": symbol, "hollow": hollow}


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """`itertuples`, whose cells may be of any type."""
    return iter(table.itertuples())


def groups_of(table: pd.DataFrame, by: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """`groupby` in sorted order, with keys that may be of any type."""
    return iter(table.groupby(by))


def positive(values: pd.Series) -> list[float | None]:
    """Values for a log axis: what is missing or zero, which it cannot show, is null."""
    return [float(value) if has_value(value) and value > 0 else None for value in values]


def error_bars(values: pd.Series, low: pd.Series, high: pd.Series, colour: str = MUTED) -> dict[str, Any]:
    """Asymmetric intervals for plotly; a value without bounds gets none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - values).clip(lower=0).fillna(0).tolist(),
        "arrayminus": (values - low).clip(lower=0).fillna(0).tolist(),
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


def empty_figure(message: str, height: int = 160) -> go.Figure:
    """A figure that says why there is nothing to draw."""
    figure = go.Figure(layout=layout(height, xaxis={"visible": False}, yaxis={"visible": False}))
    figure.add_annotation(text=message, showarrow=False, font={"size": 14, "color": MUTED})
    return figure


# --- numbers ------------------------------------------------------------------------------------------------


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, thousands separated, without an exponent: 1234.5 -> "1,230"."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    text = f"{rounded:,.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _prefixed(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for factor, unit in units:
        if abs(value) >= factor or (value == 0 and factor == 1.0):  # nothing is 0 g, not 0 µg
            return f"{significant(value / factor)} {unit}"
    factor, unit = units[-1]
    return f"{significant(value / factor)} {unit}"


def mass_text(grams: float) -> str:
    """Grams with the prefix that reads best: 0.0012 -> "1.2 mg"."""
    return _prefixed(grams, ((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg")))


def energy_text(kwh: float) -> str:
    """Kilowatt-hours with the prefix that reads best: 0.0012 -> "1.2 Wh"."""
    return _prefixed(kwh, ((1e3, "MWh"), (1.0, "kWh"), (1e-3, "Wh"), (1e-6, "mWh"), (1e-9, "µWh")))


def energy_scale(largest_kwh: float) -> tuple[float, str]:
    """Factor and unit of an axis that ends at so many kWh."""
    return (1.0, "kWh") if largest_kwh >= 0.5 else (1e3, "Wh") if largest_kwh >= 5e-4 else (1e6, "mWh")


def distance_text(km: float) -> str:
    """Kilometres, or metres and centimetres below one: 0.012 -> "12 m"."""
    return _prefixed(km, ((1.0, "km"), (1e-3, "m"), (1e-5, "cm")))


def duration_text(seconds: float) -> str:
    """Seconds as people say them: 754 -> "12.6 min"."""
    return _prefixed(seconds, ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s")))


def count_text(count: float) -> str:
    """A count: whole and separated to 10 million, in words above."""
    if count >= 1e9:
        return f"{significant(count / 1e9)} billion"
    if count >= 1e7:
        return f"{significant(count / 1e6)} million"
    return f"{round(count):,}" if count >= 10 else significant(count, 2)


def ratio_text(ratio: float) -> str:
    """A ratio as "3.2 times"; two digits are enough for a comparison."""
    return f"{significant(ratio, 2)} times"


def has_value(value: Any) -> bool:
    """Whether a cell holds something: not None, NaN, <NA> or an empty text."""
    return value is not None and not pd.isna(value) and value != ""


# --- names --------------------------------------------------------------------------------------------------


def family_name(family: str) -> str:
    return FAMILY_NAMES.get(family, family)


def sampler_name(sampler: str) -> str:
    return SAMPLER_NAMES.get(sampler, sampler)


def shape_name(spatial_dims: int, resolution: int, kind: str) -> str:
    """2, 64 -> "2D 64²"; sequences are named by their sides in plane, "3D+t 64²"."""
    power = 2 if kind == "sequence" else int(spatial_dims)
    return f"{dims_name(spatial_dims, kind)} {resolution}{'¹²³⁴'[power - 1]}"


def stage_name(stage: str) -> str:
    """A rule's name as words: "train_diffusion" -> "train diffusion"."""
    return stage.replace("_", " ")


def size_rank(size: str) -> int:
    """Sizes in the order of their width, those of published generators too ("voldit-S/4"); unknown ones last."""
    parts = re.split("[-/]", size.lower())
    return next((_SIZE_ORDER.index(part) for part in parts if part in _SIZE_ORDER), len(_SIZE_ORDER))


def a_unit(kind: str) -> str:
    """A kind of sample, see `allocation.sample_kind`, with its article."""
    return f"{'an' if kind == 'image' else 'a'} {kind}"


def model_label(row: Mapping[str, Any]) -> str:
    """A short name of a model for an axis: "U-Net nano · 2D 64²"."""
    shape = shape_name(row["spatial_dims"], row["resolution"], row["sample_kind"])
    return f"{family_name(row['family'])} {row['size']} · {shape}"


def family_colour(family: str, position: int = 0) -> str:
    return FAMILY_COLOURS.get(family, OTHER_COLOURS[position % len(OTHER_COLOURS)])
