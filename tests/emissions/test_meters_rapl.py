from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from emissions.meters import rapl
from emissions.meters.rapl import RaplMeter
from tests.standins.hardware import REPOSITORY, RaplTree, Stopwatch, with_powercap

Connect = Callable[[RaplTree], RaplTree]


class Clock:
    """A tree and the meters' clock, moved together."""

    def __init__(self, tree: RaplTree, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree, self.now_s = tree, 0.0
        monkeypatch.setattr(rapl, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def to(self, now_s: float) -> None:
        self.now_s = now_s
        self.tree.advance(now_s)


def assert_watts(meter: RaplMeter, watts: float, seconds: float) -> None:
    """Read for so long, assert that the joules are `watts` over that time within 1 %."""
    watch = Stopwatch()
    before_j = meter.read_j()
    watch.opened()
    for _ in range(round(seconds / meter.longest_gap_s)):
        time.sleep(meter.longest_gap_s)
        watch.closing()
        joules = meter.read_j() - before_j
    watch.assert_joules(joules, watts)


@pytest.mark.parametrize(
    ("kind", "watts", "method", "device"),
    [
        ("package", 50 + 70, "rapl", "2 x "),
        ("dram", 8 + 8, "rapl:dram", "RAM"),
        ("psys", 2 * (50 + 70), "rapl:psys", "platform"),
    ],
)
def test_domains_of_a_kind_are_added_and_what_is_inside_them_is_not(
    tmp_path: Path, advanced_on_read: Connect, kind: str, watts: float, method: str, device: str
) -> None:
    advanced_on_read(RaplTree(tmp_path, package_w=(50.0, 70.0), dram_w=8.0, range_j=150.0))
    meter = RaplMeter(kind, tmp_path, idle_w=12.0)
    assert_watts(meter, watts, 0.4)
    assert (meter.method, meter.idle_w, meter.warnings) == (method, 12.0, [])
    assert meter.device.startswith(device)


def test_the_same_counters_by_another_way_are_not_added(tmp_path: Path, advanced_on_read: Connect) -> None:
    advanced_on_read(RaplTree(tmp_path, range_j=150.0))
    mmio = tmp_path / "intel-rapl-mmio:0"
    mmio.mkdir()
    (mmio / "name").write_text("package-0\n")
    (mmio / "energy_uj").symlink_to(tmp_path / "intel-rapl:0" / "energy_uj")
    assert_watts(RaplMeter("package", tmp_path), 50, 0.3)


@pytest.mark.parametrize(
    ("names", "counters_uj", "counted"),
    [
        (["package-0-die-0", "package-0-die-1"], [50_000_000, 50_000_900], 1),  # both show the package
        (["package-0-die-0", "package-0-die-1"], [50_000_000, 70_000_000], 2),
        (["package-0-die-0", "package-1-die-0"], [50_000_000, 50_000_900], 2),
        (["package-0", "package-1"], [50_000_000, 50_000_900], 2),
    ],
)
def test_a_package_that_each_of_its_dies_shows_is_counted_once(
    tmp_path: Path, names: list[str], counters_uj: list[int], counted: int
) -> None:
    domains = [tmp_path / f"intel-rapl:{number}" for number in range(len(names))]
    for domain, name, counter_uj in zip(domains, names, counters_uj, strict=True):
        domain.mkdir()
        (domain / "name").write_text(name)
        (domain / "energy_uj").write_text(str(counter_uj))
    meter = RaplMeter("package", tmp_path)
    for domain, counter_uj in zip(domains, counters_uj, strict=True):
        (domain / "energy_uj").write_text(str(counter_uj + 10_000_000))
    assert meter.read_j() == pytest.approx(10.0 * counted)


def test_joules_count_from_the_opening(tmp_path: Path) -> None:
    tree = RaplTree(tmp_path, range_j=1000.0)
    tree.advance(10.0)
    meter = RaplMeter("package", tmp_path)
    assert meter.read_j() == 0.0
    tree.advance(10.5)
    assert meter.read_j() == pytest.approx(25.0)


def test_every_wrap_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(RaplTree(tmp_path, package_w=(1000.0,), range_j=300.0), monkeypatch)  # wraps every 0.3 s
    meter = RaplMeter("package", tmp_path)
    for step in range(1, 101):
        clock.to(0.25 * step)  # 25 s, 83 wraps, never two between readings
        joules = meter.read_j()
    assert joules == pytest.approx(1000 * 25, rel=1e-6)
    assert meter.warnings == []


def test_wraps_that_passed_unseen_are_inferred_and_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(RaplTree(tmp_path, package_w=(200.0,), range_j=1000.0), monkeypatch)  # wraps every 5 s
    meter = RaplMeter("package", tmp_path)
    for now_s in (0.4, 0.8, 1.2):
        clock.to(now_s)
        meter.read_j()
    for now_s in (64.0, 128.0):  # 12 wraps unseen, twice
        clock.to(now_s)
        assert meter.read_j() == pytest.approx(200 * now_s, rel=1e-6)
    assert len(meter.warnings) == 1
    assert "62.8 s" in meter.warnings[0] and "inferred from its mean power" in meter.warnings[0]


def test_a_late_reading_without_a_wrap_is_not_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(RaplTree(tmp_path, package_w=(200.0,), range_j=1000.0), monkeypatch)
    meter = RaplMeter("package", tmp_path)
    for now_s in (0.5, 3.0):  # later than a wrap at 1 kW, and no wrap at 200 W
        clock.to(now_s)
        joules = meter.read_j()
    assert joules == pytest.approx(600.0) and meter.warnings == []


def test_a_late_first_reading_says_that_wraps_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(RaplTree(tmp_path, package_w=(200.0,), range_j=1000.0), monkeypatch)
    meter = RaplMeter("package", tmp_path)
    clock.to(11.0)
    assert meter.read_j() == pytest.approx(200.0)  # 2200 J less two wraps
    assert len(meter.warnings) == 1 and "wraps may be missing" in meter.warnings[0]


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


def test_a_counter_that_begins_again_is_not_taken_for_a_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(RaplTree(tmp_path, package_w=(100.0,), range_j=262_143.3), monkeypatch)
    clock.to(1000.0)
    meter = RaplMeter("package", tmp_path)
    clock.to(1001.0)
    assert meter.read_j() == pytest.approx(100.0)
    clock.now_s = 1002.0
    clock.tree.advance(0.5)  # the machine slept: its counter begins at 0, and the monotonic clock did not run
    assert meter.read_j() == pytest.approx(100.0) and "went backwards" in meter.warnings[0]
    clock.now_s = 1003.0
    clock.tree.advance(1.5)
    assert meter.read_j() == pytest.approx(200.0)


def test_a_reading_that_fails_is_made_up_by_the_next(tmp_path: Path) -> None:
    RaplTree(tmp_path, range_j=1000.0)
    counter = tmp_path / "intel-rapl" / "intel-rapl:0" / "energy_uj"
    meter = RaplMeter("package", tmp_path)
    counter.write_text("")
    assert meter.read_j() == 0.0
    assert meter.read_j() == 0.0
    counter.write_text("7000000\n")
    assert meter.read_j() == pytest.approx(7.0)
    assert len(meter.warnings) == 1 and "could not be read" in meter.warnings[0]


def test_the_interval_is_wider_for_memory(tmp_path: Path) -> None:
    RaplTree(tmp_path, dram_w=5.0)
    assert RaplMeter("package", tmp_path).interval_j(100.0, 10.0) == pytest.approx((95, 105))
    assert RaplMeter("dram", tmp_path).interval_j(100.0, 10.0) == pytest.approx((80, 120))


@pytest.mark.parametrize("kind", ["package", "dram", "psys"])
def test_no_rapl_is_said_so(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match=kind):
        RaplMeter(kind, tmp_path / "none")


def test_a_mounted_folder_is_named_by_the_environment(tmp_path: Path) -> None:
    RaplTree(tmp_path)
    code = "from emissions.meters.rapl import RaplMeter; print(RaplMeter('package').method)"
    environment = os.environ | {"FOOTPRINT_POWERCAP": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout == "rapl\n", done.stderr


METER_SCRIPT = """
import time
from emissions.meters.rapl import RaplMeter
start_s = time.monotonic()
meter = RaplMeter("package")
while time.monotonic() - start_s < 1:
    time.sleep(0.02)
    joules = meter.read_j()
print(joules, time.monotonic() - start_s, meter.warnings)
"""


def test_the_stand_in_runs_as_a_process_and_can_be_mounted(tmp_path: Path) -> None:
    """Read at the kernel's own path: the counters of `python -m tests.standins.rapl`, through their wraps."""
    command = [sys.executable, "-m", "tests.standins.rapl", str(tmp_path), "--package-w", "90", "60", "--range-j", "30"]
    tree = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert tree.stdin is not None and tree.stdout is not None and tree.stdout.readline() == "ready\n"
    environment = {name: value for name, value in os.environ.items() if name != "FOOTPRINT_POWERCAP"}
    inside = with_powercap(tmp_path, [sys.executable, "-c", METER_SCRIPT])
    done = subprocess.run(inside, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    tree.stdin.close()
    assert tree.wait(10) == 0
    tree.stdout.close()
    assert done.returncode == 0, done.stderr
    joules, seconds, warnings = done.stdout.split(maxsplit=2)
    assert float(joules) == pytest.approx(150 * float(seconds), rel=0.05)
    assert warnings.strip() == "[]"
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()  # nothing is mounted out here


def test_a_namespace_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mount namespace"):
        with_powercap(tmp_path / "missing", ["true"])
