"""What a report says of the machine, the peak memory of a process, and how a report is printed."""

import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def peak_mb() -> float:
    """Of this process, in MB (1e6 bytes).

    Linux keeps the high-water mark of a program in `VmHWM`. `ru_maxrss` begins with that of the process which started
    it, and is only used where there is no /proc.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine(load_before: float) -> dict[str, Any]:
    """Versions, cores and load, for a report. load_before: of the last minute when the measurement began."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pandas": pd.__version__,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }


def tell(report: dict[str, Any], table: Callable[[dict[str, Any]], str], *, as_json: bool, quick: bool) -> None:
    """Print a report, as JSON or as its table; figures of a quick run are marked."""
    report["quick"] = quick
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print("QUICK: checks that it runs; its figures mean nothing\n" * quick + table(report))
