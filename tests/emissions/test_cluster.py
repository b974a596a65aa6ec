"""Metered jobs on a real SLURM, and jobs whose memory the kernel takes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from emissions import records, retries
from emissions.job import attempt_folders
from emissions.meters.base import J_PER_KWH
from tests.emissions import jobs
from tests.needs import cannot
from tests.standins import slurm as slurm_standin
from tests.standins.hardware import standin_environment
from tests.standins.slurm import KILL_WAIT_S, TIME_LIMITS_S, Slurm

WATTS = (100.0, 300.0)  # of GPU 0 and 1
INTERVAL_S = 1.0
LATE_S = 0.4  # how late a process may get its turn on a busy machine

# Work that tells when it began (the time of the file BEAT.begun) and until when it went on (the time of BEAT).
WORK = """
import json, os, signal, sys, time
from pathlib import Path
settings = json.loads(sys.argv[1])
def begun(beat):
    return Path(f"{beat}.begun").exists()
def work():
    if settings.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    beat, hoard, until_s = Path(settings["beat"]), [], time.monotonic() + settings.get("seconds", 600)
    beat.touch()
    Path(f"{beat}.begun").touch()
    while time.monotonic() < until_s or not begun(settings.get("other", beat)):
        hoard.append(b"x" * settings.get("grow_bytes", 0))
        os.utime(beat)
        time.sleep(0.02)
"""
COMMAND = WORK + "work()\n"
STAGE = """
from emissions.stage import stage
from tests.standins.hardware import Named, fake_snakemake
resources = Named(gpu=settings["gpu"]) if "gpu" in settings else Named()
metering = {"codecarbon": False, "interval_s": settings["interval_s"]}
snakemake = fake_snakemake(
    Path(settings["results"]), settings["item"], resources=resources, config={"metering": metering}
)
given = os.environ.get("CUDA_VISIBLE_DEVICES")
print(json.dumps({"given": given}), flush=True)
while given == "0" and "other" in settings and not begun(settings["other"]):
    time.sleep(0.02)  # who comes first would have the first GPU, too, if it did not heed what it was given
with stage(snakemake):
    print(json.dumps({"leased": os.environ.get("CUDA_VISIBLE_DEVICES")}), flush=True)
    work()
"""


@pytest.fixture
def environment(nvml_folder: Path, runtime_folder: Path) -> dict[str, str]:
    """Of jobs on a machine with two stand-in GPUs and no RAPL."""
    watts = ",".join(f"{gpu:g}" for gpu in WATTS)
    more = {"FAKE_NVML_WATTS": watts, "FOOTPRINT_POWERCAP": str(runtime_folder / "none")}
    return standin_environment(nvml_folder, FOOTPRINT_RUNTIME_DIR=str(runtime_folder), **more)


def must_be_root() -> None:
    if os.geteuid() != 0:
        cannot("cgroups are root's to make")


def stage_command(
    beat: Path, results: Path, item: str, interval_s: float = INTERVAL_S, **settings: object
) -> list[str]:
    """Stage `train_diffusion` of `item`, which works for ten minutes if nobody ends it."""
    told = {"beat": str(beat), "results": str(results), "item": item, "interval_s": interval_s, **settings}
    return [sys.executable, "-c", WORK + STAGE, json.dumps(told)]


def track_command(beat: Path, out: Path, **settings: object) -> list[str]:
    """The same work under `footprint track`."""
    work = [sys.executable, "-c", COMMAND, json.dumps({"beat": str(beat), **settings})]
    return [sys.executable, "-m", "emissions.cli", "track", "--no-codecarbon", "--out", str(out), "--", *work]


def began_at(beat: Path) -> float:
    return beat.with_name(f"{beat.name}.begun").stat().st_mtime


def assert_told(line: Mapping[str, object], beat: Path, interval_s: float) -> None:
    """The window is what the job worked, but for its start and at most one sample at its end."""
    started_at, ended_at = (records.parse_utc(str(line[edge])).timestamp() for edge in ("started_at", "ended_at"))
    worked_until = beat.stat().st_mtime
    assert started_at <= began_at(beat) + 0.02 and began_at(beat) - started_at < 2  # of it, Python's start
    assert abs(worked_until - ended_at) <= interval_s + LATE_S, worked_until - ended_at
    assert abs(float(str(line["duration_s"])) - (worked_until - started_at)) <= interval_s + LATE_S


# --- SLURM's time-out ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedOut:
    """A job that SLURM ends: how it is started, whether it heeds SIGTERM, and what is known of it afterwards."""

    name: str
    cgroups: bool  # what SLURM holds to be the job
    track: bool  # `footprint track`, or a stage
    deaf: bool  # to SIGTERM
    behind_a_shell: bool  # which alone gets SIGTERM, and is ended by it; SLURM then kills the rest of the cgroup
    outcome: str
    with_its_recorder: bool | None  # which then is ended, too, and the attempt rebuilt; None: whoever comes first


# fmt: off
TIMED_OUT = [
    #        name                    cgroups  track  deaf   shell  outcome       rebuilt
    TimedOut("stage-heeds",          True,    False, False, False, "terminated", False),
    TimedOut("track-heeds",          True,    True,  False, False, "terminated", False),
    TimedOut("stage-deaf",           True,    False, True,  False, "killed",     True),
    TimedOut("track-deaf",           True,    True,  True,  False, "killed",     True),
    TimedOut("stage-behind-a-shell", True,    False, True,  True,  "killed",     True),
    TimedOut("track-behind-a-shell", True,    True,  True,  True,  "killed",     True),
    # by descent, SLURM ends all whose ancestor is the script, one by one: not the recorder of a stage
    TimedOut("track-by-descent",     False,   True,  True,  False, "killed",     None),
    TimedOut("stage-by-descent",     False,   False, True,  False, "killed",     False),
]
# fmt: on


def test_a_job_that_slurm_ends_for_its_time_is_in_the_journal_once_with_at_most_one_sample_lost(
    slurm_packages: None, environment: dict[str, str], runtime_folder: Path, tmp_path: Path
) -> None:
    must_be_root()
    with (
        Slurm(runtime_folder / "c", nodes=2, cgroups=True) as with_cgroups,
        Slurm(runtime_folder / "d") as by_descent,
    ):
        clusters = {True: with_cgroups, False: by_descent}
        running = {}
        for case in TIMED_OUT:
            # jobs of the same number in two clusters, which start counting at 1, are not each other's neighbours
            runtime = {"FOOTPRINT_RUNTIME_DIR": str(runtime_folder / ("c" if case.cgroups else "d") / "runtime")}
            running[case] = start_timed_out(clusters[case.cgroups], case, environment | runtime, tmp_path)
        for case, job in running.items():
            wait_for(tmp_path / f"{case.name}.begun", clusters[case.cgroups], job)
        for case, job in running.items():
            clusters[case.cgroups].end_time_limit(job)
        longest_s = TIME_LIMITS_S + KILL_WAIT_S + 30
        states = {case.name: clusters[case.cgroups].wait(job, longest_s) for case, job in running.items()}
        assert states == {case.name: "TIMEOUT" for case in TIMED_OUT}
        jobs.wait_for_no_recorder(runtime_folder)
    for case in TIMED_OUT:
        assert_recorded_once(case, tmp_path)


def start_timed_out(slurm: Slurm, case: TimedOut, environment: Mapping[str, str], folder: Path) -> int:
    """Submit a job with a limit of a second, which SLURM takes for a minute."""
    beat, results = folder / case.name, folder / f"{case.name}-results"
    if case.track:
        command = track_command(beat, results / "emissions", deaf=case.deaf)
    else:
        command = stage_command(beat, results, "item", deaf=case.deaf)
    start = shlex.join(command) + "\nexit $?" if case.behind_a_shell else "exec " + shlex.join(command)
    return slurm.sbatch(f"#!/bin/sh\n{start}\n", "--time=0:01", environment=environment)


def wait_for(path: Path, slurm: Slurm, job: int) -> None:
    """Until a running job has made a file."""
    deadline_s = time.monotonic() + 60
    while not path.exists():
        assert slurm.state(job) in ("PENDING", "CONFIGURING", "RUNNING"), slurm.output(job)
        assert time.monotonic() < deadline_s, slurm.output(job)
        time.sleep(0.1)


def assert_recorded_once(case: TimedOut, folder: Path) -> None:
    journal = jobs.journal_path(folder / f"{case.name}-results")
    in_time, recovered, deadline_s = 0, 0, time.monotonic() + 20
    while in_time + recovered == 0 and time.monotonic() < deadline_s:  # SLURM may call a job over that is still ending
        in_time, recovered = len(read(journal)), retries.recover(journal, attempt_folders(journal))
        time.sleep(0.1)
    assert (in_time, recovered) in [(0, 1), (1, 0)], case.name
    assert case.with_its_recorder in (None, bool(recovered)), case.name
    assert retries.recover(journal, attempt_folders(journal)) == 0
    (line,) = read(journal)
    assert line["outcome"] == case.outcome, case.name
    assert ("recorder was ended with the job" in line["warnings"]) == bool(recovered), case.name
    assert_told(line, folder / case.name, INTERVAL_S)
    # the jobs see the GPUs of a node that was given to none of them
    assert 0 < line["gpu_kwh"] * J_PER_KWH <= 1.02 * sum(WATTS) * line["duration_s"]
    assert line["wasted_kwh"] == line["energy_kwh"] > line["gpu_kwh"]


def read(journal: Path) -> list[records.Record]:
    return records.read_journal(journal) if journal.exists() else []


# --- SLURM's GPUs -------------------------------------------------------------------------------------------


def test_jobs_have_the_gpus_that_slurm_gave_them_and_none_waits(
    slurm_packages: None, environment: dict[str, str], runtime_folder: Path, tmp_path: Path
) -> None:
    items = ["one", "other"]
    with Slurm(runtime_folder / "s") as slurm:
        running = {}
        for item, other in zip(items, reversed(items), strict=True):
            # each goes on until the other has begun: one that waits for the other's GPU waits for ever
            command = stage_command(tmp_path / item, tmp_path, item, gpu=1, seconds=2, other=str(tmp_path / other))
            script = f"#!/bin/sh\nexec {shlex.join(command)}\n"
            running[item] = slurm.sbatch(script, "--gres=gpu:1", environment=environment)
        states = {item: slurm.wait(job, 60) for item, job in running.items()}
        told = {item: slurm.output(job) for item, job in running.items()}
    assert set(states.values()) == {"COMPLETED"}, told
    given = {item: "".join(said(output, "given")) for item, output in told.items()}
    assert sorted(given.values()) == ["0", "1"]
    for item, index in given.items():
        uuid = f"GPU-{int(index):08d}-0000-0000-0000-000000000000"
        record = jobs.record_of(tmp_path, item)
        (gpu,) = json.loads(record["gpu_detail"])
        assert (gpu["uuid"], gpu["index"], record["gpu_count"]) == (uuid, int(index), 1)
        assert record["gpu_kwh"] * J_PER_KWH == pytest.approx(WATTS[int(index)] * record["duration_s"], rel=0.02)
        assert said(told[item], "leased") == [uuid]
        assert "waiting for" not in told[item] and "share" not in told[item]


def said(output: str, name: str) -> list[str]:
    """What a job has told under a name, in its lines of JSON."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [line[name] for line in lines if name in line]


# --- out of memory ------------------------------------------------------------------------------------------

# of both versions of cgroups: the limit, the one of memory and swap, and where the kernel counts what it has killed
MEMORY_FILES = {
    "cgroup": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control"),
    "cgroup2": ("memory.max", "memory.swap.max", "memory.events"),
}


class MemoryCgroup:
    """A memory cgroup inside the one that this process is in, whose limits hold for it, too."""

    def __init__(self, limit_bytes: int) -> None:
        version, parent = own_memory_cgroup()
        limit, swap, self._events = MEMORY_FILES[version]
        self.folder = parent / f"footprint-{os.getpid()}"
        self.folder.mkdir()
        try:
            (self.folder / limit).write_text(str(limit_bytes))
            if (self.folder / swap).exists():
                (self.folder / swap).write_text(str(limit_bytes) if version == "cgroup" else "0")
        except BaseException:
            self.folder.rmdir()
            raise

    def start(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Run a command that is in it from its beginning."""
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return subprocess.Popen(["/bin/sh", "-c", enter, str(self.folder), *command], env=dict(environment))

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]

    def killed(self) -> int:
        """How many processes the kernel has ended for want of memory."""
        counts = dict(line.split() for line in (self.folder / self._events).read_text().splitlines())
        return int(counts["oom_kill"])

    def remove(self) -> None:
        """End what is in it, which is nothing after a test that has passed."""
        deadline_s = time.monotonic() + 20
        while (pids := self.pids()) and time.monotonic() < deadline_s:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.folder.rmdir()


def own_memory_cgroup() -> tuple[str, Path]:
    """The version of cgroups that memory goes by here, and the folder of the one that this process is in."""
    controllers = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        controllers.update(dict.fromkeys(names.split(","), path))
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(",") and "memory" in controllers:
            return kind, Path(folder + controllers["memory"])
        if kind == "cgroup2" and "memory" not in controllers:
            return kind, Path(folder + controllers[""])
    raise RuntimeError("no cgroups of memory are mounted here")


@pytest.fixture
def memory_cgroup() -> Iterator[MemoryCgroup]:
    must_be_root()
    cgroup = MemoryCgroup(200_000_000)
    yield cgroup
    cgroup.remove()


@contextlib.contextmanager
def recorder_of_another_job(
    environment: Mapping[str, str], runtime_folder: Path, results: Path, interval_s: float
) -> Iterator[psutil.Process]:
    """The recorder, started by a job that goes on for as long as the block does."""
    job = jobs.start_job(results, "other", 600, environment=environment, interval_s=interval_s)
    try:
        jobs.wait_until_open(job)
        (recorder,) = jobs.recorders(runtime_folder)
        yield recorder
    finally:
        job.terminate()
        job.communicate()


@pytest.mark.parametrize("recorder_inside", [False, True], ids=["recorder-outside", "recorder-inside"])
def test_a_job_that_the_kernel_ends_for_its_memory_is_in_the_journal_as_killed(
    environment: dict[str, str],
    runtime_folder: Path,
    tmp_path: Path,
    memory_cgroup: MemoryCgroup,
    recorder_inside: bool,
) -> None:
    interval_s = 0.2
    beat = tmp_path / "hungry"
    with contextlib.ExitStack() as stack:
        if not recorder_inside:
            # of two jobs it is the first whose cgroup the recorder is in
            stack.enter_context(recorder_of_another_job(environment, runtime_folder, tmp_path, interval_s))
        command = stage_command(beat, tmp_path, "hungry", interval_s, grow_bytes=2_000_000)
        job = memory_cgroup.start(command, environment)
        deadline_s = time.monotonic() + 30
        while not beat.exists():
            assert job.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.01)
        (recorder,) = jobs.recorders(runtime_folder)
        inside = memory_cgroup.pids()
        assert job.pid in inside and (recorder.pid in inside) == recorder_inside
        assert job.wait(60) == -signal.SIGKILL
        assert memory_cgroup.killed() == 1
        deadline_s = time.monotonic() + 20
        while not (lines := read(jobs.journal_path(tmp_path))):
            assert recorder.is_running() and time.monotonic() < deadline_s, "the recorder says nothing"
            time.sleep(0.05)
        assert recorder_inside or recorder.is_running()
    jobs.wait_for_no_recorder(runtime_folder)
    (line,) = lines
    assert (line["item"], line["outcome"]) == ("hungry", "killed")
    assert line["duration_s"] > 3 * interval_s  # it grew for a while
    assert_told(line, beat, interval_s)
    assert line["gpu_kwh"] * J_PER_KWH == pytest.approx(share_of_gpus(recorder_inside) * line["duration_s"], rel=0.05)


def share_of_gpus(alone: bool) -> float:
    """Watts of a job that sees both GPUs, by itself or with another."""
    return sum(WATTS) / (1 if alone else 2)


# --- the stand-in itself ------------------------------------------------------------------------------------


def test_a_cluster_without_root_runs_steps_on_its_nodes_and_leaves_no_process(
    slurm_packages: None, runtime_folder: Path
) -> None:
    with Slurm(runtime_folder / "s", nodes=2, gpus=0) as slurm:
        # as Snakemake's executor starts its steps
        script = "#!/bin/sh\nunset SLURM_CONF\nexec srun --nodes=2 --ntasks-per-node=1 printenv SLURMD_NODENAME\n"
        step = slurm.sbatch(script, "--nodes=2", "--ntasks-per-node=1")
        left = slurm.sbatch("#!/bin/sh\ntrap '' TERM\nsetsid sleep 600 &\n")
        failed = slurm.sbatch("#!/bin/sh\nexit 3\n")
        assert [slurm.wait(job) for job in (step, left, failed)] == ["COMPLETED", "COMPLETED", "FAILED"]
        assert sorted(slurm.output(step).split()) == slurm.nodes
        running = slurm.processes()
        assert {"munged", "slurmctld", "slurmd", "sleep"} <= {process.name() for process in running}
    assert not slurm.processes()


def test_a_cluster_that_is_not_installed_names_its_packages(
    runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_standin, "_found", lambda name: None if name in ("munged", "slurmd") else name)
    with pytest.raises(RuntimeError, match="apt-get install munge slurm-wlm"), Slurm(runtime_folder / "s"):
        pass
    assert not (runtime_folder / "s").exists()
