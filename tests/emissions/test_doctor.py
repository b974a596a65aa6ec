"""`footprint doctor` on machines with stand-in sensors, with none, and with such that refuse."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from emissions import cli, client, doctor
from emissions.meters import Meters, MeterSettings, rapl
from emissions.meters.base import AbsentMeter
from emissions.meters.ram import ModelRamMeter
from emissions.meters.simulated import SimulatedMeter
from tests.emissions.jobs import wait_for_no_recorder
from tests.standins.hardware import REPOSITORY, RaplTree, standin_environment

DOCTOR = [sys.executable, "-m", "emissions.cli", "doctor"]


@pytest.fixture
def environment(monkeypatch):
    """Of a machine without sensors, where jobs meet in a folder of the test's own."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir="/tmp"))  # short: a socket is in it
    monkeypatch.setenv("FOOTPRINT_RUNTIME_DIR", str(folder / "runtime"))
    monkeypatch.setenv("FOOTPRINT_POWERCAP", str(folder / "no-powercap"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield monkeypatch
    wait_for_no_recorder(folder)
    shutil.rmtree(folder)


def examined(*options, environment=None):
    ended = subprocess.run(
        [*DOCTOR, "--json", *options], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stderr == ""
    return json.loads(ended.stdout)


def parts_of(found, component):
    return [part for part in found["parts"] if part["component"] == component]


def advice(part):
    return " ".join(part["advice"])


def test_a_machine_without_sensors(environment):
    found = examined()
    cpu, ram, gpu = found["parts"]
    assert (cpu["how"], cpu["method"]) == ("estimated", "model:load x TDP")
    assert "No RAPL here" in advice(cpu) and "metering.cpu_tdp_w" in advice(cpu)
    assert cpu["low_percent"] <= 0 <= cpu["high_percent"]
    assert (ram["how"], ram["low_percent"], ram["high_percent"]) == ("estimated", -50, 50)
    assert "metering.ram_w" in advice(ram)
    assert (gpu["how"], gpu["device"], gpu["low_percent"], gpu["advice"]) == ("absent", "none", None, [])
    assert all(part["power_w"] is None for part in found["parts"])
    assert 0 < found["recorder_ready_s"] < 20
    assert found["runtime_folder"] == os.environ["FOOTPRINT_RUNTIME_DIR"]
    assert 0 < found["usable_cpus"] <= found["cpus"] == os.cpu_count()
    assert (found["visible_gpus"], found["warnings"]) == ([], [])


def test_the_text_has_a_line_for_each_part_and_is_not_too_wide(environment):
    ended = subprocess.run(DOCTOR, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == [
        "CPU", "RAM", "GPU", "Not seen by any sensor", "Recorder",
    ]  # fmt: skip
    assert "    estimated: model:W per DIMM, -50 to +50 % at the power drawn now" in lines
    assert "    absent" in lines
    assert any("up to 59 % more" in line for line in lines)
    assert all(len(line) <= 100 for line in lines)


def test_gpus_by_their_counters(environment, nvml_folder):
    settings = {"FOOTPRINT_RUNTIME_DIR": os.environ["FOOTPRINT_RUNTIME_DIR"], "CUDA_VISIBLE_DEVICES": "1"}
    found = examined("--idle", "1", environment=standin_environment(nvml_folder, FAKE_NVML_WATTS="30,40", **settings))
    gpus = parts_of(found, "GPU")
    assert [(gpu["how"], gpu["method"]) for gpu in gpus] == [("measured", "nvml:energy-counter")] * 2
    assert [gpu["power_w"] for gpu in gpus] == [pytest.approx(30, rel=0.1), pytest.approx(40, rel=0.1)]
    assert all(-6 <= gpu["low_percent"] <= -5 and 5 <= gpu["high_percent"] <= 6 for gpu in gpus)
    assert f"set metering.gpu_idle_w: {gpus[0]['power_w']:.1f} in the config" in advice(gpus[0])
    assert found["visible_gpus"] == ["GPU-00000001-0000-0000-0000-000000000000"]


def test_gpus_of_few_means_are_told_as_such(environment, nvml_folder):
    settings = {"FOOTPRINT_RUNTIME_DIR": os.environ["FOOTPRINT_RUNTIME_DIR"], "FAKE_NVML_WATTS": "30"}
    old = examined(environment=standin_environment(nvml_folder, **settings, FAKE_NVML_NO_COUNTER="1"))
    assert [gpu["method"] for gpu in parts_of(old, "GPU")] == ["nvml:power-integral"]
    assert "footprint doctor --idle 30" in advice(parts_of(old, "GPU")[0])
    sliced = examined(environment=standin_environment(nvml_folder, **settings, FAKE_NVML_MIG="0"))
    assert "MIG" in advice(parts_of(sliced, "GPU")[0])
    broken = examined(environment=standin_environment(nvml_folder, **settings, FAKE_NVML_INIT_ERROR="999"))
    assert [gpu["how"] for gpu in parts_of(broken, "GPU")] == ["unknown"]
    assert "their energy is unknown" in advice(parts_of(broken, "GPU")[0])


def test_rapl_by_its_counters(environment, tmp_path):
    environment.setenv("FOOTPRINT_POWERCAP", str(tmp_path))
    with RaplTree(tmp_path, package_w=(30.0, 20.0), dram_w=8.0, range_j=1000.0):
        found = examined("--idle", "1")
    (cpu,), (ram,), (psys,) = (parts_of(found, name) for name in ("CPU", "RAM", "platform (psys, for comparison)"))
    assert (cpu["method"], ram["method"], psys["method"]) == ("rapl", "rapl:dram", "rapl:psys")
    assert {cpu["how"], ram["how"], psys["how"]} == {"measured"}
    assert cpu["power_w"] == pytest.approx(50, rel=0.1)
    assert ram["power_w"] == pytest.approx(16, rel=0.1)
    assert (cpu["low_percent"], cpu["high_percent"]) == (-5, 5)
    assert f"set metering.cpu_idle_w: {cpu['power_w']:.1f}" in advice(cpu)


def test_counters_that_only_root_may_read(environment, tmp_path, monkeypatch):
    RaplTree(tmp_path)
    monkeypatch.setattr(rapl, "POWERCAP_FOLDER", tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(rapl, "_read_uj", refuse)
    cpu = doctor.examine(MeterSettings())[0]
    assert (cpu["how"], cpu["method"]) == ("estimated", "model:load x TDP")
    assert f"sudo chmod a+r {tmp_path}/intel-rapl:0/energy_uj" in advice(cpu)
    assert "70-rapl.rules" in advice(cpu)
    assert "No RAPL here" not in advice(cpu)


def test_all_meters_are_closed(monkeypatch):
    class Closing(SimulatedMeter):
        closed = 0

        def close(self):
            Closing.closed += 1

    meters = Meters(Closing("a", 10.0), Closing("b", 1.0), [], Closing("c", 20.0))
    monkeypatch.setattr(doctor, "open_meters", lambda settings: meters)
    rows = doctor.examine(MeterSettings())
    assert [row["component"] for row in rows] == ["CPU", "RAM", "GPU", "platform (psys, for comparison)"]
    assert [row["how"] for row in rows] == ["estimated", "estimated", "absent", "estimated"]
    assert Closing.closed == 3


def test_power_is_the_mean_over_the_time_asked_for(monkeypatch):
    meters = Meters(SimulatedMeter("CPU", 12.5), ModelRamMeter(4.0), [], AbsentMeter())
    monkeypatch.setattr(doctor, "open_meters", lambda settings: meters)
    assert [row["power_w"] for row in doctor.examine(MeterSettings(), 0.6)] == [
        pytest.approx(12.5, rel=0.05), pytest.approx(4.0, rel=0.05), None,
    ]  # fmt: skip


@pytest.mark.parametrize("folder", ["file/runtime", "long" * 30])
def test_without_a_place_for_a_recorder_it_says_so_and_what_to_do(environment, tmp_path, folder):
    (tmp_path / "file").write_text("")
    environment.setenv("FOOTPRINT_RUNTIME_DIR", str(tmp_path / folder))
    ended = subprocess.run(DOCTOR, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    text = " ".join(ended.stdout.split())
    assert "Recorder: none" in text
    assert "No recorder runs beside a job here" in text and "Set FOOTPRINT_RUNTIME_DIR" in text


def test_a_running_recorder_with_other_settings_is_told(environment):
    session = client.Session(MeterSettings(interval_s=0.5))
    assert len(examined()["warnings"]) == 1
    session.goodbye()


@pytest.mark.parametrize("seconds", ["-1", "nan", "3601"])
def test_a_users_mistake_is_one_line(seconds, capsys):
    assert cli.main(["doctor", "--idle", seconds]) == 2
    assert "expected 0 to 3600 (seconds)" in capsys.readouterr().err
