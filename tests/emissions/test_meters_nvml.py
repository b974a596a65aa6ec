from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions.meters.base import AbsentMeter
from emissions.meters.nvml import NvmlGpu, open_gpus, visible_gpus
from tests.standins.hardware import PowerProfile, Stopwatch

UUIDS = ["GPU-00000000-0000-0000-0000-000000000000", "GPU-00000001-0000-0000-0000-000000000000"]


def opened() -> list[NvmlGpu]:
    gpus = open_gpus(idle_w=30.0)
    assert all(isinstance(gpu, NvmlGpu) for gpu in gpus)
    return gpus  # type: ignore[return-value]


def only(gpus: pytest.MonkeyPatch, watts: str = "250") -> NvmlGpu:
    gpus.setenv("FAKE_NVML_WATTS", watts)
    (gpu,) = opened()
    return gpu


def assert_watts(
    gpu: NvmlGpu, watts: float, states: Sequence[str] = ("",) * 5, state: Path | None = None, relative: float = 0.01
) -> float:
    """Read a GPU every 0.1 s, in these states of the stand-in, assert that it drew `watts`, and return the joules."""
    before_j = gpu.read_j()
    assert before_j is not None
    watch = Stopwatch()
    gpu.read_j()
    watch.opened()
    last_j = before_j
    for word in states:
        if state is not None:
            state.write_text(word)
        time.sleep(0.1)
        watch.closing()
        now_j = gpu.read_j()
        assert now_j is not None and now_j >= last_j
        last_j = now_j
        watch.assert_joules(now_j - before_j, watts, relative)
    return last_j - before_j


def test_each_gpu_counts_for_itself_from_its_opening(gpus: pytest.MonkeyPatch) -> None:
    first, second = opened()
    assert (first.index, first.uuid, second.index, second.uuid) == (0, UUIDS[0], 1, UUIDS[1])
    assert (first.device, first.method, first.idle_w) == ("Stand-in GPU", "nvml:energy-counter", 30.0)
    assert_watts(first, 250)
    assert_watts(second, 260)
    for gpu in (first, second):
        joules = gpu.read_j()
        assert joules is not None and gpu.integral_j == pytest.approx(joules, rel=0.02)  # both figures are kept
        assert gpu.warnings == []


def test_how_busy_it_was_is_known_from_the_last_reading(gpus: pytest.MonkeyPatch) -> None:
    gpu = only(gpus)
    assert gpu.utilisation_percent == 50.0
    assert gpu.memory_gb == pytest.approx(2**30 / 1e9)


def test_cuda_visible_devices_plays_no_role_in_opening(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(opened()) == 2


def test_no_driver_is_no_gpu(no_sensors: None) -> None:
    assert open_gpus() == []


def test_a_driver_without_gpu_is_no_gpu(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_WATTS", "")
    assert open_gpus() == []


def test_a_library_without_driver_is_no_gpu(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_INIT_ERROR", str(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    assert open_gpus() == []


def test_gpus_that_nvml_cannot_read_are_unknown_and_not_zero(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_INIT_ERROR", str(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    (gpu,) = open_gpus()
    assert isinstance(gpu, AbsentMeter) and gpu.read_j() is None
    assert "their energy is unknown" in gpu.warnings[0]


def test_one_gpu_that_cannot_be_opened_leaves_the_others(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("lost 0")
    gpus.setenv("FAKE_NVML_STATE", str(tmp_path / "state"))
    before = pynvml._nvmlLib_refcount
    first, second = open_gpus()
    assert isinstance(first, AbsentMeter) and first.read_j() is None and "GPU 0 cannot be read" in first.warnings[0]
    assert isinstance(second, NvmlGpu)
    assert_watts(second, 260)
    second.close()
    assert pynvml._nvmlLib_refcount == before


def test_the_library_is_shut_down_with_the_last_gpu(gpus: pytest.MonkeyPatch) -> None:
    before = pynvml._nvmlLib_refcount
    first, second = opened()
    first.close()
    assert pynvml._nvmlLib_refcount == before + 1
    second.close()
    assert pynvml._nvmlLib_refcount == before


def test_without_counter_power_is_integrated(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_NO_COUNTER", "1")
    gpu = only(gpus)
    assert_watts(gpu, 250)
    assert gpu.method == "nvml:power-integral" and gpu.warnings == []


def test_without_power_the_counter_stands_alone(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_NO_POWER", "1")
    gpu = only(gpus)
    assert_watts(gpu, 250)
    assert (gpu.method, gpu.integral_j, gpu.warnings) == ("nvml:energy-counter", None, [])


def test_a_gpu_with_neither_is_unknown(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_NO_POWER", "1")
    gpus.setenv("FAKE_NVML_NO_COUNTER", "1")
    gpu = only(gpus)
    assert gpu.read_j() is None and gpu.method == "none"
    assert len(gpu.warnings) == 1 and "neither energy counter nor power" in gpu.warnings[0]


def test_between_two_samples_power_is_taken_to_change_evenly(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus.setenv("FAKE_NVML_NO_COUNTER", "1")
    gpus.setenv("FAKE_NVML_FILE", str(tmp_path / "profile"))
    start_s = time.monotonic()
    PowerProfile([[(0.0, 100.0), (0.3, 300.0)]], start_s).write(tmp_path / "profile")
    (gpu,) = opened()
    opened_s = time.monotonic()
    time.sleep(start_s + 0.4 - opened_s)
    joules, seconds = gpu.read_j(), time.monotonic() - opened_s
    assert joules == pytest.approx((100 + 300) / 2 * seconds, rel=0.05)


def test_power_that_changes_is_followed_by_frequent_samples(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = PowerProfile([[(0.0, 100.0), (0.5, 300.0)]], start_s=time.monotonic(), period_s=1.0)
    profile.write(tmp_path / "profile")
    gpus.setenv("FAKE_NVML_FILE", str(tmp_path / "profile"))
    (gpu,) = opened()
    start_s, end_s = time.monotonic(), 0.0
    while end_s - start_s < 1.3:
        time.sleep(0.005)
        joules, end_s = gpu.read_j(), time.monotonic()
    assert joules == pytest.approx(profile.joules(0, start_s, end_s), rel=0.02)
    assert gpu.integral_j == pytest.approx(joules, rel=0.03)  # exact for constant power, right on average at steps


def test_a_counter_in_steps_of_a_tenth_of_a_second_lies_in_the_interval(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_UPDATE_MS", "100")
    gpu = only(gpus)
    start_s, before_j = time.monotonic(), gpu.read_j()
    time.sleep(0.53)
    seconds, after_j = time.monotonic() - start_s, gpu.read_j()
    assert before_j is not None and after_j is not None
    joules = after_j - before_j
    low_j, high_j = gpu.interval_j(joules, seconds)
    assert low_j <= 250 * seconds <= high_j and low_j < joules < high_j
    assert gpu.divergence(joules, 250 * seconds, seconds) == ""


def test_the_interval_is_gain_and_a_step_at_each_edge(gpus: pytest.MonkeyPatch) -> None:
    gpu = only(gpus)
    assert gpu.interval_j(1000.0, 10.0) == pytest.approx((1000 - 50 - 20, 1000 + 50 + 20))
    assert gpu.interval_j(1000.0, 0.05) == pytest.approx((0, 2050))  # a window shorter than a step: 0 is possible
    assert gpu.interval_j(0.0, 0.0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("integral_j", "seconds", "named"),
    [
        (1040.0, 100.0, False),  # 5 % of the larger is allowed
        (1060.0, 100.0, True),
        (940.0, 100.0, True),
        (900.0, 1.0, False),  # so is 0.2 s of power
        (700.0, 1.0, True),
        (None, 100.0, False),  # no second figure
    ],
)
def test_counter_and_integral_that_differ_are_named(
    gpus: pytest.MonkeyPatch, integral_j: float | None, seconds: float, named: bool
) -> None:
    text = only(gpus).divergence(1000.0, integral_j, seconds)
    assert bool(text) is named
    if named:
        assert f"GPU 0 ({UUIDS[0]})" in text and "1000.0 J" in text and f"{integral_j:.1f} J" in text


def test_a_counter_that_starts_again_costs_no_energy(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus.setenv("FAKE_NVML_STATE", str(tmp_path / "state"))
    gpu = only(gpus)
    assert_watts(gpu, 250, ("", "", "reset", "", ""), tmp_path / "state", relative=0.02)
    assert any("went backwards" in text for text in gpu.warnings)


def test_an_outage_of_the_counter_is_bridged_and_made_up(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus.setenv("FAKE_NVML_STATE", str(tmp_path / "state"))
    gpu = only(gpus)
    assert_watts(gpu, 250, ("", "busy", "busy", ""), tmp_path / "state", relative=0.03)
    assert len(gpu.warnings) == 1 and "energy counter could not be read at times" in gpu.warnings[0]


def test_energy_does_not_fall_when_the_bridge_was_too_high(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = PowerProfile([[(0.0, 250.0)]], start_s=time.monotonic(), options={"power_gain": 2.0})
    profile.write(tmp_path / "profile")
    gpus.setenv("FAKE_NVML_FILE", str(tmp_path / "profile"))
    state = tmp_path / "state"
    gpus.setenv("FAKE_NVML_STATE", str(state))
    (gpu,) = opened()
    joules = []
    for word in ("", "busy", "busy", "", ""):
        state.write_text(word)
        time.sleep(0.05)
        joules.append(gpu.read_j() or 0.0)
    assert joules == sorted(joules)
    start_s = time.monotonic()
    while time.monotonic() - start_s < 0.3:  # by then the counter has caught up
        time.sleep(0.02)
        last_j = gpu.read_j()
    assert last_j == pytest.approx(profile.joules(0, profile.start_s, time.monotonic()), rel=0.1)


def test_a_lost_gpu_keeps_what_was_measured(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = tmp_path / "state"
    gpus.setenv("FAKE_NVML_STATE", str(state))
    lost, other = opened()
    assert_watts(lost, 250, relative=0.02)
    before_j = lost.read_j()
    state.write_text("lost 0")
    time.sleep(0.1)
    after_j = lost.read_j()
    time.sleep(0.1)
    assert after_j == lost.read_j() == pytest.approx(before_j, rel=0.1)
    assert len(lost.warnings) == 1 and "disappeared" in lost.warnings[0] and UUIDS[0] in lost.warnings[0]
    assert_watts(other, 260)


def test_mig_is_named_with_its_gpu(gpus: pytest.MonkeyPatch) -> None:
    gpus.setenv("FAKE_NVML_MIG", "1")
    whole, sliced = opened()
    assert whole.warnings == []
    assert len(sliced.warnings) == 1 and UUIDS[1] in sliced.warnings[0] and "MIG slice" in sliced.warnings[0]
    assert sliced.utilisation_percent is None  # as NVML: not offered in this mode
    assert_watts(sliced, 260)


GPUS = list(enumerate(UUIDS))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [1]),
        ("1,0", [1, 0]),
        (" 1 , 0 ", [1, 0]),
        ("0,0", [0]),
        ("GPU-00000001", [1]),
        (f"{UUIDS[0]},1", [0, 1]),
        ("0,7,1", [0]),  # as in CUDA, the first invalid entry ends the list
        ("0,,1", [0]),
        ("1,-1,0", [1]),
        ("GPU-0000000", []),  # of two GPUs: invalid
    ],
)
def test_a_process_sees_what_cuda_lets_it_see(visible: str | None, expected: list[int]) -> None:
    assert visible_gpus(visible, GPUS) == ([UUIDS[index] for index in expected], [])


def test_a_mig_slice_is_not_taken_for_its_gpu() -> None:
    uuids, warnings = visible_gpus("MIG-1234,1", GPUS)
    assert uuids == [UUIDS[1]]
    assert len(warnings) == 1 and "MIG-1234" in warnings[0] and "not counted" in warnings[0]


@given(st.text(alphabet="0123GPU-, ", max_size=20))
def test_no_value_makes_up_a_gpu_or_names_one_twice(visible: str) -> None:
    uuids, warnings = visible_gpus(visible, GPUS)
    assert len(set(uuids)) == len(uuids) and set(uuids) <= set(UUIDS) and warnings == []


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 500)), min_size=1, max_size=5, unique_by=lambda point: point[0]),
    st.floats(0.5, 20),
    st.floats(0, 30),
    st.floats(0, 30),
    st.floats(0, 30),
)
def test_the_joules_of_a_profile_add_up(
    points: list[tuple[float, float]], period_s: float, a_s: float, b_s: float, c_s: float
) -> None:
    profile = PowerProfile([sorted(points)], start_s=5.0, period_s=period_s)
    whole_j = profile.joules(0, a_s, c_s)
    assert whole_j == pytest.approx(profile.joules(0, a_s, b_s) + profile.joules(0, b_s, c_s), abs=1e-6)
    assert profile.joules(0, 0.0, 5.0) == 0.0  # nothing before its start


@pytest.mark.parametrize(
    ("options", "counter", "power_w"),
    [
        ({}, 1.0, 300.0),
        ({"counter_gain": 1.05, "power_gain": 0.95}, 1.05, 285.0),
        ({"power_average_ms": 60_000.0}, 1.0, 200.0),  # over many periods of 100 and 300 W
    ],
)
def test_the_stand_in_follows_its_profile(
    gpus: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, float], counter: float, power_w: float
) -> None:
    # the period is long against the test, and the test begins in its second half
    profile = PowerProfile([[(0.0, 100.0), (5.0, 300.0)]], time.monotonic() - 3006.0, period_s=10.0, options=options)
    profile.write(tmp_path / "profile")
    gpus.setenv("FAKE_NVML_FILE", str(tmp_path / "profile"))
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    expected_j = profile.joules(0, profile.start_s, time.monotonic())
    assert millijoules / 1000 == pytest.approx(expected_j * counter, rel=1e-4)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) / 1000 == pytest.approx(power_w, rel=0.01)


def test_the_stand_in_s_counter_moves_in_its_steps(gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profile = PowerProfile([[(0.0, 100.0)]], start_s=0.0, options={"counter_update_ms": 100.0})
    profile.write(tmp_path / "profile")
    gpus.setenv("FAKE_NVML_FILE", str(tmp_path / "profile"))
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    for _ in range(20):
        joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        assert joules / 10.0 == pytest.approx(round(joules / 10.0), abs=1e-3)  # 0.1 s of 100 W
        time.sleep(0.013)
