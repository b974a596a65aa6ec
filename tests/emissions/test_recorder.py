"""The recorder as a process: known watts, jobs side by side, and jobs that are killed.

With `-s` the tests tell the figures that docs/measurement.md shows.
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from emissions import records, retries
from emissions.job import attempt_folders
from emissions.meters.base import J_PER_KWH
from tests.emissions import jobs
from tests.standins.hardware import (
    REPOSITORY,
    PowerProfile,
    RaplTree,
    fake_snakemake,
    standin_environment,
    with_powercap,
)

KILLS = 100
WATTS = 250.0


@pytest.fixture
def environment(nvml_folder: Path, runtime_folder: Path, tmp_path: Path) -> dict[str, str]:
    """Of jobs on a machine with one stand-in GPU, no RAPL, and a recorder that is this test's alone."""
    more = {"FAKE_NVML_WATTS": f"{WATTS:g}", "FOOTPRINT_POWERCAP": str(tmp_path / "none")}
    return standin_environment(nvml_folder, FOOTPRINT_RUNTIME_DIR=str(runtime_folder), **more)


def joules(record: Mapping[str, float], part: str) -> float:
    return record[f"{part}_kwh"] * J_PER_KWH


# --- known energy over a minute -----------------------------------------------------------------------------


def real_gpus(count: int) -> PowerProfile:
    """GPUs as they are: power in steps of seconds, a counter that advances every 100 ms, a reading that averages."""
    dice = random.Random(count)
    points = [[(float(s), dice.uniform(60, 400)) for s in range(0, 600, 3)] for _ in range(count)]
    options = {"counter_update_ms": 100.0, "power_update_ms": 100.0, "power_average_ms": 25.0, "power_gain": 0.95}
    return PowerProfile(points, time.monotonic(), options=options)


def tell(what: str, ours: float, known: float) -> None:
    print(f"{what}: {ours:.4g} for {known:.4g}, {100 * (ours / known - 1):+.3f} %")


def assert_known(record: Mapping[str, float], part: str, least_j: float, most_j: float) -> None:
    """Within 0.5 % of an energy whose window is known to a few milliseconds."""
    tell(f"{record['gpu_count']} GPU, J", joules(record, part), (least_j + most_j) / 2)
    assert 0.995 * least_j <= joules(record, part) <= 1.005 * most_j, (least_j, joules(record, part), most_j)
    assert record[f"{part}_low_kwh"] * J_PER_KWH <= most_j and record[f"{part}_high_kwh"] * J_PER_KWH >= least_j


def test_within_half_a_percent_over_a_minute_on_one_and_four_gpus_and_with_rapl_that_wraps_every_second(
    nvml_folder: Path, runtime_folder: Path, memory_folder: Path, tmp_path: Path
) -> None:
    running = {}
    tree = RaplTree(memory_folder, package_w=(30.0, 20.0), dram_w=8.0, range_j=30.0)
    with tree:
        for name, profile in {"one": real_gpus(1), "four": real_gpus(4)}.items():
            folder = runtime_folder / name
            folder.mkdir()
            profile.write(tmp_path / f"{name}.txt")
            environment = standin_environment(
                nvml_folder,
                FAKE_NVML_FILE=str(tmp_path / f"{name}.txt"),
                FOOTPRINT_RUNTIME_DIR=str(folder),
                FOOTPRINT_POWERCAP=str(memory_folder if name == "one" else tmp_path / "none"),
            )
            started_s = time.monotonic()
            running[name] = profile, started_s, jobs.start_job(tmp_path, name, 60.0, environment=environment, threads=2)
        told = {name: jobs.said(job) for name, (_, _, job) in running.items()}
    for name, (profile, started_s, _) in running.items():
        record, moments = jobs.record_of(tmp_path, name), told[name]
        counters = range(len(profile.points))
        least_j = sum(profile.joules(gpu, moments["opened_s"], moments["closing_s"]) for gpu in counters)
        most_j = sum(profile.joules(gpu, started_s, moments["closed_s"]) for gpu in counters)
        assert record["gpu_method"] == "nvml:energy-counter" and record["gpu_count"] == len(profile.points)
        # start-up and end of the process bound the window, which the record's own length tells more closely
        assert moments["closing_s"] - moments["opened_s"] <= record["duration_s"] <= moments["closed_s"] - started_s
        slack_s = record["duration_s"] - (moments["closing_s"] - moments["opened_s"])
        assert_known(record, "gpu", least_j, min(most_j, least_j + slack_s * 400 * len(profile.points)))
    record = jobs.record_of(tmp_path, "one")
    startup_j = joules(record, "startup")
    assert record["cpu_method"] == "rapl"
    for what, ours_j, watts in (
        ("RAPL packages, J", joules(record, "cpu") - startup_j + joules(record, "metering"), 30 + 20),
        ("RAPL DRAM, J", joules(record, "ram"), 2 * 8),
        ("RAPL psys, J", joules(record, "psys"), 2 * (30 + 20)),
    ):
        tell(what, ours_j, watts * record["duration_s"])
        assert ours_j == pytest.approx(watts * record["duration_s"], rel=0.005)


def test_codecarbon_and_we_differ_on_one_run_by_no_more_than_a_sampling_interval(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Both read the GPU's counter and RAPL; it, unmodified, finds them where a real machine has them."""
    folder = tmp_path / "powercap"
    command = [sys.executable, "-m", "tests.standins.rapl", str(folder), "--package-w", "50", "--range-j", "50"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as tree:
        assert tree.stdout is not None and tree.stdout.readline() == "ready\n"
        environment.pop("FOOTPRINT_POWERCAP")
        job = jobs.start_job(
            tmp_path,
            "both",
            8.0,
            environment=environment,
            threads=2,
            codecarbon=True,
            inside=lambda command: with_powercap(folder, command),
        )
        assert job.wait(60) == 0
        tree.communicate()
    record = jobs.record_of(tmp_path, "both")
    with Path(fake_snakemake(tmp_path, "both").output.codecarbon).open(newline="") as stream:
        theirs = next(csv.DictReader(stream))
    assert (record["cpu_method"], record["gpu_method"]) == ("rapl", "nvml:energy-counter")
    interval_s = 1.0  # the default
    node_cpu_j = joules(record, "cpu") - joules(record, "startup") + joules(record, "metering") + joules(record, "rest")
    for ours_j, part, watts in ((joules(record, "gpu"), "gpu", WATTS), (node_cpu_j, "cpu", 50.0)):
        tell(f"CodeCarbon's {part} energy over 8 s beside ours, J", float(theirs[f"{part}_energy"]) * J_PER_KWH, ours_j)
        assert abs(float(theirs[f"{part}_energy"]) * J_PER_KWH - ours_j) <= watts * interval_s, part
    # over its own window they agree but for the time between its last reading and its word
    assert record["codecarbon_kwh"] == pytest.approx(record["codecarbon_node_kwh"], rel=0.05)
    assert "CodeCarbon" not in record["warnings"]


# --- side by side -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 8])
def test_jobs_side_by_side_sum_to_the_node(environment: dict[str, str], tmp_path: Path, count: int) -> None:
    witness = jobs.start_job(tmp_path, "witness", 6.0, environment=environment)
    jobs.wait_until_open(witness)
    running = []
    for number in range(count):
        load = (number + 1) / (2 * count)
        running.append(jobs.start_job(tmp_path, f"job-{number}", 2.0, environment=environment, load=load))
        time.sleep(0.1)
    assert [job.wait(60) for job in [*running, witness]] == [0] * (count + 1)
    whole = jobs.record_of(tmp_path, "witness")
    shares = [whole, *(jobs.record_of(tmp_path, f"job-{number}") for number in range(count))]
    owned_kwh = sum(r["energy_kwh"] - r["startup_kwh"] + r["metering_kwh"] for r in shares) + whole["rest_kwh"]
    tell(f"{count} jobs, their metering and the rest, for the node, Wh", 1000 * owned_kwh, 1000 * whole["node_kwh"])
    assert owned_kwh == pytest.approx(whole["node_kwh"], rel=1e-9)
    # the node, by its one GPU of known watts, which all jobs see, and the constants of memory and CPU
    assert sum(joules(r, "gpu") for r in shares) == pytest.approx(WATTS * whole["duration_s"], rel=0.01)
    most, least = shares[-1], shares[1]
    assert most["cpu_s"] > 1.3 * least["cpu_s"] and most["cpu_kwh"] > least["cpu_kwh"]


def test_one_recorder_serves_all_jobs_and_leaves_after_the_last(
    environment: dict[str, str], runtime_folder: Path, tmp_path: Path
) -> None:
    started = [jobs.start_job(tmp_path, f"job-{number}", 3.0, environment=environment) for number in range(4)]
    for job in started:
        jobs.wait_until_open(job)
    assert len(jobs.recorders(runtime_folder)) == 1
    assert [job.wait(30) for job in started] == [0] * 4
    jobs.wait_for_no_recorder(runtime_folder)
    assert not list(runtime_folder.glob("*.sock"))


# --- killed -------------------------------------------------------------------------------------------------


def energies(lines: list[records.Record]) -> float:
    return sum(line["energy_kwh"] for line in lines)


def test_a_killed_job_loses_at_most_one_sample(
    environment: dict[str, str], runtime_folder: Path, tmp_path: Path
) -> None:
    job = jobs.start_job(tmp_path, "killed", 60.0, environment=environment, interval_s=0.2)
    opened_s = jobs.wait_until_open(job)
    time.sleep(1.1)
    job.kill()
    killed_s = time.monotonic()
    job.wait()
    jobs.wait_for_no_recorder(runtime_folder)
    (line,) = jobs.journal_of(tmp_path)
    assert line["outcome"] == "killed" and line["wasted_kwh"] == line["energy_kwh"] > 0
    assert line["duration_s"] >= killed_s - opened_s - 0.2
    assert joules(line, "gpu") == pytest.approx(WATTS * line["duration_s"], rel=0.02)


@pytest.mark.parametrize(
    ("number", "outcome"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted"), (signal.SIGKILL, "killed")]
)
def test_the_signal_that_ended_a_job_is_its_outcome(
    environment: dict[str, str], runtime_folder: Path, tmp_path: Path, number: signal.Signals, outcome: str
) -> None:
    job = jobs.start_job(tmp_path, "stopped", 60.0, environment=environment)
    jobs.wait_until_open(job)
    job.send_signal(number)
    job.wait()
    jobs.wait_for_no_recorder(runtime_folder)
    assert [line["outcome"] for line in jobs.journal_of(tmp_path)] == [outcome]


def kill_at_random(results: Path, environment: Mapping[str, str], item: str, after_s: float) -> None:
    """Start a job of a quarter of a second and kill it so long after its birth, if it has not ended by then."""
    job = jobs.start_job(results, item, 0.25, environment=environment)
    try:
        job.wait(after_s)
    except subprocess.TimeoutExpired:
        job.kill()
    job.communicate()
    if job.returncode:
        for path in fake_snakemake(results, item).output:  # as Snakemake does after a job that failed
            Path(path).unlink(missing_ok=True)


def test_no_record_is_lost_or_doubled_by_a_hundred_kills_at_random_instants(
    environment: dict[str, str], runtime_folder: Path, tmp_path: Path
) -> None:
    items = [f"item-{number}" for number in range(4)]

    def torment(place: int) -> None:
        dice, whole_s = random.Random(place), 3.0
        for round_ in range(KILLS // len(items)):
            begun_s = time.monotonic()
            kill_at_random(tmp_path, environment, items[place], 60.0 if round_ == 0 else dice.uniform(0, 1.1 * whole_s))
            whole_s = time.monotonic() - begun_s if round_ == 0 else whole_s  # of a job that nobody kills

    with ThreadPoolExecutor(len(items)) as pool:
        list(pool.map(torment, range(len(items))))
    jobs.wait_for_no_recorder(runtime_folder)
    lines = jobs.journal_of(tmp_path)
    assert len({line["attempt_id"] for line in lines}) == len(lines) > KILLS // 4
    outcomes = Counter(line["outcome"] for line in lines)
    print(f"{KILLS} kills: {dict(outcomes)} in the journal, each once")
    assert outcomes["killed"] and outcomes["ok"]
    files = [path for folder in attempt_folders(jobs.journal_path(tmp_path)) for path in folder.glob("*.jsonl")]
    told = {path.stem for path in files}
    assert told <= {line["attempt_id"] for line in lines}, "an attempt that was opened is not in the journal"
    assert retries.recover(jobs.journal_path(tmp_path), attempt_folders(jobs.journal_path(tmp_path))) == 0
    for item in items:
        assert jobs.start_job(tmp_path, item, 0.1, environment=environment).wait(60) == 0
        record = jobs.record_of(tmp_path, item)
        mine = [line for line in jobs.journal_of(tmp_path) if line["item"] == item]
        final = next(line for line in mine if line["attempt_id"] == record["attempt_id"])
        succeeded = [place for place, line in enumerate(mine) if line["outcome"] == "ok" and line is not final]
        since = mine[succeeded[-1] + 1 if succeeded else 0 :]
        assert record["attempts"] == len(since)
        assert record["energy_kwh"] == pytest.approx(energies(since), rel=1e-12)
        assert record["wasted_kwh"] == pytest.approx(energies(since) - final["energy_kwh"], rel=1e-9, abs=1e-15)


def test_an_attempt_whose_recorder_was_killed_with_it_is_rebuilt_from_its_file(
    environment: dict[str, str], runtime_folder: Path, tmp_path: Path
) -> None:
    journal = jobs.journal_path(tmp_path)
    for number in range(5):
        job = jobs.start_job(tmp_path, f"item-{number}", 60.0, environment=environment, interval_s=0.1)
        opened_s = jobs.wait_until_open(job)
        time.sleep(random.Random(number).uniform(0.3, 0.7))
        (recorder,) = jobs.recorders(runtime_folder)
        for pid in (recorder.pid, job.pid):  # as the end of a cgroup
            os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        job.wait()
        jobs.wait_for_no_recorder(runtime_folder)
        assert len(records.read_journal(journal)) == number
        assert retries.recover(journal, attempt_folders(journal)) == 1
        assert retries.recover(journal, attempt_folders(journal)) == 0
        line = records.read_journal(journal)[-1]
        assert (line["item"], line["outcome"]) == (f"item-{number}", "killed")
        assert killed_s - opened_s - 0.35 <= line["duration_s"] <= killed_s - opened_s + 0.2
        assert joules(line, "gpu") == pytest.approx(WATTS * line["duration_s"], rel=0.05, abs=0.1 * WATTS)


def test_a_job_whose_recorder_dies_ends_well_with_what_was_read(
    environment: dict[str, str], runtime_folder: Path, tmp_path: Path
) -> None:
    job = jobs.start_job(tmp_path, "orphan", 2.0, environment=environment, interval_s=0.1)
    jobs.wait_until_open(job)
    time.sleep(0.8)
    (recorder,) = jobs.recorders(runtime_folder)
    recorder.kill()
    assert job.wait(30) == 0
    record = jobs.record_of(tmp_path, "orphan")
    assert record["outcome"] == "ok" and 0.5 < record["duration_s"] < 1.5
    assert "recorder was gone" in record["warnings"]
    assert [line["attempt_id"] for line in jobs.journal_of(tmp_path)] == [record["attempt_id"]]


def test_a_signal_to_all_processes_of_a_job_does_not_end_the_recorder(
    environment: dict[str, str], runtime_folder: Path, tmp_path: Path
) -> None:
    job = jobs.start_job(tmp_path, "signalled", 1.0, environment=environment)
    jobs.wait_until_open(job)
    (recorder,) = jobs.recorders(runtime_folder)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        recorder.send_signal(number)
    assert job.wait(30) == 0
    record = jobs.record_of(tmp_path, "signalled")
    assert record["duration_s"] > 0.9 and "recorder was gone" not in record["warnings"]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_no_job_and_loses_no_reading(
    environment: dict[str, str], runtime_folder: Path, full_disk: Path
) -> None:
    job = jobs.start_job(full_disk, "full", 5.0, environment=environment, interval_s=0.1)
    jobs.wait_until_open(job)
    filler = full_disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 512)
        except OSError:
            pass
    time.sleep(3.5)  # a file's last page has room for some lines yet
    filler.unlink()
    assert job.wait(30) == 0
    record = jobs.record_of(full_disk, "full")
    assert record["outcome"] == "ok" and "No space left" in record["warnings"]
    trace = pq.read_table(fake_snakemake(full_disk, "full").output.trace).to_pydict()
    assert len(trace["time"]) >= 45  # the readings of the time when nothing could be written, too
