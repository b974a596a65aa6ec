"""Metered jobs as processes of their own, for tests that watch or end them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from emissions import records
from tests.standins.hardware import REPOSITORY, fake_snakemake

JOB = """
import json, sys, time
from pathlib import Path
settings = json.loads(sys.argv[1])
if settings["imports"]:
    import pyarrow.parquet
from emissions.stage import stage
from tests.standins.hardware import fake_snakemake
changes = {"config": {"metering": settings["metering"]}, "threads": settings["threads"]}
with stage(fake_snakemake(Path(settings["results"]), settings["item"], **changes)) as metered:
    print(json.dumps({"opened_s": time.monotonic()}), flush=True)
    end_s, used_s = time.monotonic() + settings["seconds"], time.process_time()
    while time.monotonic() < end_s:
        if settings["load"] and time.process_time() - used_s < settings["load"] * (
            settings["seconds"] - end_s + time.monotonic()
        ):
            continue
        time.sleep(0.01)
    metered.work(images_seen=7)
    print(json.dumps({"closing_s": time.monotonic()}), flush=True)
print(json.dumps({"closed_s": time.monotonic()}), flush=True)
"""


def start_job(
    results: Path,
    item: str,
    seconds: float,
    *,
    environment: Mapping[str, str],
    load: float = 0.0,
    threads: int = 1,
    imports: bool = False,
    inside: Callable[[list[str]], list[str]] = list,
    **metering: Any,
) -> subprocess.Popen[str]:
    """A process that is stage `train_diffusion` of `item` for some seconds, under a load of 0 to 1 CPU.

    inside: makes the command one that runs it somewhere else, in a namespace for instance.
    """
    settings = {
        "results": str(results), "item": item, "seconds": seconds, "load": load, "threads": threads,
        "imports": imports, "metering": {"codecarbon": False} | metering,
    }  # fmt: skip
    return subprocess.Popen(
        inside([sys.executable, "-c", JOB, json.dumps(settings)]),
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def said(job: subprocess.Popen[str]) -> dict[str, float]:
    """Instants that a job has told, after it has ended."""
    output, _ = job.communicate(timeout=120)
    moments: dict[str, float] = {}
    for line in output.splitlines():
        moments |= json.loads(line)
    return moments


def wait_until_open(job: subprocess.Popen[str]) -> float:
    """When the job's window had opened, on the monotonic clock."""
    assert job.stdout is not None
    line = job.stdout.readline()
    assert line, job.stderr.read() if job.stderr else ""
    return float(json.loads(line)["opened_s"])


def record_of(results: Path, item: str) -> records.Record:
    return records.read_record(fake_snakemake(results, item).output.record)


def journal_of(results: Path) -> list[records.Record]:
    return records.read_journal(journal_path(results))


def journal_path(results: Path) -> Path:
    return results / "emissions" / "journal.jsonl"


def recorders(runtime_folder: Path) -> list[psutil.Process]:
    """The recorder processes whose jobs meet in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "emissions.recorder" in command and any(str(runtime_folder) in word for word in command):
            found.append(process)
    return found


def wait_for_no_recorder(runtime_folder: Path, timeout_s: float = 20.0) -> None:
    """Until every recorder has written what it had to and left, its files closed and their locks free."""
    deadline_s = time.monotonic() + timeout_s
    while recorders(runtime_folder) or _processes_that_are_ending():
        assert time.monotonic() < deadline_s, "a recorder does not leave"
        time.sleep(0.05)


def _processes_that_are_ending() -> list[psutil.Process]:
    """Python that has given its memory back, and with it its command line, but not yet its files."""
    ending = []
    for process in psutil.process_iter(["cmdline", "name", "status"]):
        still_holds = process.info["cmdline"] == [] and process.info["status"] != psutil.STATUS_ZOMBIE
        if still_holds and process.info["name"].startswith("python"):
            ending.append(process)
    return ending
