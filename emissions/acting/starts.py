"""The start of a study: planned once, kept until the study is done, waited for."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from emissions.acting.settings import GREEN, Acting
from emissions.files import atomic_path
from emissions.records import parse_utc, utc_text

logger = logging.getLogger(__name__)

TELL_EVERY_S = 1800.0
LOOK_EVERY_S = 5.0  # short, so that a machine that slept through the start notices
TIMES = ("requested_at", "planned_start", "deadline")


def starts_path(results: Path) -> Path:
    return results / "emissions" / "starts.json"


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Requests of a study with their plans, oldest first. Raises ValueError naming a file that is damaged."""
    if not path.is_file():
        return []
    try:
        starts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for plan in starts:
            for key in TIMES:
                parse_utc(plan[key])
        return starts
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a list of planned starts ({error}); delete it to plan anew") from error


def open_start(results: Path) -> dict[str, Any] | None:
    """The request that the study is at; None where there is none, or the last one is done."""
    starts = read_starts(starts_path(results))
    return starts[-1] if starts and not starts[-1].get("done_at") else None


def wait_for_start(
    config: Mapping[str, Any],
    results: Path,
    *,
    holds: bool = True,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = print,
) -> None:
    """Plan the study's start, or keep the plan of an earlier invocation that is not done, and wait for it.

    holds: whether to wait here; a cluster's scheduler waits itself, with `--begin`.

    Raises ValueError for a study whose length is not known, or is more than the deadline allows.
    """
    acting = Acting.from_config(config)
    if not acting.waits_or_pauses:
        return
    asked = acting.asked() | {"zone": config["carbon"]["zone"]}
    plan = open_start(results)
    if plan is None or plan["asked"] != asked or parse_utc(plan["deadline"]) <= now():
        plan = _plan(acting, config["carbon"], results, now()) | {"asked": asked}
        _write(results, [*read_starts(starts_path(results)), plan])
    begins = parse_utc(plan["planned_start"])
    if begins <= now():
        return
    tell(_told(plan, "waiting" if holds else "the cluster holds jobs"))
    told = now()
    while holds and (left_s := (begins - now()).total_seconds()) > 0:
        sleep(min(left_s, LOOK_EVERY_S))
        if (now() - told).total_seconds() >= TELL_EVERY_S and now() < begins:
            told = now()
            tell(f"waiting for {plan['planned_start']}: {(begins - told).total_seconds() / 60:.0f} min left")


def finish(results: Path, now: datetime) -> None:
    """Say that the study is done: the next request is planned anew."""
    starts = read_starts(starts_path(results))
    if starts and not starts[-1].get("done_at"):
        _write(results, [*starts[:-1], starts[-1] | {"done_at": utc_text(now)}])


def begin_option(results: Path, now: datetime) -> str:
    """`--begin=...` for SLURM, in this machine's local time, or "" where no start is ahead."""
    plan = open_start(results)
    if plan is None or parse_utc(plan["planned_start"]) <= now:
        return ""
    return f"--begin={parse_utc(plan['planned_start']).astimezone():%Y-%m-%dT%H:%M:%S}"


def _write(results: Path, starts: list[dict[str, Any]]) -> None:
    with atomic_path(starts_path(results)) as temporary:
        temporary.write_text(json.dumps(starts, indent=2) + "\n", encoding="utf-8")


def _plan(acting: Acting, carbon: Mapping[str, Any], results: Path, now: datetime) -> dict[str, Any]:
    """The request of `now`, with the start that emits least of those from which the study is done in time."""
    deadline = now + timedelta(hours=acting.deadline_h)
    duration_s, energy_kwh, basis = _length(acting, results)
    plan = {
        "requested_at": utc_text(now),
        "planned_start": utc_text(now),
        "deadline": utc_text(deadline),
        "duration_s": duration_s,
        "duration_basis": basis,
    }
    if acting.start != GREEN:
        return plan
    if duration_s is None:
        raise ValueError(
            "config: `schedule.duration_h`: say how long the study takes, since there is no ledger of it in "
            f"{results}/emissions yet"
        )
    if timedelta(seconds=duration_s) > timedelta(hours=acting.deadline_h):
        raise ValueError(
            f"config: `schedule.deadline_h`: {acting.deadline_h:g} h are less than the {duration_s / 3600:.3g} h that "
            f"the study takes ({basis})"
        )
    from emissions.grid.choice import intensity_ahead  # pandas, which a study that does not wait need not load
    from emissions.schedule.slots import Slots
    from emissions.schedule.start import best_start

    slots = Slots.of(intensity_ahead(carbon, now), now, deadline)
    best = best_start(slots, duration_s, energy_kwh or 1.0, now, deadline, carbon["pue"])
    return plan | {
        "planned_start": utc_text(best.start.to_pydatetime()),
        "carbon_intensity_g_per_kwh": best.mean_g_per_kwh,
        "now_g_per_kwh": best.mean_g_per_kwh * best.now_g / best.emissions_g if best.emissions_g > 0 else None,
        "intensity_kind": slots.kind,
        "intensity_source": slots.source,
        "intensity_hash": slots.data_hash,
    }


def _length(acting: Acting, results: Path) -> tuple[float | None, float | None, str]:
    """Seconds, energy before PUE where it was measured, and where the two are from."""
    ledger = results / "emissions" / "ledger.csv"
    if acting.duration_h is not None:
        return acting.duration_h * 3600, None, "schedule.duration_h"
    if not ledger.is_file():
        return None, None, "unknown"
    from emissions.ledger import read_ledger

    rows = read_ledger(ledger)
    started = min(parse_utc(text) for text in rows["started_at"])
    ended = max(parse_utc(text) for text in rows["ended_at"])
    # a study that was interrupted lasted longer from its first stage to its last than it takes
    return (
        min((ended - started).total_seconds(), float(rows["duration_s"].sum())),
        float(rows["energy_kwh"].sum()),
        str(ledger),
    )


def _told(plan: Mapping[str, Any], who: str) -> str:
    better = ""
    if plan["now_g_per_kwh"]:
        better = f": {plan['carbon_intensity_g_per_kwh']:.0f} g/kWh instead of {plan['now_g_per_kwh']:.0f}"
    place = plan["asked"]["zone"]
    return f"{who} until {plan['planned_start']}{better} ({place}); Ctrl-C ends this, and the plan stays"
