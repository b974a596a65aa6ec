"""CPU packages, DRAM and the platform by the kernel's powercap tree (RAPL: Intel since Sandy Bridge, AMD since Zen).

Package domains already hold their cores and uncore, and `psys` holds the packages: only packages are added up, and
DRAM and psys are meters of their own. Counters wrap at `max_energy_range_uj`; wraps are counted as long as the counter
is read once per wrap, and inferred from the mean power so far where a reading comes later.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from emissions.meters.processor import processor_name

# The variable is for containers that mount the host's /sys/class/powercap elsewhere.
POWERCAP_FOLDER = Path(os.environ.get("FOOTPRINT_POWERCAP") or "/sys/class/powercap")

# Half a wrap at this power per domain is the longest time between two readings: more than any package draws.
LARGEST_POWER_W = 1000.0
SHORTEST_GAP_S = 0.05

# Our choices; no vendor states a figure. DRAM is wide: against instrumented memory it follows the trend with an
# offset that varies between systems and is worst at idle (Desrochers et al., "A Validation of DRAM RAPL Power
# Measurements", MEMSYS 2016). What psys holds is the board maker's choice.
RELATIVE_ERROR = {"package": 0.05, "dram": 0.20, "psys": 0.20}
_METHOD = {"package": "rapl", "dram": "rapl:dram", "psys": "rapl:psys"}
# Dies of one package (AMD's, of several dies) may each show the counter of the whole package. Read one after the other,
# two such readings are this close; counters of their own, of thousands of joules, hardly ever are.
MIRROR_UJ = 1_000_000


def permission_advice(counter: str) -> str:
    """How to make a counter readable that is root's alone, as all are since Linux 5.10."""
    return (
        f"no permission to read {counter}; to measure, until the next boot: sudo chmod a+r {counter}, and so for the "
        "other intel-rapl:*; for good, write into /etc/udev/rules.d/70-rapl.rules: "
        'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"'
    )


@dataclass
class _Domain:
    name: str
    counter: Path
    range_uj: int  # 0: unknown
    last_uj: int
    last_s: float
    total_uj: int = 0


class RaplMeter:
    """The sum of all domains of one kind: "package", "dram" or "psys".

    Raises on opening: FileNotFoundError without such a domain, PermissionError where the counters are root's.
    """

    def __init__(self, kind: str, folder: Path | None = None, idle_w: float | None = None) -> None:
        self.kind = kind
        self.method = _METHOD[kind]
        self.idle_w = idle_w
        self.warnings: list[str] = []
        folder = folder or POWERCAP_FOLDER
        self._start_s = time.monotonic()
        self._domains = _open_domains(kind, folder)
        if not self._domains:
            raise FileNotFoundError(f"{folder}: no RAPL domain of kind {kind}")
        self.device = self._device_name()
        ranges_j = [domain.range_uj * 1e-6 for domain in self._domains if domain.range_uj]
        self.longest_gap_s = max(min(ranges_j, default=float("inf")) / 2 / LARGEST_POWER_W, SHORTEST_GAP_S)

    def read_j(self) -> float:
        for domain in self._domains:
            self._advance(domain)
        return sum(domain.total_uj for domain in self._domains) * 1e-6

    def interval_j(self, energy_j: float, duration_s: float) -> tuple[float, float]:
        error = RELATIVE_ERROR[self.kind]
        return energy_j * (1 - error), energy_j * (1 + error)

    def close(self) -> None:
        pass

    def _device_name(self) -> str:
        if self.kind != "package":
            return {"dram": "RAM", "psys": "platform"}[self.kind]
        return processor_name() if len(self._domains) == 1 else f"{len(self._domains)} x {processor_name()}"

    def _advance(self, domain: _Domain) -> None:
        try:
            now_uj, now_s = _read_now(domain.counter)
        except (OSError, ValueError) as error:
            self._warn(f"RAPL counter {domain.counter} could not be read at times ({error})")
            return  # the next good reading covers this time too
        gap_s = now_s - domain.last_s
        delta_uj = _wrapped_uj(domain, now_uj, gap_s)
        if delta_uj is None:
            self._warn(f"RAPL counter {domain.counter} went backwards; the energy since its last reading is missing")
            delta_uj = 0
        elif gap_s > 2 * self.longest_gap_s and domain.range_uj:
            delta_uj += self._missed_wraps(domain, gap_s, delta_uj) * domain.range_uj
        domain.last_uj, domain.last_s = now_uj, now_s
        domain.total_uj += delta_uj

    def _missed_wraps(self, domain: _Domain, gap_s: float, delta_uj: int) -> int:
        """How many whole wraps passed unseen, if the domain went on drawing its mean power since opening."""
        unread = f"RAPL counter {domain.counter} was not read for {gap_s:.1f} s"
        seen_s = domain.last_s - self._start_s
        if domain.total_uj == 0 or seen_s <= 0:
            self._warn(f"{unread}; whole wraps may be missing")
            return 0
        wraps = max(round((domain.total_uj / seen_s * gap_s - delta_uj) / domain.range_uj), 0)
        if wraps:
            self._warn(f"{unread}; the number of its wraps in that time was inferred from its mean power before")
        return wraps

    def _warn(self, text: str) -> None:
        """Once per counter and event: gaps and errors differ in their figures, not in what they mean."""
        event = text.split("(")[0].split(" for ")[0]
        if not any(line.startswith(event) for line in self.warnings):
            self.warnings.append(text)


def _open_domains(kind: str, folder: Path) -> list[_Domain]:
    """All of this kind: sysfs lists nested domains flat too; intel-rapl-mmio:* are the same counters by another way."""
    domains: list[_Domain] = []
    for path in sorted(folder.glob("intel-rapl:*")):
        name = (path / "name").read_text().strip()
        if name == kind or name.startswith(f"{kind}-"):
            domain = _open_domain(path, name)
            if not any(_mirrors(domain, other) for other in domains):
                domains.append(domain)
    return domains


def _open_domain(path: Path, name: str) -> _Domain:
    counter = path / "energy_uj"
    try:
        range_uj = _read_uj(path / "max_energy_range_uj")
    except (OSError, ValueError):
        range_uj = 0
    return _Domain(name, counter, range_uj, _read_uj(counter), time.monotonic())


def _wrapped_uj(domain: _Domain, now_uj: int, gap_s: float) -> int | None:
    """Microjoules since the last reading with at most one wrap; None where the counter has gone back by no wrap.

    A counter of a machine that slept begins again at 0: as a wrap, that would be too much for so short a time.
    """
    delta_uj = now_uj - domain.last_uj
    if delta_uj >= 0:
        return delta_uj
    delta_uj += domain.range_uj
    most_j = LARGEST_POWER_W * (gap_s + SHORTEST_GAP_S)
    return delta_uj if 0 <= delta_uj * 1e-6 <= most_j else None


def _mirrors(domain: _Domain, other: _Domain) -> bool:
    package, die, _ = domain.name.partition("-die-")
    return bool(die) and package == other.name.partition("-die-")[0] and abs(domain.last_uj - other.last_uj) < MIRROR_UJ


def _read_now(counter: Path) -> tuple[int, float]:
    """A counter and when it stood there; read anew where this process was held up in between, which may hide a wrap."""
    for _ in range(3):
        began_s = time.monotonic()
        now_uj = _read_uj(counter)
        now_s = time.monotonic()
        if now_s - began_s < SHORTEST_GAP_S:
            break
    return now_uj, now_s


def _read_uj(path: Path) -> int:
    return int(path.read_text())
