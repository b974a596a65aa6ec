"""`footprint doctor`: what can be measured on this machine, by which method, how well, and how to do better."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from emissions.client import Session
from emissions.job import usable_cpus
from emissions.meeting import connected, runtime_folder
from emissions.meters import Meters, MeterSettings, open_meters
from emissions.meters.base import AbsentMeter, Meter
from emissions.meters.model import ModelCpuMeter
from emissions.meters.nvml import VARIABLES, visible_gpus
from emissions.records import is_measured
from emissions.uncertainty import UNSEEN_SHARE, unseen

WINDOW_S = 60.0  # intervals are told for a window of this length
LEAST_S = 0.5  # of looking at the power, for them
WIDTH, INDENT = 100, "    "


class Part(NamedTuple):
    """A part of this machine, by the config's name for it, and its meter."""

    component: str
    key: str
    meter: Meter


def examine(settings: MeterSettings, idle_s: float = 0.0) -> list[dict[str, Any]]:
    """A row per part of this machine.

    Keys: `component, device, how ("measured", "estimated", "unknown", "absent"), method, low_percent, high_percent`
    (of the energy of a window of a minute at the power drawn now), `idle_w`, `power_w` (mean over `idle_s` seconds, if
    asked for) and `advice` (lines).
    """
    parts = list(_parts(open_meters(settings)))
    begun_s, before_j = time.monotonic(), [part.meter.read_j() for part in parts]
    time.sleep(max(idle_s, LEAST_S))
    after_j, seconds = [part.meter.read_j() for part in parts], time.monotonic() - begun_s
    rows = []
    for part, before, after in zip(parts, before_j, after_j, strict=True):
        power_w = None if before is None or after is None else (after - before) / seconds
        rows.append(_row(part, power_w, tells_power=idle_s > 0))
        part.meter.close()
    return rows


def _parts(meters: Meters) -> Iterator[Part]:
    yield Part("CPU", "cpu", meters.cpu)
    yield Part("RAM", "ram", meters.ram)
    for gpu in meters.gpus or [AbsentMeter()]:
        yield Part("GPU", "gpu", gpu)
    if not isinstance(meters.psys, AbsentMeter):
        yield Part("platform (psys, for comparison)", "psys", meters.psys)


def _row(part: Part, power_w: float | None, *, tells_power: bool) -> dict[str, Any]:
    meter = part.meter
    low_percent, high_percent = _interval_percent(meter, power_w)
    how = _how(meter, power_w)
    told_w = power_w if tells_power and how != "absent" else None
    return {
        "component": part.component,
        "device": meter.device or "none",
        "how": how,
        "method": meter.method,
        "low_percent": low_percent,
        "high_percent": high_percent,
        "idle_w": meter.idle_w,
        "power_w": told_w,
        "advice": [*meter.warnings, *_advice(part, told_w)],
    }


def _how(meter: Meter, power_w: float | None) -> str:
    if power_w is None:
        return "unknown"
    if meter.method == "none":
        return "absent"
    return "measured" if is_measured(meter.method) else "estimated"


def _interval_percent(meter: Meter, power_w: float | None) -> tuple[float | None, float | None]:
    if not power_w:
        return None, None
    energy_j = power_w * WINDOW_S
    low_j, high_j = meter.interval_j(energy_j, WINDOW_S)
    return round(100 * (low_j / energy_j - 1), 1), round(100 * (high_j / energy_j - 1), 1)


def _advice(part: Part, power_w: float | None) -> Iterator[str]:
    meter = part.meter
    if isinstance(meter, ModelCpuMeter):
        yield f"{meter.tdp_w:g} W at full load: {meter.basis}."
        if not meter.warnings:
            yield (
                "No RAPL here (a virtual machine, or no Intel or AMD processor): a host that passes RAPL on, or bare "
                "metal, would measure it; metering.cpu_tdp_w in the config sets the watts."
            )
    elif part.key == "ram" and not is_measured(meter.method):
        yield "Where the processor has no DRAM counter, metering.ram_w in the config sets the watts."
    elif part.key in ("cpu", "gpu") and is_measured(meter.method) and meter.idle_w is None:
        key = f"metering.{part.key}_idle_w"
        if power_w is None:
            yield f"Its idle power is unknown: on an idle machine, `footprint doctor --idle 30` measures it for {key}."
        else:
            yield f"If the machine was idle just now, set {key}: {power_w:.1f} in the config."


def recorder_facts(settings: MeterSettings) -> dict[str, Any]:
    """Whether a recorder runs beside a job here and how soon it is ready, and what a job may use.

    Keys: `recorder_ready_s` (None: no recorder), `runtime_folder`, `visible_gpus` (UUIDs), `usable_cpus, cpus` and
    `warnings`.
    """
    facts: dict[str, Any] = {
        "recorder_ready_s": None,
        "runtime_folder": None,
        "visible_gpus": [],
        "usable_cpus": usable_cpus(),
        "cpus": os.cpu_count(),
        "warnings": [],
    }
    begun_s = time.monotonic()
    try:
        facts["runtime_folder"] = str(runtime_folder())
        connected(settings).close()
    except OSError as error:
        facts["warnings"] = [
            f"No recorder runs beside a job here ({error}): jobs are metered from inside, and one that is killed "
            "leaves no record. Set FOOTPRINT_RUNTIME_DIR to a folder of your own with a short path."
        ]
        return facts
    session = Session(settings)
    facts["recorder_ready_s"] = round(time.monotonic() - begun_s, 3)
    facts["warnings"] = session.warnings
    visible = next((os.environ[name] for name in VARIABLES if name in os.environ), None)
    facts["visible_gpus"], _ = visible_gpus(visible, [(gpu["index"], gpu["uuid"]) for gpu in session.gpus])
    session.goodbye()
    return facts


def _text(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    return "\n".join([*_lines_of_parts(rows), *_lines_of_the_unseen(), *_lines_of_the_recorder(facts)]) + "\n"


def _lines_of_parts(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        low, high = row["low_percent"], row["high_percent"]
        bounds = "" if low is None else f", {low:+.0f} to {high:+.0f} % at the power drawn now"
        power = "" if row["power_w"] is None else f", {row['power_w']:.1f} W"
        method = "" if row["method"] == "none" else f": {row['method']}"
        yield f"{row['component']}: {row['device']}"
        yield f"{INDENT}{row['how']}{method}{bounds}{power}"
        for advice in row["advice"]:
            yield from _wrapped(advice)


def _lines_of_the_unseen() -> Iterator[str]:
    yield "Not seen by any sensor: power supply, fans, board, disks"
    yield from _wrapped(
        f"at the wall, up to {100 * unseen(1.0):.0f} % more than all of the above ({100 * UNSEEN_SHARE:.0f} % of the "
        "wall's energy); it is in the upper end of every interval"
    )


def _lines_of_the_recorder(facts: dict[str, Any]) -> Iterator[str]:
    if facts["recorder_ready_s"] is None:
        yield "Recorder: none"
    else:
        yield f"Recorder: ready in {1000 * facts['recorder_ready_s']:.0f} ms"
        yield f"{INDENT}leases and sockets in {facts['runtime_folder']}"
    yield f"{INDENT}jobs may use {facts['usable_cpus']:g} of {facts['cpus']} logical CPUs"
    if facts["visible_gpus"]:
        yield f"{INDENT}jobs may use {', '.join(facts['visible_gpus'])}"
    for warning in facts["warnings"]:
        yield from _wrapped(warning)


def _wrapped(text: str) -> list[str]:
    """Words stay whole: commands and paths are to be copied."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False, break_long_words=False
    )


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to `footprint`."""
    parser = subparsers.add_parser(
        "doctor",
        help="tell what can be measured on this machine",
        description="Tell for each part of this machine how its energy is measured or estimated, how sure that is, and "
        "what to do to measure better.",
        epilog="example: footprint doctor --idle 30",
    )
    parser.add_argument(
        "--idle", type=float, default=0.0, metavar="S", help="also measure the power drawn now, over S seconds"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.idle <= 3600:
        raise ValueError(f"--idle is {arguments.idle:g}; expected 0 to 3600 (seconds)")
    settings = MeterSettings()
    rows, facts = examine(settings, arguments.idle), recorder_facts(settings)
    if arguments.json:
        print(json.dumps({"parts": rows, **facts}, indent=2))
    else:
        sys.stdout.write(_text(rows, facts))
    return 0
