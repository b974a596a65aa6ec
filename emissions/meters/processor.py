"""The processor as the kernel describes it, and its thermal design power (TDP)."""

from __future__ import annotations

import csv
import importlib.util
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CPUINFO = Path("/proc/cpuinfo")
UNKNOWN_W_PER_THREAD = 4.0  # CodeCarbon's figure for processors that it does not know


@dataclass(frozen=True)
class Processor:
    """What /proc/cpuinfo says; counts are at least 1."""

    name: str
    threads: int  # logical CPUs of the machine
    sockets: int = 1
    threads_per_core: int = 1
    is_virtual: bool = False  # the hypervisor's flag is set


class Tdp(NamedTuple):
    """Thermal design power of all the CPU that this machine has, and where the figure comes from."""

    watts: float
    basis: str


def processor_name() -> str:
    """As the kernel gives it, or the architecture."""
    return processor().name


def processor() -> Processor:
    """This machine's, or what can be said of it where there is no /proc."""
    fallback = platform.processor() or platform.machine()
    threads = os.cpu_count() or 1
    try:
        text = CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return Processor(fallback, threads)
    name = _values(text, "model name") or [fallback]  # ARM kernels give none
    siblings, cores = _values(text, "siblings") or ["1"], _values(text, "cpu cores") or ["1"]
    return Processor(
        name[0],
        len(_values(text, "processor")) or threads,
        len(set(_values(text, "physical id"))) or 1,
        max(int(siblings[0]) // max(int(cores[0]), 1), 1),
        any("hypervisor" in flags.split() for flags in _values(text, "flags")[:1]),
    )


def _values(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}[ \t]*:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)


def default_tdp(cpu: Processor | None = None, table: Path | None = None) -> Tdp:
    """TDP of this machine's CPU by CodeCarbon's table of processors; 4 W per logical CPU if it is not in it.

    Names are compared exactly once trade marks, clock and number of cores are taken off: no guess by similarity.

    A virtual machine owns only its share of the physical processor: its logical CPUs over the processor's threads,
    where the name tells the cores ("64-Core") and the virtual CPUs tell whether a core has one or two threads (a
    hypervisor that hides the second makes the share up to twice too large); else at most 4 W per logical CPU.

    Args:
        cpu: this machine's if None.
        table: CSV with the columns Name and TDP (watts per socket); CodeCarbon's if None.
    """
    cpu = cpu or processor()
    unknown_w = cpu.threads * UNKNOWN_W_PER_THREAD
    per_thread = f"{UNKNOWN_W_PER_THREAD:g} W for each of {cpu.threads} logical CPUs"
    socket_w = _table_w(cpu.name, table or _codecarbon_table())
    if socket_w is None:
        return Tdp(unknown_w, f"{per_thread} ({cpu.name} is not in CodeCarbon's table)")
    known = f"{socket_w:g} W of {cpu.name} in CodeCarbon's table"
    if not cpu.is_virtual:
        return Tdp(socket_w * cpu.sockets, f"{known} x {cpu.sockets} socket(s)")
    cores = re.search(r"(\d+)-Core", cpu.name)
    if cores is None:
        return Tdp(
            min(socket_w * cpu.sockets, unknown_w),
            f"at most {per_thread} (a virtual machine; {known} is of the physical processor)",
        )
    physical_threads = int(cores.group(1)) * cpu.threads_per_core
    share = min(cpu.threads / physical_threads, cpu.sockets)
    return Tdp(socket_w * share, f"{known} x {cpu.threads} of its {physical_threads} threads (a virtual machine)")


def _table_w(name: str, table: Path | None) -> float | None:
    if table is None:
        return None
    wanted = _cleaned(name)
    try:
        header, *lines = table.read_text(encoding="utf-8").splitlines()
        # 5000 names take 20 ms to clean, in the recorder's start
        candidates = [line for line in lines if all(word in line.lower() for word in wanted.split())]
        rows = csv.DictReader([header, *candidates])
        return next((float(row["TDP"]) for row in rows if _cleaned(row["Name"]) == wanted), None)
    except (OSError, ValueError, KeyError):  # another version of CodeCarbon may keep it elsewhere or otherwise
        return None


def _cleaned(name: str) -> str:
    """As "intel core i9-13900k" of "13th Gen Intel(R) Core(TM) i9-13900K CPU @ 3.00GHz"."""
    marks = r"\((R|TM)\)|@.*|\bwith Radeon.*|\b\d+th Gen\b|\b\d+-Core\b|\b(CPU|Processor)\b"
    name = re.sub(marks, " ", name, flags=re.IGNORECASE)
    return " ".join(name.lower().split())


def _codecarbon_table() -> Path | None:
    """Found without importing CodeCarbon, which costs 0.1 s."""
    package = importlib.util.find_spec("codecarbon")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "data" / "hardware" / "cpu_power.csv"
