"""The package `amdsmi` cannot be imported without AMD's driver: a module with its documented functions stands in."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from emissions.meters import amd
from emissions.meters.amd import AmdGpu, open_gpus
from emissions.meters.base import AbsentMeter

NOT_SUPPORTED, BUSY = 2, 30  # amdsmi_status_t


class AmdSmiException(Exception):  # noqa: N818 - its name there
    def __init__(self, err_code: int) -> None:
        super().__init__(f"An error occured with code: {err_code}")
        self.err_code = err_code


class FakeAmdsmi(ModuleType):
    """Two GPUs of 400 and 500 W by the names of ROCm 7; a test replaces what it wants to be otherwise."""

    AmdSmiException = AmdSmiException

    def __init__(self) -> None:
        super().__init__("amdsmi")
        self.watts = {"gpu0": 400.0, "gpu1": 500.0}
        self.open = 0
        self.energy_key = "energy_accumulator"
        self.power: dict[str, Any] = {}  # other fields of amdsmi_get_power_info
        self.failing: dict[str, int] = {}  # function -> error code

    def _check(self, function: str) -> None:
        if function in self.failing:
            raise AmdSmiException(self.failing[function])

    def amdsmi_init(self) -> None:
        self._check("init")
        self.open += 1

    def amdsmi_shut_down(self) -> None:
        self.open -= 1

    def amdsmi_get_processor_handles(self) -> list[str]:
        return list(self.watts)

    def amdsmi_get_gpu_device_uuid(self, handle: str) -> str:
        self._check(f"uuid of {handle}")
        return f"uuid-{handle}"

    def amdsmi_get_gpu_asic_info(self, handle: str) -> dict[str, Any]:
        return {"market_name": "AMD Instinct MI300X"}

    def amdsmi_get_energy_count(self, handle: str) -> dict[str, Any]:
        self._check("energy")
        ticks = int(time.monotonic() * self.watts[handle] * 1e6 / 15.3)
        return {self.energy_key: ticks, "counter_resolution": 15.3, "timestamp": time.monotonic_ns()}

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        self._check("power")
        return {"current_socket_power": "N/A", "socket_power": int(self.watts[handle]), **self.power}

    def amdsmi_get_gpu_activity(self, handle: str) -> dict[str, Any]:
        self._check("activity")
        return {"gfx_activity": 75, "umc_activity": 20, "mm_activity": "N/A"}

    def amdsmi_get_gpu_vram_usage(self, handle: str) -> dict[str, Any]:
        return {"vram_total": 196_288, "vram_used": 1000}


@pytest.fixture
def amdsmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeAmdsmi:
    module = FakeAmdsmi()
    (tmp_path / "kfd").touch()
    monkeypatch.setattr(amd, "KERNEL_DRIVER", tmp_path / "kfd")
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    return module


def opened() -> list[AmdGpu]:
    gpus = open_gpus(idle_w=90.0)
    assert all(isinstance(gpu, AmdGpu) for gpu in gpus)
    return gpus  # type: ignore[return-value]


def assert_watts(gpu: AmdGpu, watts: float) -> None:
    start_s, before_j = time.monotonic(), gpu.read_j()
    time.sleep(0.2)
    after_j, seconds = gpu.read_j(), time.monotonic() - start_s
    assert before_j is not None and after_j is not None
    assert after_j - before_j == pytest.approx(watts * seconds, rel=0.05)


def test_each_gpu_counts_for_itself(amdsmi: FakeAmdsmi) -> None:
    first, second = opened()
    assert (first.index, first.uuid, first.device) == (0, "uuid-gpu0", "AMD Instinct MI300X")
    assert (second.index, second.uuid, second.idle_w) == (1, "uuid-gpu1", 90.0)
    assert_watts(first, 400)
    assert_watts(second, 500)
    assert first.method == "amdsmi:energy-counter" and first.warnings == []
    joules = first.read_j()
    assert first.integral_j == pytest.approx(joules, rel=0.05)
    assert (first.utilisation_percent, first.memory_gb) == (75, pytest.approx(1.048576))


def test_the_counter_s_older_name_is_known(amdsmi: FakeAmdsmi) -> None:
    amdsmi.energy_key = "power"  # before ROCm 6.2
    gpu = opened()[0]
    assert_watts(gpu, 400)
    assert gpu.method == "amdsmi:energy-counter"


@pytest.mark.parametrize(
    ("power", "watts"),
    [
        ({"socket_power": "N/A", "current_socket_power": 410}, 410),  # MI300 before ROCm 7
        ({"socket_power": "N/A", "average_socket_power": 420}, 420),  # MI200 and older
        ({"socket_power": 0xFFFFFFFF, "average_socket_power": 430}, 430),  # UINT32_MAX: unsupported
    ],
)
def test_without_counter_power_is_integrated(amdsmi: FakeAmdsmi, power: dict[str, Any], watts: float) -> None:
    amdsmi.failing["energy"] = NOT_SUPPORTED
    amdsmi.power = power
    gpu = opened()[0]
    assert_watts(gpu, watts)
    assert gpu.method == "amdsmi:power-integral" and gpu.warnings == []


def test_a_counter_that_stays_zero_is_none(amdsmi: FakeAmdsmi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        amdsmi, "amdsmi_get_energy_count", lambda handle: {"energy_accumulator": 0, "counter_resolution": 15.3}
    )
    gpu = opened()[0]
    assert_watts(gpu, 400)
    assert gpu.method == "amdsmi:power-integral"


def test_a_reading_that_fails_now_and_then_is_named(amdsmi: FakeAmdsmi) -> None:
    gpu = opened()[0]
    amdsmi.failing["energy"] = BUSY
    assert_watts(gpu, 400)
    assert len(gpu.warnings) == 1 and "could not be read at times" in gpu.warnings[0]


def test_a_counter_that_goes_missing_is_bridged_and_asked_for_again(amdsmi: FakeAmdsmi) -> None:
    gpu = opened()[0]
    amdsmi.failing["energy"] = NOT_SUPPORTED  # what a driver that resets may say
    assert_watts(gpu, 400)
    assert gpu.method == "amdsmi:energy-counter" and "could not be read at times" in gpu.warnings[0]
    amdsmi.failing = {}
    assert_watts(gpu, 400)


def test_how_busy_it_was_is_no_figure_to_warn_of(amdsmi: FakeAmdsmi) -> None:
    gpu = opened()[0]
    amdsmi.failing["activity"] = BUSY
    gpu.read_j()
    assert gpu.utilisation_percent is None and gpu.warnings == []
    amdsmi.failing = {}
    gpu.read_j()
    assert gpu.utilisation_percent == 75


def test_a_function_that_this_version_lacks_is_not_asked_for(
    amdsmi: FakeAmdsmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeAmdsmi, "amdsmi_get_energy_count")
    gpu = opened()[0]
    assert_watts(gpu, 400)
    assert gpu.method == "amdsmi:power-integral" and gpu.warnings == []


def test_a_gpu_that_reports_nothing_is_unknown(amdsmi: FakeAmdsmi) -> None:
    amdsmi.failing = {"energy": NOT_SUPPORTED, "power": NOT_SUPPORTED}
    gpu = opened()[0]
    assert gpu.read_j() is None and "neither energy counter nor power" in gpu.warnings[0]


def test_one_gpu_that_cannot_be_opened_leaves_the_others(amdsmi: FakeAmdsmi) -> None:
    amdsmi.failing["uuid of gpu0"] = BUSY
    first, second = open_gpus()
    assert isinstance(first, AbsentMeter) and first.read_j() is None and "AMD GPU 0" in first.warnings[0]
    assert isinstance(second, AmdGpu)
    second.close()
    assert amdsmi.open == 0


def test_the_library_is_shut_down_with_the_last_gpu(amdsmi: FakeAmdsmi) -> None:
    first, second = opened()
    first.close()
    assert amdsmi.open == 1
    second.close()
    assert amdsmi.open == 0


def test_gpus_that_the_library_cannot_read_are_unknown(amdsmi: FakeAmdsmi) -> None:
    amdsmi.failing["init"] = BUSY
    (gpu,) = open_gpus()
    assert isinstance(gpu, AbsentMeter) and gpu.read_j() is None and "their energy is unknown" in gpu.warnings[0]


def test_an_amd_gpu_without_the_package_is_unknown(amdsmi: FakeAmdsmi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)  # an import then fails
    (gpu,) = open_gpus()
    assert isinstance(gpu, AbsentMeter) and gpu.read_j() is None
    assert "install amdsmi" in gpu.warnings[0] and "its energy is unknown" in gpu.warnings[0]


def test_without_the_kernel_driver_there_is_no_amd_gpu(amdsmi: FakeAmdsmi, no_sensors: None) -> None:
    assert open_gpus() == []
