from __future__ import annotations

import time
from pathlib import Path

import pytest

from emissions.meters.base import AbsentMeter, Meter
from emissions.meters.nvml import COUNTER_METHOD, INTEGRAL_METHOD, NvmlMeter, open_nvml
from tests.standins.hardware import Stopwatch


def opened() -> NvmlMeter:
    meter = open_nvml()
    assert isinstance(meter, NvmlMeter)
    return meter


def assert_watts(meter: Meter, watts: float, seconds: float, readings: int = 5, relative: float = 0.01) -> float:
    """Meter a window, assert that its joules are `watts` over its time, and return them."""
    watch = Stopwatch()
    meter.start()
    watch.opened()
    for _ in range(readings):
        time.sleep(seconds / readings)
        watch.closing()
        joules = meter.read_j()
    watch.assert_joules(joules, watts, relative)
    meter.close()
    assert joules is not None
    return joules


def test_counter_of_two_gpus_is_added_up_not_averaged(gpus: pytest.MonkeyPatch) -> None:
    meter = opened()
    time.sleep(0.1)  # what passed before the window is not its own
    joules = assert_watts(meter, 510, 0.5)
    assert meter.method == COUNTER_METHOD and meter.warnings == []
    assert meter.devices == ("Stand-in GPU",) * 2
    for gpu, watts in zip(meter.gpus, (250, 260), strict=True):  # both figures are kept
        assert gpu.counter_j == pytest.approx(joules * watts / 510, rel=0.02)
        assert gpu.integral_j == pytest.approx(joules * watts / 510, rel=0.02)


@pytest.mark.parametrize(
    ("visible", "watts"),
    [
        ("1", 260),
        ("1,0", 510),
        ("GPU-00000001", 260),
        ("GPU-00000000-0000-0000-0000-000000000000,1", 510),
        ("0,7,1", 250),  # as in CUDA, the first invalid entry ends the list
        ("1,-1,0", 260),
    ],
)
def test_only_visible_gpus_are_metered(gpus: pytest.MonkeyPatch, visible: str, watts: float) -> None:
    gpus.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert_watts(opened(), watts, 0.2, readings=2)


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_no_visible_gpu_is_no_gpu(gpus: pytest.MonkeyPatch, visible: str) -> None:
    gpus.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = open_nvml()
    assert isinstance(meter, AbsentMeter) and meter.read_j() == 0.0 and meter.warnings == []


def test_a_mig_slice_is_unknown_and_not_zero(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    meter = open_nvml()
    assert meter.read_j() is None and "MIG" in meter.warnings[0]


def test_no_driver_is_no_gpu(no_sensors: None) -> None:
    meter = open_nvml()
    assert meter.method == "none" and meter.read_j() == 0.0 and meter.devices == ()


def test_without_counter_power_is_integrated(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_NO_COUNTER", "1")
    meter = opened()
    assert_watts(meter, 510, 0.5)
    assert meter.method == INTEGRAL_METHOD and meter.warnings == []


def test_without_power_the_counter_stands_alone(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_NO_POWER", "1")
    meter = opened()
    assert_watts(meter, 510, 0.3)
    assert meter.method == COUNTER_METHOD and meter.warnings == []


def test_a_gpu_with_neither_says_so(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_NO_POWER", "1")
    gpus.setenv("FAKE_NVML_NO_COUNTER", "1")
    meter = opened()
    assert_watts(meter, 0, 0.1)
    assert len(meter.warnings) == 2 and "neither counter nor power" in meter.warnings[0]


def test_counter_and_integral_that_differ_are_flagged(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_WATTS", "250")
    gpus.setenv("FAKE_NVML_COUNTER_GAIN", "1.5")
    meter = opened()
    assert_watts(meter, 375, 0.8)
    assert len(meter.warnings) == 1 and "disagree" in meter.warnings[0]


def test_a_slow_counter_is_not_a_disagreement_and_lies_in_the_interval(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_UPDATE_MS", "100")
    meter = opened()
    joules = assert_watts(meter, 510, 0.55, relative=0.2)  # at worst a step of 0.1 s is missing
    assert meter.warnings == []
    low_j, high_j = meter.interval_j()
    assert low_j <= 510 * 0.55 <= high_j and low_j < joules < high_j


def test_a_counter_that_starts_again_costs_no_energy(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = tmp_path / "state"
    gpus.setenv("FAKE_NVML_STATE", str(state))
    meter = opened()
    watch = Stopwatch()
    meter.start()
    watch.opened()
    for step in range(6):
        time.sleep(0.1)
        if step == 2:
            state.write_text("reset")
        watch.closing()
        joules = meter.read_j()
    watch.assert_joules(joules, 510, relative=0.02)
    assert any("went backwards" in text for text in meter.warnings)


def test_an_outage_of_the_counter_is_bridged_and_made_up(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = tmp_path / "state"
    gpus.setenv("FAKE_NVML_STATE", str(state))
    meter = opened()
    watch = Stopwatch()
    meter.start()
    watch.opened()
    for word in ("", "busy", "busy", ""):
        state.write_text(word)
        time.sleep(0.1)
        watch.closing()
        watch.assert_joules(meter.read_j(), 510, relative=0.03)
    assert any("could not be read at times" in text for text in meter.warnings)


def test_a_lost_gpu_keeps_what_was_measured(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = tmp_path / "state"
    gpus.setenv("FAKE_NVML_STATE", str(state))
    meter = opened()
    watch = Stopwatch()
    meter.start()
    watch.opened()
    time.sleep(0.3)
    watch.closing()
    before_j = meter.read_j()
    watch.assert_joules(before_j, 510, relative=0.02)
    state.write_text("lost")
    time.sleep(0.1)
    assert meter.read_j() == before_j
    meter.close()
    assert sum("disappeared" in text for text in meter.warnings) == 2
