from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emissions import recorder
from emissions.meters import Meters
from emissions.meters.base import J_PER_KWH, AbsentMeter
from emissions.meters.nvml import open_nvml
from emissions.meters.ram import ModelRamMeter
from emissions.meters.rapl import RaplMeter
from emissions.recorder import Recorder, Recording, write_trace
from tests.standins.hardware import RaplTree, Stopwatch


class Breaking:
    """A meter whose driver dies after two readings."""

    method = "rapl"
    devices = ("CPU",)
    longest_gap_s = float("inf")

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._readings = 0

    def start(self) -> None:
        pass

    def read_j(self) -> float:
        self._readings += 1
        if self._readings > 2:
            raise RuntimeError("driver died")
        return 10.0 * self._readings

    def interval_j(self) -> tuple[float, float]:
        return 10.0, 30.0

    def idle_j(self) -> float | None:
        return None

    def close(self) -> None:
        raise RuntimeError("driver is dead")


def record(meters: Meters, seconds: float, interval_s: float = 0.1) -> Recording:
    watch = Recorder(meters, interval_s)
    watch.start()
    time.sleep(seconds)
    return watch.stop()


def test_known_watts_of_every_component(
    gpus: pytest.MonkeyPatch, tmp_path: Path, advanced_on_read: Callable[[RaplTree], RaplTree]
) -> None:
    advanced_on_read(RaplTree(tmp_path, package_w=(50.0,), dram_w=8.0, range_j=30.0))  # wraps every 0.6 s
    meters = Meters(RaplMeter("package", tmp_path), open_nvml(), RaplMeter("dram", tmp_path))
    recorder_, watch = Recorder(meters, 1.0), Stopwatch()
    recorder_.start()
    watch.opened()
    time.sleep(1.5)
    watch.closing()
    recording = recorder_.stop()
    for part, watts in ((recording.cpu, 50), (recording.gpu, 510), (recording.ram, 8), (recording, 568)):
        assert part.energy_kwh is not None
        watch.assert_joules(part.energy_kwh * J_PER_KWH, watts)
    assert recording.energy_low_kwh < recording.energy_kwh < recording.energy_high_kwh
    assert recording.idle_kwh is None  # counters do not tell
    # on a busy machine the thread may wake late for a counter that wraps this often, and then says so
    assert all("counters were not read for" in text for text in recording.warnings)
    assert recording.ended_at - recording.started_at == timedelta(seconds=recording.duration_s)


def test_the_trace_adds_up_to_the_energy(gpus: pytest.MonkeyPatch) -> None:
    recording = record(Meters(AbsentMeter(), open_nvml(), ModelRamMeter(20.0)), 0.73)
    assert 6 <= len(recording.trace) <= 8
    before, joules = recording.started_at, 0.0
    for row in recording.trace:
        assert row.gpu_w == pytest.approx(510, rel=0.02) and row.ram_w == pytest.approx(20, rel=0.02)
        joules += (row.gpu_w or 0) * (row.time - before).total_seconds()
        before = row.time
    assert joules == pytest.approx((recording.gpu.energy_kwh or 0) * J_PER_KWH, rel=1e-4)
    assert abs((recording.ended_at - before).total_seconds()) < 0.01


def test_a_window_shorter_than_the_interval_has_one_row() -> None:
    recording = record(Meters(AbsentMeter(), AbsentMeter(), ModelRamMeter(20.0)), 0.05, interval_s=1.0)
    assert len(recording.trace) == 1
    assert recording.ram.energy_kwh == pytest.approx(20 * recording.duration_s / J_PER_KWH, rel=0.1)
    assert recording.idle_kwh == recording.energy_kwh


def test_a_meter_that_dies_becomes_one_warning() -> None:
    recording = record(Meters(Breaking(), AbsentMeter(), ModelRamMeter(20.0)), 0.5)
    assert recording.cpu.energy_kwh == pytest.approx(20 / J_PER_KWH)
    assert [text for text in recording.warnings if "driver died" in text] == [recording.warnings[0]]
    assert recording.ram.energy_kwh == pytest.approx(20 * recording.duration_s / J_PER_KWH, rel=0.1)


def test_unknown_energy_is_none_and_not_zero() -> None:
    unread = AbsentMeter("an AMD GPU is present and is not metered")
    recording = record(Meters(AbsentMeter(), unread, ModelRamMeter(20.0)), 0.25)
    assert recording.gpu.energy_kwh is None and recording.idle_kwh is None
    assert {row.gpu_w for row in recording.trace} == {None}
    assert recording.warnings == ("an AMD GPU is present and is not metered",)


def test_a_clock_that_is_set_changes_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        shift = timedelta(0)

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(UTC) + cls.shift

    monkeypatch.setattr(recorder, "datetime", Clock)
    watch = Recorder(Meters(AbsentMeter(), AbsentMeter(), ModelRamMeter(20.0)), 0.1)
    watch.start()
    Clock.shift = timedelta(hours=-1)
    time.sleep(0.2)
    recording = watch.stop()
    assert 0.2 <= recording.duration_s < 1
    assert recording.ended_at > recording.started_at
    assert "clock was set by -3600 s" in recording.warnings[0]


def test_the_trace_is_parquet_with_utc_times_and_nulls(tmp_path: Path) -> None:
    recording = record(Meters(AbsentMeter(), AbsentMeter("unread"), ModelRamMeter(20.0)), 0.3)
    path = tmp_path / "stage.power.parquet"
    write_trace(path, recording.trace)
    table = pq.read_table(path)
    assert table.column_names == ["time", "cpu_w", "gpu_w", "ram_w"]
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"
    assert table["gpu_w"].null_count == table.num_rows == len(recording.trace)
    assert table["time"].to_pylist() == [row.time for row in recording.trace]
