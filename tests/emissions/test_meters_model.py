from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emissions.meters import model, processor, ram
from emissions.meters.model import ModelCpuMeter, busy_s
from emissions.meters.processor import Processor, default_tdp
from emissions.meters.ram import ModelRamMeter, default_ram_w, heuristic_w


class Machine:
    """A clock and CPU times that a test sets."""

    def __init__(self, patch: pytest.MonkeyPatch, cpus: int = 4) -> None:
        self.now_s, self.busy_s, self.cpus = 1000.0, 500.0, cpus
        for module in (model, ram):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        patch.setattr(model, "busy_s", lambda: self.busy_s)
        patch.setattr(model.os, "cpu_count", lambda: self.cpus)

    def run(self, seconds: float, load: float) -> None:
        self.now_s += seconds
        self.busy_s += seconds * load * self.cpus


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(("load", "watts"), [(0.0, 10.0), (0.5, 55.0), (1.0, 100.0)])
def test_cpu_power_is_linear_from_a_tenth_to_all_of_the_tdp(machine: Machine, load: float, watts: float) -> None:
    meter = ModelCpuMeter(tdp_w=100.0)
    machine.run(60.0, load)
    assert meter.read_j() == pytest.approx(watts * 60)
    assert meter.interval_j(watts * 60, 60.0) == pytest.approx((600, 6000))
    # of an idle machine, with a clock beside the meter's that says a little more or less
    assert meter.interval_j(599.0, 60.0) == (599.0, pytest.approx(6000))
    assert meter.interval_j(6001.0, 60.0) == (pytest.approx(600), 6001.0)
    assert meter.idle_w == pytest.approx(10.0)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1)), min_size=1, max_size=20), st.integers(1, 128))
def test_cpu_energy_does_not_depend_on_the_sampling(intervals: list[tuple[float, float]], cpus: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, cpus)
        often, once = ModelCpuMeter(100.0), ModelCpuMeter(100.0)
        before_j = 0.0
        for seconds, load in intervals:
            machine.run(seconds, load)
            now_j = often.read_j()
            assert now_j >= before_j
            before_j = now_j
        expected_j = sum(100 * (0.1 + 0.9 * load) * seconds for seconds, load in intervals)
        assert before_j == pytest.approx(once.read_j()) == pytest.approx(expected_j)


def test_cpu_energy_does_not_fall_where_the_kernel_s_sums_do(machine: Machine) -> None:
    meter = ModelCpuMeter(100.0)
    machine.run(10.0, 0.5)
    before_j = meter.read_j()
    machine.busy_s -= 3.0
    assert meter.read_j() == before_j


def test_where_the_tdp_comes_from_is_said() -> None:
    assert ModelCpuMeter(100.0).basis == "config metering.cpu_tdp_w"
    default = ModelCpuMeter(warnings=["no permission"])
    assert (default.tdp_w, default.basis) == default_tdp()
    assert default.warnings == ["no permission"] and ModelCpuMeter(100.0).warnings == []


def test_busy_time_is_what_psutil_calls_busy() -> None:
    def by_psutil_s() -> float:
        times = psutil.cpu_times()
        return float(times.user + times.nice + times.system + times.irq + times.softirq)

    before_s = by_psutil_s()
    ours_s = busy_s()
    assert before_s - 0.02 <= ours_s <= by_psutil_s() + 0.02


def test_waiting_and_stolen_time_is_not_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    #                user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text("cpu  1000 200 300 99999 88888 40 5 77777 600 100\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    monkeypatch.setattr(model, "STAT", stat)
    assert busy_s() == pytest.approx(1545 / os.sysconf("SC_CLK_TCK"))


def test_busy_time_without_proc_is_psutil_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_s = busy_s()
    monkeypatch.setattr(model, "STAT", tmp_path / "none")
    assert busy_s() == pytest.approx(real_s, abs=1.0)


CPUINFO = """processor	: {index}
model name	: {name}
physical id	: {socket}
siblings	: {siblings}
cpu cores	: {cores}
flags		: fpu vme{hypervisor} sse2

"""


def cpuinfo(folder: Path, name: str, *, sockets: int = 1, cores: int = 2, smt: int = 2, virtual: bool = False) -> Path:
    path = folder / "cpuinfo"
    path.write_text(
        "".join(
            CPUINFO.format(
                index=index,
                name=name,
                socket=index % sockets,
                siblings=cores * smt,
                cores=cores,
                hypervisor=" hypervisor" if virtual else "",
            )
            for index in range(sockets * cores * smt)
        )
    )
    return path


def test_the_processor_is_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz"
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo(tmp_path, name, sockets=2, cores=20))
    assert processor.processor() == Processor(name, threads=80, sockets=2, threads_per_core=2)
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo(tmp_path, name, cores=4, smt=1, virtual=True))
    assert processor.processor() == Processor(name, threads=4, is_virtual=True)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert processor.processor().threads == os.cpu_count()


@pytest.mark.parametrize(
    ("cpu", "watts"),
    [  # TDPs are those of CodeCarbon's table
        (Processor("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", 40, threads_per_core=2), 150),
        (Processor("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", 80, sockets=2, threads_per_core=2), 300),
        (Processor("13th Gen Intel(R) Core(TM) i9-13900K", 32), 125),
        (Processor("AMD Ryzen 9 5950X 16-Core Processor", 32, threads_per_core=2), 105),
        # a virtual machine owns its share of the physical processor
        (Processor("AMD EPYC 7763 64-Core Processor", 4, threads_per_core=2, is_virtual=True), 280 * 4 / 128),
        (Processor("AMD EPYC 7763 64-Core Processor", 4, threads_per_core=1, is_virtual=True), 280 * 4 / 64),
        (Processor("AMD EPYC 7763 64-Core Processor", 192, 2, 2, is_virtual=True), 280 * 192 / 128),
        (Processor("AMD EPYC 7763 64-Core Processor", 300, 1, 2, is_virtual=True), 280),
        # its cores are not in the name: at most 4 W per logical CPU
        (Processor("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", 4, is_virtual=True), 16),
        (Processor("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", 64, is_virtual=True), 150),
        # not in the table, and nothing like it is taken for it
        (Processor("AMD EPYC", 2, is_virtual=True), 8),
        (Processor("AMD EPYC 77", 16), 64),
        (Processor("", 16), 64),
    ],
)
def test_the_tdp_is_looked_up_by_name(cpu: Processor, watts: float) -> None:
    assert default_tdp(cpu).watts == pytest.approx(watts)


@pytest.mark.parametrize(
    "table", ["", "Name,TDP\n", "Other,Columns\nAMD EPYC 7763,280\n", "Name,TDP\nAMD EPYC 7763,?\n"]
)
def test_a_table_that_cannot_be_read_is_no_table(tmp_path: Path, table: str) -> None:
    (tmp_path / "cpu_power.csv").write_text(table)
    for path in (tmp_path / "cpu_power.csv", tmp_path / "none.csv"):
        assert default_tdp(Processor("AMD EPYC 7763 64-Core Processor", 8), path).watts == 32


def test_ram_is_constant_watts(machine: Machine) -> None:
    meter = ModelRamMeter(ram_w=20.0)
    machine.run(30.0, 1.0)
    assert meter.read_j() == pytest.approx(600)
    assert meter.interval_j(600, 30.0) == pytest.approx((300, 900))
    assert (meter.idle_w, meter.method) == (20.0, "model:W per DIMM")


def test_the_watts_of_memory_are_codecarbon_s(monkeypatch: pytest.MonkeyPatch) -> None:
    import codecarbon.external.ram

    monkeypatch.setattr(
        codecarbon.external.ram, "SLURM_JOB_ID", None
    )  # it then takes the job's memory, we the machine's
    theirs = codecarbon.external.ram.RAM(tracking_mode="machine")
    assert default_ram_w() == ModelRamMeter().power_w == pytest.approx(theirs.total_power().W)
    for is_arm in (False, True):
        theirs.is_arm_cpu = is_arm
        for gib in (0.5, 2, 3, 8, 23, 32, 48, 64, 100, 128, 129, 200, 256, 384, 500, 512, 1000, 1500, 2048, 6000):
            assert heuristic_w(gib, is_arm) == pytest.approx(theirs._calculate_ram_power(gib)), gib
