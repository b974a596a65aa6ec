"""`footprint intensity`: what a live source says, as the project's intensity CSV."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emissions.grid.live import NAMES

if TYPE_CHECKING:
    from emissions.grid.intensity import SeriesIntensity


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to `footprint`."""
    parser = subparsers.add_parser(
        "intensity",
        help="ask a live source for the carbon intensity of a zone",
        description="Ask a live source for the carbon intensity of a zone, in gCO2e/kWh, and write it as a CSV that "
        "`carbon.intensity: file` reads. Tokens and addresses: docs/live-sources.md.",
        epilog="example: footprint intensity electricity_maps --zone DE --from 2026-11-01 --to 2026-11-08 --out DE.csv",
    )
    parser.add_argument("source", choices=NAMES, metavar="SOURCE", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--zone", required=True, metavar="Z", help="zone id, country code or cloud region")
    parser.add_argument("--from", dest="start", type=_time, metavar="TIME", help="UTC unless it says otherwise")
    parser.add_argument("--to", dest="end", type=_time, metavar="TIME", help="the first moment that is not wanted")
    parser.add_argument(
        "--forecast", action="store_true", help="what is expected from now on, in place of --from and --to"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write the CSV there (default: print it)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--url", metavar="URL", help="base URL (default: FOOTPRINT_{SOURCE}_URL, or the source's own)")
    parser.add_argument("--token-file", metavar="FILE", help="holds the token (default: FOOTPRINT_{SOURCE}_TOKEN)")
    parser.add_argument("--cache", metavar="DIR", help="folder of answers (default: the user's cache)")
    parser.set_defaults(run=_intensity)


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-01 or 2026-11-01T06:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _intensity(arguments: argparse.Namespace) -> int:
    import pandas as pd

    from emissions.grid.live import SOURCES
    from emissions.grid.series import write_intensity

    series = _asked(arguments)
    times = pd.DatetimeIndex(series.values_g_per_kwh.index)
    if arguments.out:
        write_intensity(series, times, arguments.out)
    if arguments.json:
        told = {**_as_json(series), "credit": SOURCES[arguments.source].credit}
        print(json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False))
    elif arguments.out:
        print(f"{arguments.out}: {_line(series)}; credit: {SOURCES[arguments.source].credit}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "intensity.csv"
            write_intensity(series, times, path)
            sys.stdout.write(path.read_text(encoding="utf-8"))
    return 0


def _asked(arguments: argparse.Namespace) -> SeriesIntensity:
    from emissions.grid.live import LiveSettings, forecast, history
    from emissions.grid.zones import find_zone

    settings = LiveSettings(url=arguments.url, token_file=arguments.token_file, cache=arguments.cache)
    zone = find_zone(arguments.zone)
    if arguments.forecast:
        if arguments.start or arguments.end:
            raise ValueError("--forecast starts now: leave out --from and --to")
        return forecast(arguments.source, zone, settings, datetime.now(UTC))
    if not (arguments.start and arguments.end):
        raise ValueError("name the span with --from and --to, or ask for the --forecast")
    return history(arguments.source, zone, arguments.start, arguments.end, settings)


def _line(series: SeriesIntensity) -> str:
    values = series.values_g_per_kwh
    missing = int(values.isna().sum())
    gaps = f", {missing} of them without a value" if missing else ""
    return f"{len(values)} slots of {_step_min(series):g} min{gaps}; {series.kind}; {series.source}"


def _as_json(series: SeriesIntensity) -> dict[str, Any]:
    values = series.values_g_per_kwh
    times = [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in values.index]
    told = [series.source] * len(values) if series.sources is None else list(series.sources)
    rows = [
        {
            "time": time,
            "carbon_intensity_g_per_kwh": None if math.isnan(value) else float(value),
            "intensity_source": source,
        }
        for time, value, source in zip(times, values, told, strict=True)
    ]
    return {
        "zone": series.zone.zone,
        "intensity_kind": series.kind,
        "intensity_source": series.source,
        "basis": series.basis,
        "step_min": _step_min(series),
        "intensity_hash": series.data_hash,
        "rows": rows,
    }


def _step_min(series: SeriesIntensity) -> float:
    return series.step.total_seconds() / 60
