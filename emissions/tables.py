"""Tables on disk: one way to read and write CSV for the whole package."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from emissions.files import atomic_path


def read_table(path: str | Path, required: Collection[str] = ()) -> pd.DataFrame:
    """A CSV as a table; only an empty field is missing, since zone "NA" is Namibia.

    Raises FileNotFoundError, or ValueError with one line when the file is no table or lacks a required
    column.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such table; run the study first")
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable CSV table ({str(error).strip()})") from error
    missing = [column for column in required if column not in table.columns]
    if missing:
        raise ValueError(f"{path}: has no column {', '.join(missing)}")
    return table


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a CSV whole or not at all, floats in full precision, missing values as empty fields."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
