"""`footprint schedule`: where and when to run measured work next; `... backtest`: what that would have saved.

Reads our ledger, a priced one, or CodeCarbon's emissions.csv. Heavy imports are inside the functions that need them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emissions.schedule import backtest_command
from emissions.schedule.arguments import UNITS, duration, moment, number

if TYPE_CHECKING:
    import pandas as pd

    from emissions.grid.intensity import CarbonIntensity
    from emissions.schedule.pauses import PauseCost
    from emissions.schedule.policies import Comparison
    from emissions.schedule.problem import DagSite
    from emissions.schedule.tasks import Task

YEAR = 2024  # of the annual means, for zones without a typical year


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to `footprint`."""
    parser = subparsers.add_parser(
        "schedule",
        help="where and when to run next",
        description="Plan measured work anew: starting now, at the best time, at the best site, with pauses, and every "
        "task on its own. `footprint schedule backtest --help` replays history.",
        epilog="example: footprint schedule results/emissions/ledger.csv --zones DE,SE --deadline 24h --gpus DE=1,SE=4",
    )
    backtest = type(parser)(
        prog=f"{parser.prog} backtest",
        description=backtest_command.DESCRIPTION,
        epilog="example: footprint schedule backtest DE.csv --forecasts issued.csv --duration 6h --slack 24h",
    )
    _add_plan_arguments(parser)
    backtest_command.add_arguments(backtest)
    plan = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        # argparse cannot have a command where a file may stand; a file of that name is ./backtest
        if args and args[0] == "backtest":
            return backtest.parse_known_args(args[1:], namespace)
        return plan(args, namespace)

    parser.parse_known_args = parse_known_args


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("work", type=Path, metavar="FILE", help="ledger.csv, priced.csv or CodeCarbon's emissions.csv")
    add("--zones", type=_listed, required=True, metavar="Z,Z", help="grid zones of the sites; the first is home")
    add(
        "--deadline",
        type=_deadline,
        default=UNITS["d"],
        metavar="T",
        help="90min, 24h, 7d from the start on, or a time (default: 24h)",
    )
    add(
        "--from",
        dest="earliest",
        type=moment,
        metavar="TIME",
        help="the earliest start, as 2026-11-25T08:00Z (default: now)",
    )
    add("--plan", type=Path, metavar="FILE", help="the study's plan.csv (default: the one of the ledger's study)")
    add("--pue", default="1", metavar="P", help="of all sites, or DE=1.2,SE=1.1 (default: 1)")
    add("--gpus", metavar="N", help="of all sites, or DE=1,SE=4 (default: what the work held at once)")
    add("--intensity", action="append", default=[], metavar="FILE", help="forecast of a zone, as CSV; may be repeated")
    add("--actual", action="append", default=[], metavar="FILE", help="what became of it: adds perfect foresight")
    add("--gb", type=number, default=0.0, metavar="X", help="GB to move between sites: the data, and each result")
    add("--kwh-per-gb", type=number, metavar="X", help="to move one GB (default: 0.06, fixed lines of 2015)")
    add("--one-site-per-item", action="store_true", help="all stages of an item run at one site")
    add("--pausable", action="store_true", help="also plan pauses at checkpoints")
    add("--checkpoint-kwh", type=number, metavar="X", help="energy of a checkpoint (default: as measured)")
    add("--restart-kwh", type=number, metavar="X", help="energy of a restart (default: as measured)")
    add("--idle-w", type=number, default=0.0, metavar="W", help="power that is held in a pause (default: 0)")
    add("--scale", type=number, default=1.0, metavar="K", help="plan work that takes K times as much")
    add("--time-limit", type=number, default=30.0, metavar="S", help="seconds for the solver (default: 30)")
    add("--gap", type=number, default=1e-4, metavar="X", help="part of the emissions that is close enough to optimal")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the plans as JSON")
    shown.add_argument("--begin", action="store_true", help="print only sbatch's --begin of the best single start")
    parser.set_defaults(run=_schedule)


def _schedule(arguments: argparse.Namespace) -> int:
    from emissions.schedule.dag import best_single_start
    from emissions.schedule.policies import compare
    from emissions.schedule.problem import Problem
    from emissions.schedule.site import KWH_PER_GB

    work, tasks, notes = _tasks(arguments)
    earliest = arguments.earliest or _next_minute()
    asked = arguments.deadline
    deadline = earliest + asked if isinstance(asked, timedelta) else asked
    if deadline <= earliest:
        raise ValueError(f"--deadline: {deadline} is not after the earliest start, {earliest}")
    sites = _sites(arguments, work, tasks, earliest, deadline, arguments.intensity)
    settings = {
        "home_gb": arguments.gb,
        "kwh_per_gb": KWH_PER_GB if arguments.kwh_per_gb is None else arguments.kwh_per_gb,
        "one_site_per_item": arguments.one_site_per_item,
    }
    if arguments.begin:
        single = best_single_start(Problem.of(tasks, sites[:1], earliest, deadline, **settings))
        if single is None:
            raise ValueError(
                "the work does not end before the deadline at the first site: allow more time or more GPUs"
            )
        print(f"--begin={_sbatch_time(single.begins)}")
        return 0
    actual = _sites(arguments, work, tasks, earliest, deadline, arguments.actual) if arguments.actual else None
    comparison = compare(
        tasks,
        sites,
        earliest,
        deadline,
        pause=_pause(arguments, tasks) if arguments.pausable else None,
        actual=actual,
        time_limit_s=arguments.time_limit,
        gap=arguments.gap,
        **settings,
    )
    if arguments.json:
        print(json.dumps(_figures(comparison, deadline, notes), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(_text(comparison, deadline, notes), end="")
    return 0


# --- what is asked for


def _tasks(arguments: argparse.Namespace) -> tuple[pd.DataFrame, tuple[Task, ...], list[str]]:
    """The measured work, its tasks, and what a reader has to know of them."""
    from emissions.records import LEDGER_COLUMNS
    from emissions.schedule.tasks import tasks_of
    from emissions.tables import read_table
    from emissions.work import read_work

    work = read_work(arguments.work)
    own = set(LEDGER_COLUMNS) <= set(work.columns)
    path = arguments.plan or arguments.work.absolute().parent.parent / "plan.csv"
    plan = read_table(path, required=("run",)) if arguments.plan or (own and path.is_file()) else None
    notes = []
    if plan is None:
        notes.append(f"no plan.csv beside {arguments.work}: tasks follow each other in the order in which they started")
    if arguments.scale != 1:
        notes.append(f"extrapolated: durations and energy are {arguments.scale:g} times what was measured")
    return work, tasks_of(work, plan, scale=arguments.scale, output_gb=arguments.gb), notes


def _sites(
    arguments: argparse.Namespace,
    work: pd.DataFrame,
    tasks: Sequence[Task],
    earliest: datetime,
    deadline: datetime,
    files: Sequence[str],
) -> list[DagSite]:
    """The sites of `--zones` with the signals of the files, or of the tables for zones without one."""
    from emissions.grid.intensity import intensity_of
    from emissions.grid.zones import find_zone
    from emissions.schedule.problem import DagSite
    from emissions.schedule.slots import Slots
    from emissions.schedule.tasks import gpus_at_once

    zones = [find_zone(text) for text in arguments.zones]
    if len(set(zones)) < len(zones):
        raise ValueError(f"--zones: {', '.join(zone.zone for zone in zones)}: a zone is there twice")
    names = [zone.zone for zone in zones]
    signals = _signals(files, names)
    unknown = [] if files is arguments.intensity else _signals(arguments.intensity, names).keys() - signals.keys()
    if unknown:
        raise ValueError(f"--actual: nothing tells what became of the forecast of {', '.join(sorted(unknown))}")
    at_once = gpus_at_once(work, tasks) if arguments.gpus is None else 0
    gpus = [at_once] * len(names) if arguments.gpus is None else _by_zone("--gpus", arguments.gpus, names, _whole)
    pues = _by_zone("--pue", arguments.pue, names, float)
    return [
        DagSite(zone.zone, Slots.of(signals.get(zone.zone) or intensity_of(zone, YEAR), earliest, deadline), held, pue)
        for zone, held, pue in zip(zones, gpus, pues, strict=True)
    ]


def _signals(files: Sequence[str], names: Sequence[str]) -> dict[str, CarbonIntensity]:
    """Signals by zone, of FILE that says its zone, or of ZONE=FILE."""
    from emissions.grid.series import read_intensity_csv

    signals: dict[str, CarbonIntensity] = {}
    for text in files:
        zone, equals, path = text.partition("=")
        if not equals or Path(text).is_file():
            zone, path = names[0] if len(names) == 1 else "", text
        signal = read_intensity_csv(path, zone=zone or None)
        if signal.zone.zone not in names:
            raise ValueError(f"{path}: is of zone {signal.zone.zone}, which --zones does not have")
        signals[signal.zone.zone] = signal
    return signals


def _by_zone(option: str, text: str, names: Sequence[str], number: Callable[[str], Any]) -> list[Any]:
    """One number for all zones, or ZONE=NUMBER for each, in the order of the zones."""
    from emissions.grid.zones import find_zone

    try:
        if "=" not in text:
            return [number(text)] * len(names)
        pairs = [part.split("=") for part in text.split(",")]
        found = {find_zone(zone).zone: number(value) for zone, value in pairs}
    except ValueError as error:
        raise ValueError(f"{option}: {text!r}: {error}; write a number, or one for each zone as DE=1,SE=2") from None
    for zone in names:
        if zone not in found:
            raise ValueError(f"{option}: {text!r} has no number for {zone}")
    return [found[zone] for zone in names]


def _pause(arguments: argparse.Namespace, tasks: Sequence[Task]) -> PauseCost:
    """What a pause costs: the dearest checkpoint and restart that were measured, or as told."""
    from emissions.schedule.pauses import PauseCost

    measured = {}
    for name, told in (("checkpoint", arguments.checkpoint_kwh), ("restart", arguments.restart_kwh)):
        known = [getattr(task, f"{name}_kwh") for task in tasks if getattr(task, f"{name}_kwh") is not None]
        if told is None and not known:
            raise ValueError(f"--pausable: {arguments.work} does not tell the energy of a {name}: give --{name}-kwh")
        measured[f"{name}_kwh"] = max(known) if told is None else told
        measured[f"{name}_s"] = max((getattr(task, f"{name}_s") or 0.0 for task in tasks), default=0.0)
    return PauseCost(**measured, idle_w=arguments.idle_w)


def _next_minute() -> datetime:
    return datetime.now(UTC).replace(second=0, microsecond=0) + UNITS["min"]


def _deadline(text: str) -> timedelta | datetime:
    return moment(text) if re.match(r"\d{4}-", text) else duration(text)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> int:
    if not text.strip().isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _sbatch_time(time: pd.Timestamp) -> str:
    """As sbatch reads it: the local time of this machine, without a zone."""
    return time.to_pydatetime().astimezone().strftime("%Y-%m-%dT%H:%M:%S")


# --- what is told


def _figures(comparison: Comparison, deadline: datetime, notes: Sequence[str]) -> dict[str, Any]:
    from emissions.schedule.policies import starts_table, utc_second

    problem = comparison.problem
    table = starts_table(comparison)
    return {
        "earliest": utc_second(problem.earliest),
        "deadline": f"{deadline:%Y-%m-%dT%H:%M:%SZ}",
        "slot_s": problem.step_s,
        "tasks": sum(len(task.parts) for task in problem.tasks),
        "gpus": {site.site: site.gpus for site in problem.sites},
        "pue": {site.site: site.pue for site in problem.sites},
        "intensity": {
            site.site: {"kind": site.slots.kind, "source": site.slots.source, "hash": site.slots.data_hash}
            for site in problem.sites
        },
        "notes": [*notes, *comparison.notes],
        "policies": [
            {
                "policy": policy.policy,
                "site": policy.site,
                "begins": utc_second(policy.begins),
                "ends": utc_second(policy.ends),
                "energy_kwh": policy.energy_kwh,
                "emissions_g": policy.emissions_g,
                "actual_g": policy.actual_g,
                "saving_percent": policy.saving_percent,
                "bound_g": policy.bound_g,
                "gap": policy.gap,
                "status": policy.status,
                "seconds": policy.seconds,
            }
            for policy in comparison.policies
        ],
        "starts": table.astype(object).where(table.notna(), None).to_dict("records"),
    }


def _text(comparison: Comparison, deadline: datetime, notes: Sequence[str]) -> str:
    from emissions.grid.zones import find_zone
    from emissions.schedule.problem import span

    problem, policies = comparison.problem, comparison.policies
    parts = [part for task in problem.tasks for part in task.parts]
    together_s, energy_kwh = sum(part.duration_s for part in parts), sum(part.energy_kwh for part in parts)
    lines = [
        f"{len(parts)} tasks, {energy_kwh:.4g} kWh, {span(together_s)} one after the other; to run between "
        f"{problem.earliest:%Y-%m-%d %H:%M} and {deadline:%Y-%m-%d %H:%M} UTC"
    ]
    for place in problem.sites:
        slots = place.slots
        held = f"{place.gpus} GPU{'s' if place.gpus != 1 else ''} or places"
        lines.append(f"{place.site}: {held}, PUE {place.pue:g}, {slots.kind}, {slots.source} [{slots.data_hash}]")
    known = any(policy.actual_g is not None for policy in policies)
    lines += ["", f"{'policy':<20}{'site':<12}{'start, UTC':<18}{'end, UTC':<18}{'g CO2e':>10}"
              f"{'in fact' if known else '':>{10 * known}}{'saves':>9}"]  # fmt: skip
    for policy in policies:
        actual = f"{policy.actual_g:>10.4g}" if policy.actual_g is not None else " " * 10 * known
        saving = "" if policy.saving_percent is None else f"{policy.saving_percent:.1f} %"
        lines.append(
            f"{policy.policy:<20}{policy.site:<12}{policy.begins:%Y-%m-%d %H:%M}  {policy.ends:%Y-%m-%d %H:%M}  "
            f"{policy.emissions_g:>10.4g}{actual}{saving:>9}"
        )
    whole = next(policy for policy in policies if policy.policy == "whole DAG")
    lines.append(
        f"whole DAG: {whole.status} in {whole.seconds:.1f} s; no plan in these slots is below {whole.bound_g:.4g} g "
        f"(gap {100 * (whole.gap or 0.0):.2g} %)"
    )
    lines += [f"note: {note}" for note in (*notes, *comparison.notes)]
    lines += ["", f"{'start, UTC':<18}{'start at the site':<24}{'site':<12}{'kWh':>9}{'g CO2e':>9}  task"]
    for placed in whole.plan.placed if whole.plan is not None else ():
        local = placed.start.tz_convert(find_zone(placed.site.site).timezone)
        lines.append(
            f"{placed.start:%Y-%m-%d %H:%M}  {local:%Y-%m-%d %H:%M %Z}".ljust(42)
            + f"{placed.site.site:<12}{placed.task.energy_kwh:>9.3g}{placed.emissions_g:>9.3g}  {placed.task.name}"
        )
    return "\n".join([*lines, ""])
