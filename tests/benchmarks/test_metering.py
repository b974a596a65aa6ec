import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standins.hardware import build_nvml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/metering.py"


def run(*command, **environment):
    """Python, where the benchmark's modules are found."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SCRIPT.parent}", **environment}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def report():
    finished = run(SCRIPT, "--quick", "--json")
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture
def metering(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import metering

    return metering


class FakeRunner:
    """Runs nothing, and remembers what it was asked to run."""

    def __init__(self, metering, figures, broken=()):
        self.metering, self.figures, self.broken = metering, figures, broken
        self.asked = []

    def run(self, name, hold_s, watch_s=0.0):
        self.asked.append((name, hold_s, watch_s))
        if name in self.broken:
            raise self.metering.JobError(f"{name}: no such hardware")
        enter_s, cpu_s = self.figures[name]
        return self.metering.Run(0.1, enter_s, 0.1, enter_s + 1, cpu_s + 1, watch_s, cpu_s, "a GPU")


@pytest.fixture
def plan(metering):
    return metering.Plan(("nothing", "this recorder", "zeus, window"), jobs=3, seconds=10.0, window_s=1.0, settle_s=2.0)


@pytest.fixture
def everything_installed(metering, monkeypatch):
    monkeypatch.setattr(metering.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(metering.importlib.metadata, "version", lambda name: "1.2.3")


FIGURES = {"nothing": (0.0, 0.0), "this recorder": (0.1, 0.01), "zeus, window": (0.3, 0.02)}


def test_our_own_candidates_run(report):
    assert [row["candidate"] for row in report["rows"]] == [
        "nothing",
        "this recorder",
        "this recorder + CodeCarbon",
    ]
    assert report["missing"] == []
    bare, recorder, beside = report["rows"]
    assert bare["added_s"] < recorder["added_s"] and bare["added_s"] < beside["added_s"]
    assert bare["cpu_s_per_job"] == bare["core_percent"] == 0
    assert "CPU" in recorder["sees"] and "CodeCarbon" not in recorder["sees"]
    assert recorder["cpu_s_per_job"] > 0.05  # the recorder is no child of its job, and is counted even so
    assert "CodeCarbon" in beside["sees"] or beside["cpu_s_per_job"] > 0.05


def test_without_a_gpu_stand_ins_are_named(report):
    assert "stand-in GPUs of constant 250 and 260 W" in report["hardware"] or "this machine" in report["hardware"]
    assert report["rows"][1]["sees"].startswith("2 GPUs (nvml") or "this machine" in report["hardware"]


def test_the_table_of_a_quick_run_cannot_be_quoted(report, metering):
    assert "mean nothing" in metering.table(report)


def test_candidates_take_turns_and_each_begins_one(metering, plan, everything_installed):
    runner = FakeRunner(metering, FIGURES)
    short, long, missing = metering.measure(plan, runner)
    names = list(plan.candidates)
    asked = [name for name, _, _ in runner.asked]
    assert asked == names + names + names[1:] + names[:1] + names[2:] + names[:2] + names  # warming up, turns, CPU time
    assert runner.asked[3][1:] == (1.0, 0.0) and runner.asked[-1][1:] == (2.0, 10.0)
    assert [len(runs) for runs in short.values()] == [3, 3, 3] and list(long) == names and missing == []


def test_what_is_not_installed_is_left_out_and_the_extra_named(metering, plan, monkeypatch):
    monkeypatch.setattr(metering.importlib.util, "find_spec", lambda name: None)
    short, long, missing = metering.measure(plan, FakeRunner(metering, FIGURES))
    assert list(short) == list(long) == ["nothing", "this recorder"]
    assert len(missing) == 1 and missing[0].startswith("zeus, window: not installed; it comes with the extra 'bench'")


def test_what_cannot_meter_here_is_left_out_but_our_own_never(metering, plan, everything_installed):
    short, _, missing = metering.measure(plan, FakeRunner(metering, FIGURES, broken=["zeus, window"]))
    assert list(short) == ["nothing", "this recorder"] and missing == ["zeus, window: no such hardware"]
    with pytest.raises(metering.JobError):
        metering.measure(plan, FakeRunner(metering, FIGURES, broken=["this recorder"]))


def test_figures_are_beyond_the_bare_job_and_ratios_to_this_recorder(metering, plan, everything_installed):
    short, long, _ = metering.measure(plan, FakeRunner(metering, FIGURES))
    bare, ours, theirs = metering.rows(short, long)
    assert bare["added_ratio"] is None and bare["core_ratio"] is None
    assert ours["added_s"] == pytest.approx(0.2) and ours["process_s"] == pytest.approx(0.1)
    assert ours["core_percent"] == pytest.approx(0.1) and ours["cpu_s_per_hour"] == pytest.approx(3.6)
    assert ours["cpu_s_per_job"] == pytest.approx(0.01) and ours["added_ratio"] == ours["core_ratio"] == 1
    assert theirs["added_ratio"] == pytest.approx(2) and theirs["core_ratio"] == pytest.approx(2)
    assert theirs["version"] == "1.2.3"


def test_the_table_shows_figures_aims_and_what_is_missing(metering, plan, everything_installed):
    short, long, _ = metering.measure(plan, FakeRunner(metering, FIGURES))
    figures = metering.rows(short, long)
    figures[1]["added_s"] = 0.25
    text = metering.table(
        {
            "quick": False,
            "hardware": "2 GPUs",
            "processor": "a CPU",
            "threads": 2,
            "python": "3.11",
            "load_before": 0.0,
            "load_after": 0.0,
            "jobs": 3,
            "seconds": 10.0,
            "rows": figures,
            "aims": metering.aims(figures),
            "notes": ["a note"],
            "missing": ["carbontracker: not installed"],
        }
    )
    assert "aim: at most 0.2 s added to a job; 0.250: missed" in text
    assert "aim: at most 0.2 % of one core at 1 Hz; 0.100: met" in text
    assert "2.00 x" in text and "1.2.3: a GPU" in text
    assert "note: a note" in text and "left out: carbontracker: not installed" in text
    assert "mean nothing" not in text


def test_time_of_a_process_that_its_parent_has_left_is_counted():
    burning = "import time; t = time.process_time\nwhile t() < 0.3: pass"
    finished = run(
        "-c",
        f"""
import subprocess, sys, time, metering
family = metering.Family()
subprocess.run(["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-c", {burning!r}], start_new_session=True)
deadline_s, seen_s = time.monotonic() + 60, []
while not seen_s or seen_s[-1] < 0.25:  # it is still there
    assert time.monotonic() < deadline_s
    seen_s.append(family.cpu_s())
family.wait(deadline_s)
print(max(later - earlier for earlier, later in zip(seen_s, seen_s[1:])), family.cpu_s())
""",
    )
    assert finished.returncode == 0, finished.stderr
    largest_step_s, total_s = map(float, finished.stdout.split())
    assert largest_step_s < 0.2  # a clock, and not the end of the process
    assert 0.3 <= total_s < 0.6


def test_a_job_that_fails_is_named_with_its_last_words(tmp_path):
    finished = run(
        "-c",
        f"""
import os, pathlib, metering
runner = metering.Runner(pathlib.Path({str(tmp_path)!r}), dict(os.environ))
try:
    runner.run("no such tracker", 0)
except metering.JobError as error:
    print(error)
print(runner.family.reap())
""",
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == [
        "no such tracker: it ended too early; it said: KeyError: 'no such tracker'",
        "False",
    ]


def test_the_stand_in_answers_what_zeus_asks(tmp_path):
    build_nvml(tmp_path)
    code = """
import pynvml as nvml
nvml.nvmlInit()
gpu = nvml.nvmlDeviceGetHandleByIndex(1)
fields = [(nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_POWER_SCOPE_GPU), (1, 0)]
known, unknown = nvml.nvmlDeviceGetFieldValues(gpu, fields)
print(nvml.nvmlDeviceGetArchitecture(gpu) >= nvml.NVML_DEVICE_ARCH_VOLTA, known.value.uiVal, unknown.nvmlReturn)
try:
    nvml.nvmlDeviceGetC2cModeInfoV(gpu)
except nvml.NVMLError_NotSupported:
    print("no Grace")
"""
    finished = run("-c", code, LD_LIBRARY_PATH=str(tmp_path), FAKE_NVML_WATTS="250,260")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["True", "260000", "3", "no", "Grace"]


def test_a_bad_option_is_one_line_and_status_2():
    finished = run(SCRIPT, "--seconds", "0")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].endswith("argument --seconds: 0 is not above 0")


def test_help_has_an_example():
    assert "example: python benchmarks/metering.py" in " ".join(run(SCRIPT, "--help").stdout.split())
