from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions.meters import MeterSettings, model, ram
from emissions.meters.model import ModelCpuMeter
from emissions.meters.ram import ModelRamMeter


class Machine:
    """A clock and CPU times that a test sets."""

    def __init__(self, cpus: int = 4) -> None:
        self.now_s, self.busy_s, self.cpus = 1000.0, 500.0, cpus
        self.time = SimpleNamespace(monotonic=lambda: self.now_s)
        self.psutil = SimpleNamespace(cpu_times=self._times, cpu_count=lambda: self.cpus)

    def _times(self) -> Any:
        waiting_s = 3 * self.now_s  # idle, waiting and stolen time are not load
        return SimpleNamespace(user=self.busy_s / 2, system=self.busy_s / 2, idle=waiting_s, iowait=waiting_s, steal=9)

    def run(self, seconds: float, load: float) -> None:
        self.now_s += seconds
        self.busy_s += seconds * load * self.cpus


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    for module in (model, ram):
        monkeypatch.setattr(module, "time", machine.time)
    monkeypatch.setattr(model, "psutil", machine.psutil)
    return machine


@pytest.mark.parametrize(("load", "watts"), [(0.0, 10.0), (0.5, 55.0), (1.0, 100.0)])
def test_cpu_power_is_linear_from_a_tenth_to_all_of_the_tdp(machine: Machine, load: float, watts: float) -> None:
    meter = ModelCpuMeter(tdp_w=100.0)
    machine.run(60.0, load)
    assert meter.read_j() == pytest.approx(watts * 60)
    assert meter.interval_j() == pytest.approx((600, 6000))
    assert meter.idle_j() == pytest.approx(600)


def test_what_ran_before_the_window_is_not_counted(machine: Machine) -> None:
    meter = ModelCpuMeter(tdp_w=100.0)
    machine.run(60.0, 1.0)
    meter.start()
    machine.run(10.0, 0.0)
    assert meter.read_j() == pytest.approx(100.0)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1)), min_size=1, max_size=20), st.integers(1, 128))
def test_cpu_energy_does_not_depend_on_the_sampling(intervals: list[tuple[float, float]], cpus: int) -> None:
    machine = Machine(cpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "time", machine.time)
        patch.setattr(model, "psutil", machine.psutil)
        often, once = ModelCpuMeter(100.0), ModelCpuMeter(100.0)
        before_j = 0.0
        for seconds, load in intervals:
            machine.run(seconds, load)
            now_j = often.read_j()
            assert now_j >= before_j
            before_j = now_j
        expected_j = sum(100 * (0.1 + 0.9 * load) * seconds for seconds, load in intervals)
        assert before_j == pytest.approx(once.read_j()) == pytest.approx(expected_j)


def test_ram_is_constant_watts(machine: Machine) -> None:
    meter = ModelRamMeter(power_w=20.0)
    machine.run(30.0, 1.0)
    assert meter.read_j() == pytest.approx(600) == meter.idle_j()
    assert meter.interval_j() == pytest.approx((300, 900))


def test_settings_come_from_the_config() -> None:
    assert MeterSettings.from_config({}) == MeterSettings(1.0, None, None)
    given_ = {"interval_s": 0.1, "cpu_tdp_w": 65, "ram_w": 12.5}
    assert MeterSettings.from_config(given_) == MeterSettings(0.1, 65, 12.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interval_s", 0),
        ("interval_s", 11),
        ("interval_s", "1"),
        ("interval_s", True),
        ("cpu_tdp_w", -5),
        ("ram_w", 0),
    ],
)
def test_bad_settings_name_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"metering\.{key}"):
        MeterSettings.from_config({key: value})
