"""What metering costs a job: this recorder, CodeCarbon, carbontracker and zeus, in one run.

Every job is a process of its own, which opens a window, waits in it and closes it. Jobs of all candidates take turns.
CPU time is that of all processes that a job has started, down to those that leave it (the recorder): this process
adopts them. Linux only.
"""

import argparse
import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil

ROOT = Path(__file__).parents[1]

WINDOW_S = 3.0  # of the jobs whose added time is taken: longer than what any candidate still does after it has opened
SETTLE_S = 5.0  # in a window, before its CPU time is watched
DEADLINE_S = 60.0  # for each step of a job
AIM_ADDED_S = 0.2
AIM_CORE_PERCENT = 0.2

NOTHING, OURS = "nothing", "this recorder"
EXTRA = "bench"

# What `import torch, monai` brings, where it is installed: every training script has paid for it by then
PRELOADED = ("matplotlib.pyplot", "numpy", "pandas", "psutil", "pyarrow", "pynvml", "requests", "scipy", "sklearn")

STANDIN_WATTS = "250,260"


# --------------------------------------------------------------------------------------------------- the candidates

# Each is a generator of four steps: its imports, opening the window, closing it, and telling what it has seen
Steps = Iterator[str]


def nothing() -> Steps:
    """The job without metering."""
    yield ""
    yield ""
    yield ""
    yield "nothing"


def our_recorder(codecarbon: bool) -> Steps:
    """`with stage(...)`, as every rule of the workflow has it. The recorder is not running yet."""
    from emissions.stage import stage
    from tests.standins.hardware import fake_snakemake

    yield ""
    snakemake = fake_snakemake(Path("results").absolute(), config={"metering": {"codecarbon": codecarbon}})
    metered = stage(snakemake)
    metered.__enter__()
    yield ""
    metered.__exit__(None, None, None)
    yield ""
    record = json.loads(Path(snakemake.output.record).read_text())
    gpus = f"{record['gpu_count'] or 0} GPUs ({record['gpu_method']})"
    yield f"{gpus}, CPU ({record['cpu_method']}), RAM ({record['ram_method']})" + (
        ", and CodeCarbon's row" if record["codecarbon_kwh"] is not None else ""
    )


def codecarbon() -> Steps:
    """Its documentation's offline mode, explicit object; every second in place of every 15."""
    from codecarbon import OfflineEmissionsTracker

    yield ""
    tracker = OfflineEmissionsTracker(country_iso_code="DEU", measure_power_secs=1, tracking_mode="machine")
    tracker.start()
    yield ""
    tracker.stop()
    yield ""
    yield ", ".join(str(part) for part in getattr(tracker, "_hardware", ["unknown"]))


def carbontracker() -> Steps:
    """Its documentation's example with one epoch, which is the window.

    It asks a web service where it is, and has no option not to: here it is told at once that nobody knows.
    """
    import geocoder
    from carbontracker.tracker import CarbonTracker

    geocoder.ip = lambda *_: SimpleNamespace(ok=False)
    yield ""
    tracker = CarbonTracker(epochs=1, update_interval=1)
    tracker.epoch_start()
    yield ""
    parts = tracker.tracker.components  # gone after the last epoch
    tracker.epoch_end()
    tracker.stop()
    yield ""
    yield ", ".join(f"{part.name.upper()} ({type(part.handler).__name__})" for part in parts)


def zeus(power: bool) -> Steps:
    """Its documentation's measurement window, over all GPUs and CPUs that it sees.

    The window reads counters at its two ends only. `power`: beside it, the documentation's power over time at 1 Hz,
    of all domains that the GPUs have. Its processes are left to end with the job, as they are there.
    """
    from zeus.monitor import PowerMonitor, ZeusMonitor

    yield ""
    monitor = ZeusMonitor()
    samples = PowerMonitor(update_period=1.0) if power else None
    monitor.begin_window("job", sync_execution=False)  # this job uses no GPU that could be waited for
    yield ""
    monitor.end_window("job", sync_execution=False)
    if samples is not None:
        samples.get_all_power_timelines()
    yield ""
    cpus = f"{len(monitor.cpu_indices)} CPUs (RAPL)" if monitor.cpu_indices else "no CPU (no RAPL)"
    domains = sorted(domain.value for domain in samples.measurement_domains) if samples is not None else []
    yield ", ".join([f"{len(monitor.gpu_indices)} GPUs (counter)", cpus, *domains])


@dataclass(frozen=True)
class Candidate:
    """How a job is metered, and whose package does it, where it is not this project's."""

    steps: Callable[[], Steps]
    package: str | None = None


CANDIDATES = {
    NOTHING: Candidate(nothing),
    OURS: Candidate(lambda: our_recorder(False)),
    f"{OURS} + CodeCarbon": Candidate(lambda: our_recorder(True)),
    "CodeCarbon": Candidate(codecarbon, "codecarbon"),
    "carbontracker": Candidate(carbontracker, "carbontracker"),
    "zeus, window": Candidate(lambda: zeus(False), "zeus"),
    "zeus, window + power": Candidate(lambda: zeus(True), "zeus"),
}
NOTES = {
    "carbontracker": "carbontracker's look-up of its place on the network is answered at once; it has no option for it",
    "zeus, window": "zeus' window reads counters at its two ends only: nothing is sampled, a killed job leaves nothing",
}
OWN = (NOTHING, OURS, f"{OURS} + CodeCarbon")


# -------------------------------------------------------------------------------------------------- inside the job


def job(name: str, report: int) -> None:
    """One job: says on the pipe `report` when its window is open, closes it at the end of its standard input, and says
    how long the steps took and what was seen."""
    os.set_inheritable(report, False)  # or the tracker's processes would hold it open
    began = time.perf_counter()
    for module in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    before = {"before_s": time.perf_counter() - began, "before_cpu_s": time.process_time()}
    steps = CANDIDATES[name].steps()
    import_s, enter_s = timed(steps), timed(steps)
    os.write(report, b"open\n")
    os.read(0, 1)  # the work: waiting costs no CPU time, so all that is used is the tracker's
    exit_s = timed(steps)
    figures = {"import_s": import_s, "enter_s": enter_s, "exit_s": exit_s, "sees": next(steps)}
    os.write(report, json.dumps(before | figures).encode())


def timed(steps: Steps) -> float:
    """Seconds of the next step."""
    began = time.perf_counter()
    next(steps)
    return time.perf_counter() - began


# ----------------------------------------------------------------------------------------- CPU time of its processes


class Family:
    """All processes that have been started by this one, or by one of them. There is one such object in a process."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}  # of those that have ended, by pid
        self._ended_s = 0.0
        pr_set_child_subreaper = 36
        if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "this process cannot adopt what its jobs leave behind")

    def reap(self) -> bool:
        """Take the CPU time of those that have ended, with that of the children they waited for; False: none is
        left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.statuses[pid] = os.waitstatus_to_exitcode(status)
            self._ended_s += usage.ru_utime + usage.ru_stime

    def cpu_s(self) -> float:
        """CPU seconds so far, of those that are there and of those that have ended."""
        self.reap()
        total_s = self._ended_s
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):  # it has just ended
                times = process.cpu_times()
                # The kernel's clock of another process, as clock_getcpuclockid(3) numbers it: /proc counts in 10 ms
                own_s = time.clock_gettime((~process.pid << 3) | 2)
                total_s += own_s + times.children_user + times.children_system
        return total_s

    def wait(self, deadline_s: float) -> None:
        """Until none is left. Raises TimeoutError."""
        while self.reap():
            if time.monotonic() > deadline_s:
                raise TimeoutError("processes that it has started do not end")
            time.sleep(0.005)

    def kill(self) -> None:
        """End what is left."""
        while self.reap():
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.005)


# ------------------------------------------------------------------------------------------------------ running jobs


class JobError(Exception):
    """A job that did not end as it should: its last words."""


@dataclass(frozen=True)
class Run:
    """Figures of one job, in seconds.

    Attributes:
        import_s, enter_s, exit_s: imports of the tracker, opening and closing of the window, measured in the job.
        process_s: from the start to the end of its process, without what it has loaded before (`PRELOADED`) and
            without the time for which the window was held open.
        cpu_s: CPU time of the job and of all that it has started, to the last, without what it has loaded before.
        watched_s, watched_cpu_s: a time inside the window, and the CPU time then.
        sees: what the tracker has seen.
    """

    import_s: float
    enter_s: float
    exit_s: float
    process_s: float
    cpu_s: float
    watched_s: float
    watched_cpu_s: float
    sees: str

    @property
    def added_s(self) -> float:
        """What the window adds to the job's wall time."""
        return self.enter_s + self.exit_s


class Runner:
    """Runs jobs, one at a time."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.family = Family()
        self._folder = folder
        self._environment = environment
        self._jobs = 0

    def run(self, name: str, hold_s: float, watch_s: float = 0.0) -> Run:
        """One job with this candidate: its window is open for `hold_s`, and then `watch_s` more, in which its CPU time
        is taken. Raises JobError."""
        self._jobs += 1
        folder = self._folder / str(self._jobs)  # also the recorder's: each job starts its own, as the first of a node
        folder.mkdir()
        try:
            return self._run(name, folder, hold_s, watch_s)
        except (JobError, TimeoutError) as error:
            words = [line.strip() for line in (folder / "output").read_text(errors="replace").splitlines()]
            raise JobError(f"{name}: {error}; it said: {next(filter(None, reversed(words)), 'nothing')}") from None
        finally:
            self.family.kill()  # nothing is left of a job that has ended well

    def _run(self, name: str, folder: Path, hold_s: float, watch_s: float) -> Run:
        report, its_report = os.pipe()
        began, cpu_s = time.monotonic(), self.family.cpu_s()
        with (folder / "output").open("wb") as output, os.fdopen(report, "rb") as told:
            process = subprocess.Popen(
                [sys.executable, __file__, "--job", name, str(its_report)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[its_report],
                cwd=folder,
                env={**self._environment, "FOOTPRINT_RUNTIME_DIR": str(folder)},
            )
            os.close(its_report)
            assert process.stdin is not None
            read_line(told)
            opened = time.monotonic()
            time.sleep(hold_s)
            watched, watched_cpu_s = time.monotonic(), self.family.cpu_s()
            time.sleep(watch_s)
            watched, watched_cpu_s = time.monotonic() - watched, self.family.cpu_s() - watched_cpu_s
            released = time.monotonic()
            process.stdin.close()
            figures = json.loads(read_line(told))
            ended = self._ended(process)
            self.family.wait(time.monotonic() + DEADLINE_S)
        before_s, before_cpu_s = figures.pop("before_s"), figures.pop("before_cpu_s")
        return Run(
            **figures,
            process_s=ended - began - (released - opened) - before_s,
            cpu_s=self.family.cpu_s() - cpu_s - before_cpu_s,
            watched_s=watched,
            watched_cpu_s=watched_cpu_s,
        )

    def _ended(self, process: "subprocess.Popen[bytes]") -> float:
        """Wait for the job itself; returns when it ended. Raises JobError."""
        deadline_s = time.monotonic() + DEADLINE_S
        while process.pid not in self.family.statuses and time.monotonic() < deadline_s:
            self.family.reap()
            time.sleep(0.001)
        ended = time.monotonic()
        process.returncode = self.family.statuses.pop(process.pid, None)  # Popen need not wait for it any more
        if process.returncode != 0:
            raise JobError(f"its exit status is {process.returncode}")
        return ended


def read_line(pipe: Any) -> bytes:
    """The next line of a pipe from a job. Raises TimeoutError, and JobError where there is none."""
    if not select.select([pipe], [], [], DEADLINE_S)[0]:
        raise TimeoutError(f"no word from it in {DEADLINE_S:.0f} s")
    line: bytes = pipe.readline()
    if not line:
        raise JobError("it ended too early")
    return line


# --------------------------------------------------------------------------------------------------------- hardware


def real_gpus() -> int:
    """NVIDIA GPUs of this machine."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


def hardware(folder: Path) -> tuple[str, dict[str, str]]:
    """What the trackers find, in words, and the environment in which they find it."""
    from tests.standins.hardware import build_nvml, standin_environment

    gpus = real_gpus()
    if gpus:
        words, environment = f"{gpus} GPUs of this machine", {**os.environ, "PYTHONPATH": str(ROOT)}
    else:
        build_nvml(folder)
        words = f"{len(STANDIN_WATTS.split(','))} stand-in GPUs of constant {STANDIN_WATTS.replace(',', ' and ')} W"
        environment = standin_environment(folder, FAKE_NVML_WATTS=STANDIN_WATTS)
    # A config file or variable of this user would change what CodeCarbon does
    environment = {key: value for key, value in environment.items() if not key.startswith("CODECARBON_")}
    return words, environment | {"HOME": str(folder)}


# ------------------------------------------------------------------------------------------------------- measurement


@dataclass(frozen=True)
class Plan:
    """How much is measured, in jobs and seconds."""

    candidates: tuple[str, ...]
    jobs: int
    seconds: float
    window_s: float = WINDOW_S
    settle_s: float = SETTLE_S
    warm_up: bool = True


def installed(names: tuple[str, ...]) -> list[str]:
    """Those whose package can be imported."""

    packages = {name: CANDIDATES[name].package for name in names}
    return [name for name, package in packages.items() if package is None or importlib.util.find_spec(package)]


def in_turn(names: list[str], turn: int) -> list[str]:
    """The order of a turn: each begins with another one."""
    return names[turn % len(names) :] + names[: turn % len(names)]


def measure(plan: Plan, runner: Runner) -> tuple[dict[str, list[Run]], dict[str, Run], list[str]]:
    """Short jobs of each candidate, a long one of each, and why some are missing."""
    names = installed(plan.candidates)
    how = f"it comes with the extra '{EXTRA}', which benchmarks/README.md tells how to install"
    missing = [f"{name}: not installed; {how}" for name in plan.candidates if name not in names]
    if plan.warm_up:
        names, failed = warmed_up(names, plan.window_s, runner)
        missing += failed
    short: dict[str, list[Run]] = {name: [] for name in names}
    for turn in range(plan.jobs):
        say(f"added time: turn {turn + 1} of {plan.jobs}")
        for name in in_turn(names, turn):
            short[name].append(runner.run(name, plan.window_s))
    long = {}
    for name in names:
        say(f"CPU time: {name}")
        long[name] = runner.run(name, plan.settle_s, plan.seconds)
    return short, long, missing


def warmed_up(names: list[str], window_s: float, runner: Runner) -> tuple[list[str], list[str]]:
    """One job of each, which is not kept: files come into memory, and are compiled. Those that can be measured, and
    why others cannot: hardware that one does not support is no reason to lose the rest."""
    able, failed = [], []
    for name in names:
        say(f"warming up: {name}")
        try:
            runner.run(name, window_s)
            able.append(name)
        except JobError as error:
            if name in OWN:
                raise
            failed.append(str(error))
    return able, failed


def say(line: str) -> None:
    """Tell how far it is."""
    print(f"{line} ...", file=sys.stderr, flush=True)


def rows(short: dict[str, list[Run]], long: dict[str, Run]) -> list[dict[str, Any]]:
    """Figures of each candidate; those of whole processes are beyond the job of the same turn that nothing meters."""

    def median(name: str, figure: str) -> float:
        return statistics.median(getattr(run, figure) for run in short[name])

    def beyond(name: str, figure: str) -> float:
        pairs = zip(short[name], short[NOTHING], strict=True)
        return statistics.median(getattr(run, figure) - getattr(bare, figure) for run, bare in pairs)

    def core_percent(name: str) -> float:
        return 100 * long[name].watched_cpu_s / long[name].watched_s

    result = []
    for name, runs in short.items():
        percent = core_percent(name) - core_percent(NOTHING)
        added = [run.added_s for run in runs]
        result.append(
            {
                "candidate": name,
                "version": version(CANDIDATES[name].package),
                "jobs": len(runs),
                "import_s": median(name, "import_s"),
                "enter_s": median(name, "enter_s"),
                "exit_s": median(name, "exit_s"),
                "added_s": statistics.median(added),
                "added_min_s": min(added),
                "added_max_s": max(added),
                "process_s": beyond(name, "process_s"),
                "cpu_s_per_job": beyond(name, "cpu_s"),
                "cpu_s_per_hour": 36 * percent,
                "core_percent": percent,
                "sees": long[name].sees,
            }
        )
    return with_ratios(result)


def with_ratios(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with their ratios to this recorder's."""
    ours = next(row for row in figures if row["candidate"] == OURS)
    for row in figures:
        for figure, ratio in (("added_s", "added_ratio"), ("core_percent", "core_ratio")):
            known = ours[figure] > 0 and row["candidate"] != NOTHING
            row[ratio] = row[figure] / ours[figure] if known else None
    return figures


def version(package: str | None) -> str | None:
    """Of an installed package."""
    return importlib.metadata.version(package) if package else None


def aims(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """What the recorder is to stay under, and whether it does."""
    ours = next(row for row in figures if row["candidate"] == OURS)
    return {
        "added_s": {"at_most": AIM_ADDED_S, "met": ours["added_s"] <= AIM_ADDED_S},
        "core_percent": {"at_most": AIM_CORE_PERCENT, "met": ours["core_percent"] <= AIM_CORE_PERCENT},
    }


# ------------------------------------------------------------------------------------------------------------ output


def table(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [
        "{hardware}; {processor}, {threads} threads; Python {python}".format(**report),
        "load of the machine {load_before:.2f} before, {load_after:.2f} after".format(**report),
        "medians of {jobs} jobs; sampling at 1 Hz, watched for {seconds:g} s of a window".format(**report),
    ]
    lines += ["QUICK: checks that it runs; its figures mean nothing"] if report["quick"] else []
    lines += ["", f"{'seconds of a job':>57}{'CPU':>18}{'CPU while sampling':>29}"]
    lines += [
        f"{'import':>35}{'added':>9}{'ratio':>10}{'process':>10}{'s/job':>11}{'s/hour':>10}{'% core':>9}{'ratio':>10}"
    ]
    lines += [table_row(row) for row in report["rows"]]
    lines += ["", "what each has seen:"]
    for row in report["rows"]:
        lines.append(f"  {row['candidate']:28}{row['version'] + ': ' if row['version'] else ''}{row['sees']}")
    ours = next(row for row in report["rows"] if row["candidate"] == OURS)
    for figure, unit in (("added_s", "s added to a job"), ("core_percent", "% of one core at 1 Hz")):
        aim = report["aims"][figure]
        lines.append(f"aim: at most {aim['at_most']} {unit}; {ours[figure]:.3f}: {'met' if aim['met'] else 'missed'}")
    lines += [f"note: {line}" for line in report["notes"]]
    lines += [f"left out: {line}" for line in report["missing"]]
    return "\n".join(lines)


def table_row(row: dict[str, Any]) -> str:
    """One candidate."""
    added_ratio, core_ratio = (
        "" if row[ratio] is None else f"{row[ratio]:.2f} x" for ratio in ("added_ratio", "core_ratio")
    )
    return (
        f"{row['candidate']:26}{row['import_s']:>9.3f}{row['added_s']:>9.3f}{added_ratio:>10}{row['process_s']:>10.3f}"
        f"{row['cpu_s_per_job']:>11.3f}{row['cpu_s_per_hour']:>10.2f}{row['core_percent']:>9.3f}{core_ratio:>10}"
    ).rstrip()


def measured(plan: Plan, quick: bool) -> dict[str, Any]:
    """The report."""
    from emissions.meters.processor import processor

    cpu = processor()
    # Names of Unix sockets have 107 bytes: TMPDIR may be too long for the recorder's
    with tempfile.TemporaryDirectory(prefix="metering-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found, environment = hardware(Path(folder))
        load_before = os.getloadavg()[0]
        short, long, missing = measure(plan, Runner(Path(folder), environment))
    figures = rows(short, long)
    return {
        "benchmark": "metering",
        "quick": quick,
        "hardware": found,
        "processor": cpu.name,
        "threads": cpu.threads,
        "python": platform.python_version(),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "jobs": plan.jobs,
        "seconds": plan.seconds,
        "window_s": plan.window_s,
        "rows": figures,
        "aims": aims(figures),
        "notes": [note for name, note in NOTES.items() if name in short],
        "missing": missing,
    }


def positive(kind: Callable[[str], float]) -> Callable[[str], Any]:
    """A number for argparse, above 0."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    number.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return number


def fail(message: str) -> NoReturn:
    """End with one line."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description="What this recorder, CodeCarbon, carbontracker and zeus add to a job; about ten minutes. "
        f"carbontracker and zeus come with the extra '{EXTRA}': see benchmarks/README.md.",
        epilog="example: python benchmarks/metering.py --jobs 15 --seconds 60 --json > metering.json",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="this recorder alone, briefly: to see that it runs")
    parser.add_argument(
        "--seconds", type=positive(float), default=30, help="for which CPU time is watched (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=positive(int), default=5, help="of each candidate (default: %(default)s)")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)  # how it calls itself
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # run as a script, this file finds only its neighbours
    if arguments.job:
        job(arguments.job[0], int(arguments.job[1]))
        return
    plan = Plan(tuple(CANDIDATES), arguments.jobs, arguments.seconds)
    if arguments.quick:
        plan = Plan(OWN, jobs=1, seconds=1, window_s=0.2, settle_s=0.2, warm_up=False)
    try:
        report = measured(plan, arguments.quick)
    except FileNotFoundError as error:
        fail(f"{error.filename}: not found; without an NVIDIA GPU, gcc compiles a stand-in")
    except JobError as error:
        fail(str(error))
    print(json.dumps(report, indent=1) if arguments.json else table(report))


if __name__ == "__main__":
    main()
