"""`footprint schedule backtest`: history replayed, and what schedules would have saved."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from emissions.schedule.arguments import UNITS, duration, number

DESCRIPTION = (
    "Replay history: what schedules made from the forecasts of the time would have saved, and what perfect foresight "
    "would have."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("history", type=Path, metavar="HISTORY", help="CSV of the intensity as it was")
    add("--forecasts", type=Path, required=True, metavar="FILE", help="CSV of forecasts with the time of their issue")
    add("--duration", type=duration, required=True, metavar="T", help="of the job, as 6h")
    add("--slack", type=duration, required=True, metavar="T", help="how much later than at once it may end, as 24h")
    add("--every", type=duration, default=UNITS["d"], metavar="T", help="between the jobs of the replay (default: 24h)")
    add("--energy", type=number, default=1.0, metavar="KWH", help="of the job (default: 1)")
    add("--pausable", action="store_true", help="also plan pauses, at no cost of a checkpoint and a restart")
    add("--zone", metavar="Z", help="of the history, where its file does not say it or has several")
    add("--time-column", metavar="C", help="of the history, where it is no export of Electricity Maps nor ours")
    add("--value-column", metavar="C", help="likewise, in gCO2e/kWh")
    add("--kind", metavar="K", help="likewise: average lifecycle, average direct, marginal lifecycle, marginal direct")
    add("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from emissions.grid.series import read_intensity_csv
    from emissions.schedule.backtest import POLICIES, read_forecasts, regular_jobs, replay, summary

    actual = read_intensity_csv(
        arguments.history,
        zone=arguments.zone,
        time_column=arguments.time_column,
        value_column=arguments.value_column,
        kind=arguments.kind,
    )
    forecasts = read_forecasts(arguments.forecasts, actual.zone, actual.kind)
    jobs = regular_jobs(
        actual,
        arguments.every.total_seconds(),
        arguments.duration.total_seconds(),
        arguments.slack.total_seconds(),
        arguments.energy,
        arguments.pausable,
        begin=forecasts[0][0],
    )
    table = summary(replay(actual, forecasts, jobs, POLICIES if arguments.pausable else POLICIES[:1]))
    if arguments.json:
        print(table.to_json(orient="records", indent=1))
        return 0
    room = f"{len(jobs)} jobs of {arguments.duration} with {arguments.slack} of slack"
    print(f"{room}, zone {actual.zone.zone}, {actual.kind}")
    columns = {"saving": "saved", "perfect_saving": "could have", "realised": "realised", "regret": "regret"}
    columns |= {"worse": "worse than now"}
    print(f"{'policy':<12}" + "".join(f"{title:>16}" for title in columns.values()))
    for row in json.loads(table.to_json(orient="records")):
        print(f"{row['policy']:<12}" + "".join(f"{_percent(row[f'{name}_percent']):>16}" for name in columns))
    short = int(table["short_forecasts"].max())
    if short:
        print(f"note: for {short} of {len(jobs)} jobs the forecast ended before the deadline, or had not been issued")
    return 0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"
