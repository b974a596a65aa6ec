"""What the dashboard's page is made of: sections of charts and tables, all values as texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from emissions.figures.theme import has_value

Formatter = Callable[[Any], str]
Columns = dict[str, tuple[str, Formatter | None]]  # column -> heading, formatter (None: text)


@dataclass(frozen=True)
class Table:
    """A table of texts; `number` columns stand to the right."""

    columns: list[dict[str, Any]]
    rows: list[list[str]]
    title: str = ""
    lead: str = ""


@dataclass(frozen=True)
class Chart:
    """One figure with the sentence above it and the numbers below."""

    id: str
    title: str
    lead: str
    figure: go.Figure
    table: Table | None = None
    note: str = ""
    shape: str = ""  # "wide": both columns; "tall": beside two others

    @property
    def height(self) -> int:
        return int(self.figure.layout.height)

    @property
    def legend(self) -> list[dict[str, Any]]:
        return list((self.figure.layout.meta or {}).get("legend", []))


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    intro: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def text_table(frame: pd.DataFrame, columns: Columns, title: str = "", lead: str = "") -> Table:
    """The named columns of a table as texts; what is unknown is a dash."""
    rows = [[_cell(row[column], write) for column, (_, write) in columns.items()] for row in frame.to_dict("records")]
    heads = [{"name": heading, "number": write is not None} for heading, write in columns.values()]
    return Table(heads, rows, title, lead)


def _cell(value: Any, write: Formatter | None) -> str:
    if not has_value(value):
        return "\N{EN DASH}"
    return write(value) if write else str(value)
