from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emissions.meters import MeterSettings, open_meters, rapl
from emissions.meters.base import AbsentMeter
from emissions.meters.nvml import NvmlGpu
from emissions.meters.rapl import RaplMeter
from emissions.meters.simulated import SimulatedGpu
from tests.standins.hardware import REPOSITORY, RaplTree, standin_environment

EVERYTHING: dict[str, Any] = {
    "interval_s": 0.1,
    "cpu_tdp_w": 65,
    "ram_w": 12.5,
    "cpu_idle_w": 0,
    "gpu_idle_w": 25,
    "codecarbon": False,
    "simulated": {"cpu_w": 100, "ram_w": 10, "gpu_w": [300, 0]},
}


def test_settings_come_from_the_config_and_pass_through_json() -> None:
    assert MeterSettings.from_config({}) == MeterSettings()
    assert MeterSettings.from_config({"interval_s": 2, "a key of others": 1}) == MeterSettings(interval_s=2)
    settings = MeterSettings.from_config(EVERYTHING)
    assert settings.to_dict() == EVERYTHING
    assert MeterSettings(**json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("interval_s", 0, "interval_s"),
        ("interval_s", 11, "interval_s"),
        ("interval_s", None, "interval_s"),
        ("interval_s", "1", "interval_s"),
        ("interval_s", True, "interval_s"),
        ("cpu_tdp_w", -5, "cpu_tdp_w"),
        ("cpu_tdp_w", 0, "cpu_tdp_w"),
        ("ram_w", "10", "ram_w"),
        ("ram_w", float("nan"), "ram_w"),
        ("ram_w", float("inf"), "ram_w"),
        ("cpu_idle_w", -1, "cpu_idle_w"),
        ("gpu_idle_w", [10], "gpu_idle_w"),
        ("codecarbon", 1, "codecarbon"),
        ("simulated", [1], "simulated"),
        ("simulated", {"gpus_w": [1]}, "simulated"),
        ("simulated", {"cpu_w": None}, "simulated.cpu_w"),
        ("simulated", {"gpu_w": 300}, "simulated.gpu_w"),
        ("simulated", {"gpu_w": [300, -1]}, "simulated.gpu_w"),
    ],
)
def test_bad_settings_name_the_key(key: str, value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"config metering\.{named} is .*; expected "):
        MeterSettings.from_config({key: value})


def test_without_sensors_cpu_and_ram_are_modelled_without_a_word(no_sensors: None) -> None:
    meters = open_meters(MeterSettings(cpu_tdp_w=100.0, ram_w=20.0))
    assert (meters.cpu.method, meters.ram.method) == ("model:load x TDP", "model:W per DIMM")
    assert (meters.cpu.idle_w, meters.ram.idle_w) == (pytest.approx(10.0), 20.0)
    assert meters.gpus == [] and isinstance(meters.psys, AbsentMeter) and meters.psys.read_j() == 0.0
    assert meters.cpu.warnings == meters.ram.warnings == meters.psys.warnings == []


def test_sensors_that_can_be_read_are_preferred(
    gpus: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RaplTree(tmp_path, dram_w=5.0)
    monkeypatch.setattr(rapl, "POWERCAP_FOLDER", tmp_path)
    meters = open_meters(MeterSettings(cpu_idle_w=15.0, gpu_idle_w=25.0))
    assert (meters.cpu.method, meters.ram.method, meters.psys.method) == ("rapl", "rapl:dram", "rapl:psys")
    assert (meters.cpu.idle_w, meters.ram.idle_w, meters.psys.idle_w) == (15.0, None, None)
    assert [gpu.idle_w for gpu in meters.gpus] == [25.0, 25.0]


def test_denied_permission_is_the_model_and_says_how_to_fix_it(
    no_sensors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RaplTree(tmp_path, dram_w=5.0)
    monkeypatch.setattr(rapl, "POWERCAP_FOLDER", tmp_path)
    read: Callable[[Path], int] = rapl._read_uj

    def denied(path: Path) -> int:  # tests may run as root, whom no mode keeps out
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(rapl, "_read_uj", denied)
    meters = open_meters(MeterSettings(cpu_tdp_w=100.0, ram_w=20.0))
    assert (meters.cpu.method, meters.ram.method) == ("model:load x TDP", "model:W per DIMM")
    (warning,) = meters.cpu.warnings
    assert f"sudo chmod a+r {tmp_path}/intel-rapl:0/energy_uj" in warning  # until the next boot
    assert "/etc/udev/rules.d" in warning and 'SUBSYSTEM=="powercap"' in warning  # for good


def test_rapl_that_makes_no_sense_is_the_model_and_says_so(
    no_sensors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RaplTree(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("no number\n")
    monkeypatch.setattr(rapl, "POWERCAP_FOLDER", tmp_path)
    cpu = open_meters(MeterSettings(cpu_tdp_w=100.0)).cpu
    assert cpu.method == "model:load x TDP" and "RAPL cannot be read" in cpu.warnings[0]


def test_simulated_parts_draw_known_watts(no_sensors: None) -> None:
    start_s = time.monotonic()
    meters = open_meters(MeterSettings.from_config(EVERYTHING))
    opened_s = time.monotonic()
    time.sleep(0.1)
    for meter, watts in ((meters.cpu, 100), (meters.ram, 10), (meters.gpus[0], 300), (meters.gpus[1], 0)):
        shortest_s = time.monotonic() - opened_s
        joules = meter.read_j()
        assert joules is not None and watts * shortest_s <= joules <= watts * (time.monotonic() - start_s)
        assert meter.interval_j(joules, 0.1) == (joules, joules)
        assert meter.method == "simulated"
    assert (meters.cpu.idle_w, meters.ram.idle_w, meters.gpus[0].idle_w) == (0, 10, 25)
    assert [gpu.uuid for gpu in meters.gpus if isinstance(gpu, SimulatedGpu)] == ["SIMULATED-0", "SIMULATED-1"]


def test_only_the_parts_that_are_simulated_are_replaced(
    gpus: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RaplTree(tmp_path)
    monkeypatch.setattr(rapl, "POWERCAP_FOLDER", tmp_path)
    meters = open_meters(MeterSettings(ram_w=7.0, simulated={"gpu_w": [100]}))
    assert isinstance(meters.cpu, RaplMeter) and meters.ram.method == "model:W per DIMM"
    assert [gpu.method for gpu in meters.gpus] == ["simulated"]
    meters = open_meters(MeterSettings(simulated={"cpu_w": 100}))
    assert meters.cpu.method == "simulated" and all(isinstance(gpu, NvmlGpu) for gpu in meters.gpus)
    assert open_meters(MeterSettings(simulated={"gpu_w": []})).gpus == []  # a node without GPU


LIGHT_SCRIPT = """
import json, sys, time
from emissions.meters import MeterSettings, nvml, open_meters
meters = open_meters(MeterSettings())
everything = [meters.cpu, meters.ram, meters.psys, *meters.gpus]
cpu_s = time.process_time()
for _ in range(200):
    for meter in everything:
        meter.read_j()
print(json.dumps({
    "cpu_s": (time.process_time() - cpu_s) / 200,
    "methods": [meter.method for meter in everything],
    "heavy": sorted({"codecarbon", "pandas", "numpy", "pyarrow", "psutil"} & set(sys.modules)),
    "pynvml": "pynvml" in sys.modules,
    "library": nvml._library_is_installed(),
}))
"""


def read_in_a_process(environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-c", LIGHT_SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["heavy"] == []
    assert found["pynvml"] is found["library"]  # imported only where there is a driver
    assert found["cpu_s"] < 0.002  # the recorder reads everything at 1 Hz and may use 0.2 % of one core
    return found


def test_opening_and_reading_a_node_without_sensors_is_light(tmp_path: Path) -> None:
    found = read_in_a_process(os.environ | {"FOOTPRINT_POWERCAP": str(tmp_path)})
    assert found["methods"][:2] == ["model:load x TDP", "model:W per DIMM"]


def test_opening_and_reading_a_node_with_all_sensors_is_light(tmp_path: Path, nvml_folder: Path) -> None:
    RaplTree(tmp_path, package_w=(50.0, 60.0), dram_w=5.0)
    environment = standin_environment(nvml_folder, FAKE_NVML_WATTS="250,260", FOOTPRINT_POWERCAP=str(tmp_path))
    found = read_in_a_process(environment)
    assert found["methods"] == ["rapl", "rapl:dram", "rapl:psys", "nvml:energy-counter", "nvml:energy-counter"]
