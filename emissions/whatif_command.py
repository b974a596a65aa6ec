"""`footprint whatif FILE`: the same work elsewhere and at other times."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ZONES = 5  # at each end of a long table


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "whatif",
        help="the same work elsewhere and at other times",
        description="What measured work would have emitted in other zones, months and hours of the day.",
        epilog="example: footprint whatif results/emissions/ledger.csv --zones DE,SE,aws:us-east-1 --months 1,7",
    )
    add = parser.add_argument
    add("work", type=Path, metavar="FILE", help="ledger.csv, priced.csv or CodeCarbon's emissions.csv")
    add("--zones", default="all", metavar="Z,Z", help="zones, countries or cloud regions (default: all)")
    add("--months", default="all", metavar="M,M", help="1 to 12 (default: all)")
    add("--hours", metavar="H,H", help="by the hour at which it begins, too: 0 to 23 of the zone's own time, or all")
    add("--pue", default="1.0", metavar="N", help="of all rooms, or by zone: DE=1.2,SE=1.1 (default: %(default)s)")
    add("--year", type=int, default=2024, help="of annual values (default: %(default)s)")
    add("--intensity", type=Path, action="append", default=[], metavar="CSV", help="one more signal, of any kind")
    add("--time-zone", default="UTC", metavar="TZ", help="of CodeCarbon's time stamps (default: %(default)s)")
    add("--out", type=Path, metavar="CSV", help="write the rows there too")
    add("--json", action="store_true", help="print the rows as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from emissions.grid.series import read_intensity_csv
    from emissions.pricing import read_traces
    from emissions.tables import write_table
    from emissions.whatif import HOURS_OF_DAY, MONTHS, whatif
    from emissions.work import read_work

    work = read_work(arguments.work, arguments.time_zone)
    signals = [read_intensity_csv(path) for path in arguments.intensity]
    table = whatif(
        work,
        None if arguments.zones == "all" else arguments.zones.split(","),
        _numbers("--months", arguments.months, MONTHS),
        hours=_numbers("--hours", arguments.hours, HOURS_OF_DAY) if arguments.hours else None,
        pue=_pue(arguments.pue),
        year=arguments.year,
        intensities=signals,
        traces=read_traces(work, arguments.work.absolute().parent.parent.glob("*/*/emissions/*.power.parquet")),
    )
    if arguments.out:
        write_table(table, arguments.out)
    for path, series in zip(arguments.intensity, signals, strict=True):
        if not (table["intensity_source"] == series.source).any():
            raise ValueError(f"{path}: covers none of these months with all its hours")
    if arguments.json:
        print(
            json.dumps(table.astype(object).where(table.notna(), None).to_dict("records"), indent=1, ensure_ascii=False)
        )
    else:
        print(_text(table, arguments.year))
    return 0


def _numbers(option: str, text: str, known: Sequence[int]) -> list[int]:
    if text == "all":
        return list(known)
    wrong = [part for part in text.split(",") if not part.strip().isdecimal() or int(part) not in known]
    if wrong:
        raise ValueError(f"{option}: {wrong[0]!r} is not one of {known[0]} to {known[-1]}, or all")
    return [int(part) for part in text.split(",")]


def _pue(text: str) -> dict[str, float]:
    """By zone; "" is that of all others."""
    from emissions.grid.zones import find_zone

    by_zone = {"": 1.0}
    for part in text.split(","):
        zone, equals, value = part.rpartition("=")
        try:
            by_zone[find_zone(zone).zone if equals else ""] = float(value)
        except ValueError as error:
            raise ValueError(f"--pue: {part!r}: {error}") from None
    return by_zone


def _text(table: pd.DataFrame, year: int) -> str:
    """A line per zone with its months' range, the ends of a long list, and how far apart places lie."""
    from emissions.extremes import between_places
    from emissions.grid.intensity import CREDIT
    from emissions.summary import energy_text

    lines = [f"{energy_text(float(table['energy_kwh'].iloc[0]))} measured; emissions of one beginning in each month:"]
    for kind, of_kind in table.groupby("intensity_kind", sort=False):
        zones = [group for _, group in of_kind.groupby(["zone", "intensity_hash"], sort=False)]
        lines += ["", f"{kind}", f"  {'zone':<14}{'mean':>12}{'least':>12}{'most':>12}  when least, when most"]
        for place, group in enumerate(zones):
            if len(zones) > 2 * SHOWN_ZONES and SHOWN_ZONES <= place < len(zones) - SHOWN_ZONES:
                if place == SHOWN_ZONES:
                    lines.append(f"  ... {len(zones) - 2 * SHOWN_ZONES} more: --json or --out has them all")
                continue
            lines.append(_zone_line(group))
    lines += ["", *(f"{extremes.sentence()}." for extremes in between_places(year)), "", f"{CREDIT}."]
    return "\n".join(lines)


def _zone_line(group: pd.DataFrame) -> str:
    from emissions.summary import mass_text

    grams = group["emissions_g"]
    least, most = group.iloc[int(grams.argmin())], group.iloc[int(grams.argmax())]
    numbers = "".join(f"{mass_text(float(value)):>12}" for value in (grams.mean(), grams.min(), grams.max()))
    when = f"{_when(least)}, {_when(most)}" if grams.nunique() > 1 else str(group["basis"].iloc[0])
    return f"  {group['zone'].iloc[0]:<14}{numbers}  {when}"


def _when(row: pd.Series) -> str:
    from calendar import month_name

    month = month_name[int(row["month"])]
    return f"{month} at {int(row['hour'])}:00" if "hour" in row.index else month
