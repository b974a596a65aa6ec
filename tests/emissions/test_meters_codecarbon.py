from __future__ import annotations

import csv
import inspect
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import codecarbon.core.cpu
import codecarbon.external.hardware
import cpuinfo
import pytest
from codecarbon import OfflineEmissionsTracker
from codecarbon.core import hardware_cache
from codecarbon.emissions_tracker import BaseEmissionsTracker

from emissions.meters.base import J_PER_KWH
from emissions.meters.codecarbon import CodeCarbonMeter, default_cpu_tdp_w, default_ram_w, tracker_arguments
from emissions.meters.rapl import RaplMeter
from tests.standins.hardware import RaplTree, standin_environment

COLUMNS = 38  # of emissions.csv in CodeCarbon 3.3.2


def run(meter: CodeCarbonMeter, seconds: float) -> float:
    meter.start()
    start_s = time.monotonic()
    time.sleep(seconds)
    seconds = time.monotonic() - start_s
    meter.stop()
    return seconds


def test_every_argument_is_given() -> None:
    offline = inspect.signature(OfflineEmissionsTracker.__init__).parameters
    base = inspect.signature(BaseEmissionsTracker.__init__).parameters
    own = {"output_dir", "force_ram_power", "force_cpu_power", "gpu_ids", "measure_power_secs"}
    deprecated = {name for name in base if name.startswith("save_to_")} | {"co2_signal_api_token"}
    known = (set(offline) | set(base)) - {"self", "args", "kwargs"}
    assert set(tracker_arguments()) | own == known - deprecated


def test_its_ram_energy_is_the_known_watts(no_sensors: None) -> None:
    meter = CodeCarbonMeter(ram_w=40.0)
    seconds = run(meter, 0.6)
    assert meter.warnings == [] and meter.result is not None
    assert meter.result["ram_energy"] * J_PER_KWH == pytest.approx(40 * seconds, rel=0.1)
    assert meter.energy_kwh == pytest.approx(meter.result["ram_energy"] + meter.result["cpu_energy"])
    assert meter.disagreements(duration_s=seconds, cpu_j=None, cpu_is_rapl=False, gpu_j=0.0) == []


def test_an_interval_counted_twice_is_flagged(no_sensors: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = OfflineEmissionsTracker.stop

    def racing_stop(tracker: Any) -> Any:
        tracker._do_measurements()  # as a tick that meets stop(): measured, and the clock not yet set
        return stop(tracker)

    monkeypatch.setattr(OfflineEmissionsTracker, "stop", racing_stop)
    meter = CodeCarbonMeter(ram_w=40.0)
    seconds = run(meter, 0.6)
    lines = meter.disagreements(duration_s=seconds, cpu_j=None, cpu_is_rapl=False, gpu_j=None)
    assert len(lines) == 1 and "CodeCarbon's RAM energy" in lines[0] and "known watts" in lines[0]


def test_a_gpu_that_it_does_not_see_is_flagged(no_sensors: None) -> None:
    meter = CodeCarbonMeter(ram_w=40.0)
    seconds = run(meter, 0.3)
    lines = meter.disagreements(duration_s=seconds, cpu_j=None, cpu_is_rapl=False, gpu_j=500 * seconds)
    assert len(lines) == 1 and "CodeCarbon's GPU energy is 0.0 J" in lines[0]


def test_it_reads_the_same_rapl_through_its_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RaplTree(tmp_path, package_w=(50.0,), range_j=50.0):  # wraps every second
        folder = str(tmp_path / "intel-rapl")
        defaults = codecarbon.external.hardware.CPU.__init__.__defaults__
        assert defaults is not None
        monkeypatch.setattr(codecarbon.external.hardware.CPU.__init__, "__defaults__", (folder, *defaults[1:]))
        monkeypatch.setattr(codecarbon.core.cpu, "_get_candidate_bases", lambda _: [str(tmp_path)])
        hardware_cache.clear_cache()
        try:
            ours = RaplMeter("package", tmp_path)
            meter = CodeCarbonMeter(ram_w=20.0, longest_gap_s=0.3)
            meter.start()
            ours.start()
            start_s = time.monotonic()
            while time.monotonic() - start_s < 2.5:
                time.sleep(0.1)
                cpu_j = ours.read_j()
            seconds = time.monotonic() - start_s
            meter.stop()
        finally:
            hardware_cache.clear_cache()
    assert meter.result is not None
    assert cpu_j == pytest.approx(50 * seconds, rel=0.05)
    assert meter.result["cpu_energy"] * J_PER_KWH == pytest.approx(cpu_j, rel=0.05, abs=0.3 * 50)
    assert meter.disagreements(duration_s=seconds, cpu_j=2 * cpu_j, cpu_is_rapl=True, gpu_j=None)


def test_settings_of_the_user_do_not_reach_it(
    no_sensors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "home", tmp_path / "work"):
        folder.mkdir()
        (folder / ".codecarbon.config").write_text("[codecarbon]\nco2_signal_api_token=x\npue=3\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("CODECARBON_PUE", "2")
    monkeypatch.setenv("CODECARBON_FORCE_RAM_POWER", "1000")
    monkeypatch.setenv("CODECARBON_CO2_SIGNAL_API_TOKEN", "token")
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    meter = CodeCarbonMeter(ram_w=40.0)
    seconds = run(meter, 0.3)
    assert meter.warnings == [] and meter.result is not None
    assert (meter.result["pue"], meter.result["wue"]) == (1.0, 0.0)
    assert meter.result["ram_energy"] * J_PER_KWH == pytest.approx(40 * seconds, rel=0.2)
    assert os.environ["CODECARBON_PUE"] == "2"  # the job's own environment is as it was
    assert list((tmp_path / "work").iterdir()) == [tmp_path / "work" / ".codecarbon.config"]


def _no_network(*address: Any) -> None:
    raise AssertionError(f"CodeCarbon went to the network: {address}")


def test_its_row_is_in_its_own_columns(no_sensors: None, tmp_path: Path) -> None:
    meter = CodeCarbonMeter(ram_w=40.0)
    run(meter, 0.2)
    path = tmp_path / "stage.codecarbon.csv"
    meter.write_csv(path)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 1 and len(rows[0]) == COLUMNS
    assert float(rows[0]["energy_consumed"]) == meter.energy_kwh
    assert (rows[0]["country_iso_code"], rows[0]["tracking_mode"]) == ("DEU", "machine")


@pytest.mark.parametrize("method", ["__init__", "start", "stop"])
def test_its_failure_is_a_warning(
    no_sensors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such hardware")

    monkeypatch.setattr(OfflineEmissionsTracker, method, broken)
    meter = CodeCarbonMeter(ram_w=40.0)
    seconds = run(meter, 0.05)
    assert meter.energy_kwh is None and len(meter.warnings) == 1 and "no such hardware" in meter.warnings[0]
    assert meter.disagreements(duration_s=seconds, cpu_j=None, cpu_is_rapl=False, gpu_j=1e6) == []
    path = tmp_path / "stage.codecarbon.csv"
    meter.write_csv(path)
    assert len(path.read_text().splitlines()) == 1 and len(path.read_text().split(",")) == COLUMNS


def test_an_exception_that_it_swallows_itself_is_a_warning(no_sensors: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(tracker: Any) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(OfflineEmissionsTracker, "_prepare_emissions_data", broken)
    meter = CodeCarbonMeter(ram_w=40.0)
    run(meter, 0.05)
    assert meter.energy_kwh is None and "gave no result" in meter.warnings[0]


def test_defaults_are_those_of_codecarbon(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cpuinfo.get_cpu_info
    monkeypatch.setattr(hardware_cache, "get_cached_tdp", lambda cpu: type("Tdp", (), {"tdp": 8})())
    monkeypatch.setattr("codecarbon.core.util.count_cpus", lambda: 2)
    monkeypatch.setattr("codecarbon.core.util.count_physical_cpus", lambda: 2)
    assert default_cpu_tdp_w() == 8  # unknown processor: 4 W for each of 2 threads, of all sockets
    monkeypatch.setattr(hardware_cache, "get_cached_tdp", lambda cpu: type("Tdp", (), {"tdp": 225})())
    assert default_cpu_tdp_w() == 450  # known processor, two sockets
    assert cpuinfo.get_cpu_info is original
    assert 3 <= default_ram_w() < 200


GPU_SCRIPT = """
import json, time
from emissions.meters.codecarbon import CodeCarbonMeter
from emissions.meters.nvml import open_nvml
gpu = open_nvml()
codecarbon = CodeCarbonMeter(ram_w=20.0, gpu_indices=[device.index for device in gpu.gpus])
codecarbon.start()
gpu.start()
start_s = time.monotonic()
for _ in range(10):
    time.sleep(0.1)
    joules = gpu.read_j()
seconds = time.monotonic() - start_s
codecarbon.stop()
lines = codecarbon.disagreements(duration_s=seconds, cpu_j=None, cpu_is_rapl=False, gpu_j=joules)
print(json.dumps([joules, seconds, codecarbon.result["gpu_energy"] * 3.6e6, codecarbon.result["duration"],
lines]))
"""


@pytest.mark.parametrize(
    ("settings", "watts"),
    [({}, 510), ({"CUDA_VISIBLE_DEVICES": "GPU-00000001"}, 260), ({"FAKE_NVML_NO_COUNTER": "1"}, 510)],
)
def test_gpus_agree_with_ours(nvml_folder: Path, settings: dict[str, str], watts: float) -> None:
    environment = standin_environment(nvml_folder, FAKE_NVML_WATTS="250,260", **settings)
    done = subprocess.run([sys.executable, "-c", GPU_SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours_j, seconds, theirs_j, their_seconds, lines = json.loads(done.stdout)
    assert lines == []
    assert ours_j == pytest.approx(watts * seconds, rel=0.01, abs=0.03 * watts)
    assert theirs_j == pytest.approx(watts * their_seconds, rel=0.01, abs=0.25 * watts)
