from __future__ import annotations

import csv
import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from codecarbon import OfflineEmissionsTracker
from codecarbon.emissions_tracker import BaseEmissionsTracker

from emissions.meters.base import J_PER_KWH
from emissions.meters.codecarbon import disagreements, tracker_arguments, write_csv
from emissions.meters.nvml import NvmlGpu
from emissions.meters.processor import processor
from tests.standins.hardware import REPOSITORY, standin_environment, with_powercap

COLUMNS = 38  # of emissions.csv in CodeCarbon 3.3.2
SETTINGS = {"ram_w": 40.0, "cpu_tdp_w": 100.0, "gpu_indices": [], "longest_gap_s": 3600.0}

Environment = Mapping[str, str]


@pytest.fixture
def no_gpu(nvml_folder: Path) -> dict[str, str]:
    """The environment of a child on a machine without GPU: the stand-in's driver offers none."""
    return standin_environment(nvml_folder, FAKE_NVML_WATTS="")


class Beside:
    """The process, as the recorder uses it."""

    def __init__(self, environment: Environment, command: Sequence[str], folder: Path = REPOSITORY) -> None:
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer = self.line()

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    def ended(self) -> None:
        """Assert that it has nothing more to say and ends well."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.stdout.read() == ""
        self.process.stdout.close()
        assert self.process.wait(10) == 0

    def stop(self) -> dict[str, Any]:
        """Its last line."""
        assert self.process.stdin is not None
        self.process.stdin.write("stop\n")
        self.process.stdin.flush()
        line = self.line()
        self.ended()
        return line

    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = self.stop()["result"]
        return result


def command(*start: str, **settings: Any) -> list[str]:
    """The process by `python -m`, or by other arguments of Python."""
    start = start or ("-m", "emissions.meters.codecarbon")
    return [sys.executable, *start, json.dumps({**SETTINGS, **settings})]


def test_every_argument_is_given() -> None:
    offline = inspect.signature(OfflineEmissionsTracker.__init__).parameters
    base = inspect.signature(BaseEmissionsTracker.__init__).parameters
    own = {"output_dir", "force_ram_power", "force_cpu_power", "gpu_ids", "measure_power_secs"}
    deprecated = {name for name in base if name.startswith("save_to_")} | {"co2_signal_api_token"}
    known = (set(offline) | set(base)) - {"self", "args", "kwargs"}
    assert set(tracker_arguments()) | own == known - deprecated


def test_its_figures_come_as_one_line(no_gpu: Environment) -> None:
    beside = Beside(no_gpu, command())
    assert beside.answer["started"] is True
    start_s = time.monotonic()
    time.sleep(0.5)
    seconds = time.monotonic() - start_s
    result = beside.result()
    assert len(result) == COLUMNS and result["duration"] == pytest.approx(seconds, abs=0.3)
    assert result["ram_energy"] * J_PER_KWH == pytest.approx(40 * result["duration"], rel=0.02)
    assert 10 * seconds * 0.9 <= result["cpu_energy"] * J_PER_KWH <= 100 * result["duration"]  # idle to TDP
    assert result["energy_consumed"] == pytest.approx(result["ram_energy"] + result["cpu_energy"])
    assert disagreements(result, window_s=seconds, cpu_j=None, gpu_j=0.0, ram_w=40.0) == []


def test_the_end_of_its_input_stops_it_too(no_gpu: Environment) -> None:
    beside = Beside(no_gpu, command())
    assert beside.process.stdin is not None
    beside.process.stdin.close()  # as when the recorder is killed
    assert "result" in beside.line()
    beside.ended()


def test_signals_are_left_to_whoever_started_it(no_gpu: Environment) -> None:
    beside = Beside(no_gpu, command())
    for number in (signal.SIGINT, signal.SIGTERM):
        beside.process.send_signal(number)
        time.sleep(0.05)
    assert "result" in beside.stop()


IMPORTS_SCRIPT = """
import sys, tempfile, time
from emissions.meters.codecarbon import prepare_stop, start_tracker, stop_tracker
with tempfile.TemporaryDirectory() as folder:
    tracker = start_tracker(folder, ram_w=20.0, cpu_tdp_w=8.0)
    started = "pandas" in sys.modules
    prepare_stop(tracker)
    start_s = time.monotonic()
    stop_tracker(tracker)
    print(started, "pandas" in sys.modules, time.monotonic() - start_s)
"""


def test_pandas_is_not_imported(no_gpu: Environment) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS_SCRIPT], env=no_gpu, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    started, stopped, stop_s = done.stdout.split()
    assert (started, stopped) == ("False", "False")
    assert float(stop_s) < 0.1  # 0.6 s unprepared


STOCK_SCRIPT = """
import json, sys, tempfile
from codecarbon import OfflineEmissionsTracker
from emissions.meters.codecarbon import tracker_arguments
with tempfile.TemporaryDirectory() as folder:
    own = {"output_dir": folder, "force_ram_power": 40.0, "force_cpu_power": 100.0, "gpu_ids": []}
    tracker = OfflineEmissionsTracker(**tracker_arguments(**own, measure_power_secs=3600))
    tracker.start()
    tracker.stop()
    print(json.dumps(dict(tracker.final_emissions_data.values)))
"""


def test_the_short_cuts_change_no_figure(no_gpu: Environment) -> None:
    """Beside CodeCarbon as it comes: all but what depends on the time and the load of the run."""
    done = subprocess.run([sys.executable, "-c", STOCK_SCRIPT], env=no_gpu, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stock, ours = json.loads(done.stdout), Beside(no_gpu, command()).result()
    of_the_run = {"timestamp", "run_id", "duration", "emissions", "emissions_rate", "cpu_power"}
    of_the_run |= {name for name in stock if name.endswith(("_energy", "_percent", "_used_gb", "_consumed"))}
    assert set(ours) == set(stock)
    assert {name: ours[name] for name in ours if name not in of_the_run} == {
        name: stock[name] for name in stock if name not in of_the_run
    }
    factors = [row["emissions"] / row["energy_consumed"] for row in (stock, ours)]
    assert factors[0] == pytest.approx(factors[1]) == pytest.approx(0.38095, rel=1e-3)  # kg/kWh in Germany
    assert ours["cpu_model"] == processor().name


@pytest.mark.parametrize(
    ("gpu_indices", "settings", "watts"),
    [([0, 1], {}, 510), ([1], {}, 260), ([0, 1], {"FAKE_NVML_NO_COUNTER": "1"}, 510)],
)
def test_gpus_agree_with_ours(
    gpus: pytest.MonkeyPatch, nvml_folder: Path, gpu_indices: list[int], settings: dict[str, str], watts: float
) -> None:
    for name, value in settings.items():
        gpus.setenv(name, value)
    ours = [NvmlGpu(index) for index in gpu_indices]
    beside = Beside(
        standin_environment(nvml_folder, FAKE_NVML_WATTS="250,260", **settings), command(gpu_indices=gpu_indices)
    )
    start_s, before_j = time.monotonic(), sum(gpu.read_j() or 0.0 for gpu in ours)
    time.sleep(1.2)
    seconds, joules = time.monotonic() - start_s, sum(gpu.read_j() or 0.0 for gpu in ours) - before_j
    result = beside.result()
    assert joules == pytest.approx(watts * seconds, rel=0.02)
    assert result["gpu_energy"] * J_PER_KWH == pytest.approx(watts * result["duration"], rel=0.01, abs=0.25 * watts)
    assert disagreements(result, window_s=seconds, cpu_j=None, gpu_j=joules, ram_w=40.0) == []
    assert len(disagreements(result, window_s=seconds, cpu_j=None, gpu_j=2 * joules, ram_w=40.0)) == 1


def test_it_reads_the_same_rapl_through_its_wraps(no_gpu: Environment, tmp_path: Path) -> None:
    """CodeCarbon as it is, at the kernel's own path; counters wrap every 0.6 and 1 s."""
    counters = [str(tmp_path), "--package-w", "50", "80", "--range-j", "50"]
    counting = [sys.executable, "-m", "tests.standins.rapl", *counters]
    tree = subprocess.Popen(counting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert tree.stdin is not None and tree.stdout is not None and tree.stdout.readline() == "ready\n"
    beside = Beside(no_gpu, with_powercap(tmp_path, command(cpu_tdp_w=None, longest_gap_s=0.3)))
    assert beside.answer == {"started": True, "cpu_is_rapl": True}
    start_s = time.monotonic()
    time.sleep(2.5)
    seconds = time.monotonic() - start_s
    result = beside.result()
    tree.stdin.close()
    assert tree.wait(10) == 0
    tree.stdout.close()
    assert result["cpu_energy"] * J_PER_KWH == pytest.approx(130 * result["duration"], rel=0.05)
    assert disagreements(result, window_s=seconds, cpu_j=130 * seconds, gpu_j=None, ram_w=None) == []
    (line,) = disagreements(result, window_s=seconds, cpu_j=260 * seconds, gpu_j=None, ram_w=None)
    assert "CodeCarbon's CPU energy" in line and "our RAPL readings" in line


def test_without_rapl_it_says_so(no_gpu: Environment, tmp_path: Path) -> None:
    # told no watts, as if we had read RAPL where it cannot
    beside = Beside(no_gpu, with_powercap(tmp_path, command(cpu_tdp_w=None)))
    assert beside.answer == {"started": True, "cpu_is_rapl": False}
    assert beside.result()["cpu_energy"] > 0


BROKEN_SCRIPT = """
import sys
from codecarbon import OfflineEmissionsTracker
from emissions.meters import codecarbon
def broken(*args, **kwargs): raise RuntimeError("no such hardware")
OfflineEmissionsTracker.METHOD = broken
sys.exit(codecarbon.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("method", ["__init__", "start"])
def test_a_start_that_fails_is_said(no_gpu: Environment, method: str) -> None:
    beside = Beside(no_gpu, command("-c", BROKEN_SCRIPT.replace("METHOD", method)))
    assert beside.answer == {"failed": "did not start (RuntimeError: no such hardware)"}
    beside.ended()


@pytest.mark.parametrize("method", ["stop", "_prepare_emissions_data"])  # the second is one that it keeps to itself
def test_a_stop_that_fails_is_said(no_gpu: Environment, method: str) -> None:
    beside = Beside(no_gpu, command("-c", BROKEN_SCRIPT.replace("METHOD", method)))
    assert beside.answer["started"] is True
    assert beside.stop()["failed"].startswith("gave no result (")


UNPREPARED_SCRIPT = """
import sys
import codecarbon.input
from emissions.meters import codecarbon as ours
original = ours.prepare_stop
def prepare_stop(tracker):
    load = codecarbon.input._load_static_data
    del codecarbon.input._load_static_data
    original(tracker)
    codecarbon.input._load_static_data = load
ours.prepare_stop = prepare_stop
sys.exit(ours.main(sys.argv[1:]))
"""


def test_a_later_version_that_cannot_be_prepared_is_only_slower(no_gpu: Environment) -> None:
    beside = Beside(no_gpu, command("-c", UNPREPARED_SCRIPT))
    assert len(beside.result()) == COLUMNS


ISOLATED_SCRIPT = """
import socket, sys
from emissions.meters import codecarbon
def connect(*address): raise AssertionError(f"CodeCarbon went to the network: {address}")
socket.socket.connect = connect
start = codecarbon.start_tracker
def start_tracker(*args, **kwargs):
    tracker = start(*args, **kwargs)
    assert tracker._external_conf == {}, tracker._external_conf
    return tracker
codecarbon.start_tracker = start_tracker
sys.exit(codecarbon.main(sys.argv[1:]))
"""


def test_settings_of_the_user_do_not_reach_it(no_gpu: Environment, tmp_path: Path) -> None:
    for folder in (tmp_path / "home", tmp_path / "work"):
        folder.mkdir()
        (folder / ".codecarbon.config").write_text("[codecarbon]\nco2_signal_api_token=x\npue=3\n")
    environment = {
        **no_gpu,
        "HOME": str(tmp_path / "home"),
        "CODECARBON_PUE": "2",
        "CODECARBON_FORCE_RAM_POWER": "1000",
        "CODECARBON_CO2_SIGNAL_API_TOKEN": "token",
    }
    beside = Beside(environment, command("-c", ISOLATED_SCRIPT), tmp_path / "work")
    time.sleep(0.3)
    result = beside.result()
    assert (result["pue"], result["wue"]) == (1.0, 0.0)
    assert result["ram_energy"] * J_PER_KWH == pytest.approx(40 * result["duration"], rel=0.1)
    assert [path.name for path in (tmp_path / "work").iterdir()] == [".codecarbon.config"]


CHATTY_SCRIPT = """
import sys
from emissions.meters import codecarbon
start = codecarbon.start_tracker
def start_tracker(*args, **kwargs):
    print("a library's chatter", flush=True)
    return start(*args, **kwargs)
codecarbon.start_tracker = start_tracker
sys.exit(codecarbon.main(sys.argv[1:]))
"""


def test_what_libraries_print_is_not_taken_for_an_answer(no_gpu: Environment) -> None:
    assert Beside(no_gpu, command("-c", CHATTY_SCRIPT)).result()["tracking_mode"] == "machine"


def row(**changes: float) -> dict[str, Any]:
    """100 s of 40 W RAM, 250 W GPU and 50 W CPU."""
    energies = {"ram_energy": 4000, "gpu_energy": 25_000, "cpu_energy": 5000}
    return {"duration": 100.0, **{name: changes.get(name, joules) / J_PER_KWH for name, joules in energies.items()}}


@pytest.mark.parametrize(
    ("changes", "window_s", "named"),
    [
        ({}, 100.0, ""),
        ({"ram_energy": 4080}, 100.0, ""),  # 2 % is allowed
        ({"ram_energy": 4120}, 100.0, "RAM"),
        ({"ram_energy": 8000}, 100.0, "RAM"),  # an interval counted twice
        ({"ram_energy": 2000}, 100.0, "RAM"),  # one that was lost
        ({"gpu_energy": 0}, 100.0, "GPU"),  # one that it does not see
        ({"gpu_energy": 26_000}, 100.0, "GPU"),
        ({"gpu_energy": 26_000}, 97.0, ""),  # its window was 3 s longer than ours
        ({"cpu_energy": 5300}, 100.0, "CPU"),
    ],
)
def test_a_figure_that_ours_contradict_is_named(changes: dict[str, float], window_s: float, named: str) -> None:
    lines = disagreements(row(**changes), window_s=window_s, cpu_j=5000.0, gpu_j=25_000.0, ram_w=40.0)
    assert [line.split("'s ")[1].split(" energy")[0] for line in lines] == ([named] if named else [])


def test_what_cannot_be_compared_is_not() -> None:
    wrong = row(ram_energy=0, gpu_energy=0, cpu_energy=0)
    assert disagreements(wrong, window_s=100.0, cpu_j=None, gpu_j=None, ram_w=None) == []


def test_its_row_is_written_in_its_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "stage.codecarbon.csv"
    write_csv(path, {"duration": 100.0, "country_name": "Germany"})
    with path.open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [{"duration": "100.0", "country_name": "Germany"}]
    write_csv(path, None)  # it failed
    assert len(path.read_text().splitlines()) == 1 and len(path.read_text().split(",")) == COLUMNS
