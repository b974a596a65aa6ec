"""What a process tells the recorder about itself as a job: who it is, and what of the node it may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emissions.meeting import runtime_folder
from emissions.meters.nvml import VARIABLES
from emissions.processes import age_s, started

_startup_counted = False  # a process starts once, however many windows it opens


def job_of(
    *,
    stage: str,
    item: str,
    factors: Mapping[str, Any],
    journal: Path,
    folders: Sequence[Path],
    cpus: float | None,
    leased: Sequence[str] = (),
    no_gpu: bool = False,
    own: bool = True,
    codecarbon: bool = True,
) -> dict[str, Any]:
    """What the recorder is told about this process as a job.

    Args:
        stage: what is done.
        item: to what.
        factors: the plan's, by the names of `records.FACTOR_COLUMNS`.
        journal: where its attempts are kept.
        folders: for the attempt's file, the first that can be written to.
        cpus: logical CPUs reserved for it; None: all that it may use.
        leased: UUIDs of the GPUs that it holds alone; without any it shares those that it sees.
        no_gpu: it uses none.
        own: whether the process does the work itself, or only what it starts.
        codecarbon: whether CodeCarbon runs beside it.
    """
    global _startup_counted
    count_startup, _startup_counted = own and not _startup_counted, True
    pid = os.getpid()
    return {
        "stage": stage,
        "item": item,
        "factors": dict(factors),
        "journal": str(journal),
        "folders": [str(folder) for folder in folders],
        "pid": pid,
        "pid_started": started(pid),
        "own": own,
        "count_startup": count_startup,
        "startup_s": age_s(pid) if count_startup else 0.0,
        "cpus": float(cpus or usable_cpus()),
        "usable_cpus": usable_cpus(),
        "leased": list(leased),
        "no_gpu": no_gpu,
        "codecarbon": codecarbon,
        "visible": next((os.environ[name] for name in VARIABLES if name in os.environ), None),
    }


def attempt_folders(journal: Path) -> list[Path]:
    """Where attempts of a journal keep their files: beside it, or with the user's jobs where that is read-only."""
    folders = [journal.parent / "attempts"]
    with contextlib.suppress(OSError):
        folders.append(runtime_folder() / "attempts")
    return folders


def usable_cpus() -> float:
    """Logical CPUs of the node that this job may use: by affinity, by SLURM, by the quota of its cgroup."""
    limits = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(float(len(os.sched_getaffinity(0))))
    slurm = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if slurm.isdecimal():
        limits.append(float(slurm))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        limits.append(float(quota) / float(period))  # "max" is no number
    return max(min(limits), 0.01)
