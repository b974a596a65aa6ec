from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emissions.meters import MeterSettings, open_cpu, open_ram, rapl
from emissions.meters.rapl import RaplMeter
from tests.standins.hardware import RaplTree, Stopwatch


def assert_watts(meter: RaplMeter, watts: float, seconds: float) -> None:
    """Meter a window, assert that its joules are `watts` over its time within 1 %."""
    watch = Stopwatch()
    meter.start()
    watch.opened()
    for _ in range(round(seconds / meter.longest_gap_s)):
        time.sleep(meter.longest_gap_s)
        watch.closing()
        joules = meter.read_j()
    watch.assert_joules(joules, watts)


Connect = Callable[[RaplTree], RaplTree]


def test_packages_are_added_and_what_is_inside_them_is_not(tmp_path: Path, advanced_on_read: Connect) -> None:
    advanced_on_read(RaplTree(tmp_path, package_w=(50.0, 70.0), dram_w=8.0, range_j=150.0))
    assert_watts(RaplMeter("package", tmp_path), 50 + 70, 0.5)
    assert_watts(RaplMeter("dram", tmp_path), 8 + 8, 0.5)


def test_every_wrap_is_counted(tmp_path: Path) -> None:
    tree = RaplTree(tmp_path, package_w=(50.0,), range_j=15.0)  # wraps every 0.3 s
    meter = RaplMeter("package", tmp_path)
    tree.advance(0.1)
    meter.start()
    for step in range(1, 101):
        tree.advance(0.1 + 0.25 * step)  # 25 s, 83 wraps, never two between readings
        joules = meter.read_j()
    assert joules == pytest.approx(50 * 25, rel=1e-6)
    assert meter.warnings == [] and meter.method == "rapl"
    low_j, high_j = meter.interval_j()
    assert low_j < joules < high_j


@pytest.mark.parametrize(("range_j", "gap_s"), [(262_143.3, 131.1), (65_532.6, 32.8), (10.0, 0.05)])
def test_readings_come_twice_per_wrap_at_a_kilowatt(tmp_path: Path, range_j: float, gap_s: float) -> None:
    RaplTree(tmp_path, range_j=range_j)
    assert RaplMeter("package", tmp_path).longest_gap_s == pytest.approx(gap_s, rel=0.01)


def test_a_counter_without_range_that_goes_back_is_named(tmp_path: Path) -> None:
    tree = RaplTree(tmp_path, range_j=1000.0)
    package = tmp_path / "intel-rapl" / "intel-rapl:0"
    (package / "max_energy_range_uj").unlink()
    (package / "energy_uj").write_text("5000000\n")
    meter = RaplMeter("package", tmp_path)
    tree.advance()
    assert meter.read_j() == 0.0 and "went backwards" in meter.warnings[0]


def test_a_reading_that_fails_is_made_up_by_the_next(tmp_path: Path) -> None:
    RaplTree(tmp_path, range_j=1000.0)
    counter = tmp_path / "intel-rapl" / "intel-rapl:0" / "energy_uj"
    meter = RaplMeter("package", tmp_path)
    counter.write_text("")
    assert meter.read_j() == 0.0
    counter.write_text("7000000\n")
    assert meter.read_j() == pytest.approx(7.0)
    assert len(meter.warnings) == 1 and "could not be read" in meter.warnings[0]


def test_no_rapl_is_the_model_without_a_word(tmp_path: Path) -> None:
    settings = MeterSettings(cpu_tdp_w=100.0, ram_w=20.0)
    cpu, ram = open_cpu(settings, tmp_path), open_ram(settings, tmp_path)
    assert (cpu.method, ram.method) == ("model:load x TDP", "model:W per DIMM")
    assert cpu.warnings == ram.warnings == []


def test_denied_permission_is_the_model_and_says_how_to_fix_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RaplTree(tmp_path, dram_w=5.0)
    read: Callable[[Path], int] = rapl._read_uj

    def denied(path: Path) -> int:  # tests may run as root, whom no mode keeps out
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(rapl, "_read_uj", denied)
    settings = MeterSettings(cpu_tdp_w=100.0, ram_w=20.0)
    cpu, ram = open_cpu(settings, tmp_path), open_ram(settings, tmp_path)
    assert (cpu.method, ram.method) == ("model:load x TDP", "model:W per DIMM")
    assert "sudo chmod a+r" in cpu.warnings[0] and "energy_uj" in cpu.warnings[0]


def test_readable_rapl_is_preferred(tmp_path: Path) -> None:
    RaplTree(tmp_path, dram_w=5.0)
    cpu, ram = open_cpu(MeterSettings(), tmp_path), open_ram(MeterSettings(), tmp_path)
    assert (cpu.method, ram.method) == ("rapl", "rapl:dram")
