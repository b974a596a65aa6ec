"""CPU packages and DRAM by the kernel's powercap tree (RAPL: Intel since Sandy Bridge, AMD since Zen).

Package domains already hold their cores and uncore, and `psys` holds the packages: only packages are added
up, and DRAM is its own component. Counters wrap at `max_energy_range_uj`; wraps are counted as long as the
counter is read once per wrap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from emissions.meters.model import cpu_model_name

POWERCAP_FOLDER = Path("/sys/class/powercap")
PERMISSION_ADVICE = "to measure it: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj (until the next boot)"

# Half a wrap at this power per domain is the longest time between two readings: more than any package draws.
LARGEST_POWER_W = 1000.0
SHORTEST_GAP_S = 0.05

# Our choices; no vendor states a figure. DRAM is the wider: against instrumented memory it follows the trend
# with an offset that varies between systems and is worst at idle (Desrochers et al., "A Validation of DRAM
# RAPL Power Measurements", MEMSYS 2016).
RELATIVE_ERROR = {"package": 0.05, "dram": 0.20}
_METHOD = {"package": "rapl", "dram": "rapl:dram"}
_DOMAIN_FOLDER = re.compile(r"intel-rapl(:\d+){1,2}")  # not intel-rapl-mmio: the same counters by another way


@dataclass
class _Domain:
    counter: Path
    range_uj: int  # 0: unknown
    last_uj: int
    total_uj: int = 0


class RaplMeter:
    """The sum of all domains of one kind, "package" or "dram".

    Raises on opening: FileNotFoundError without such a domain, PermissionError where the counters are root's
    (the default of kernels since 5.10).
    """

    def __init__(self, kind: str, folder: Path = POWERCAP_FOLDER) -> None:
        self.kind = kind
        self.method = _METHOD[kind]
        self.warnings: list[str] = []
        self._domains = [_open_domain(path) for path in _domain_folders(kind, folder)]
        if not self._domains:
            raise FileNotFoundError(f"{folder}: no RAPL domain of kind {kind}")
        self.devices = (cpu_model_name(),) * len(self._domains) if kind == "package" else ("RAM",)
        ranges_j = [domain.range_uj * 1e-6 for domain in self._domains if domain.range_uj]
        self.longest_gap_s = max(min(ranges_j, default=float("inf")) / 2 / LARGEST_POWER_W, SHORTEST_GAP_S)
        self._energy_j = 0.0

    def start(self) -> None:
        for domain in self._domains:
            self._advance(domain)
            domain.total_uj = 0
        self._energy_j = 0.0

    def read_j(self) -> float:
        for domain in self._domains:
            self._advance(domain)
        self._energy_j = sum(domain.total_uj for domain in self._domains) * 1e-6
        return self._energy_j

    def _advance(self, domain: _Domain) -> None:
        try:
            now_uj = _read_uj(domain.counter)
        except (OSError, ValueError) as error:
            self._warn(f"RAPL counter {domain.counter} could not be read in the window ({error})")
            return  # the next good reading covers this time too
        delta_uj = now_uj - domain.last_uj
        if delta_uj < 0:
            delta_uj += domain.range_uj
        if delta_uj < 0:  # backwards by more than a wrap, or no known range
            self._warn(f"RAPL counter {domain.counter} went backwards; the energy since its last reading is missing")
            delta_uj = 0
        domain.last_uj = now_uj
        domain.total_uj += delta_uj

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def interval_j(self) -> tuple[float, float]:
        error = RELATIVE_ERROR[self.kind]
        return self._energy_j * (1 - error), self._energy_j * (1 + error)

    def idle_j(self) -> float | None:
        return None  # a counter does not say what an idle machine would have used

    def close(self) -> None:
        pass


def _domain_folders(kind: str, folder: Path) -> list[Path]:
    found: dict[Path, Path] = {}  # by real path: sysfs lists a domain flat and nested
    for path in sorted(folder.glob("intel-rapl:*")):
        if not _DOMAIN_FOLDER.fullmatch(path.name):
            continue
        name = (path / "name").read_text().strip()
        if name == kind or name.startswith(f"{kind}-"):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _open_domain(path: Path) -> _Domain:
    counter = path / "energy_uj"
    try:
        range_uj = _read_uj(path / "max_energy_range_uj")
    except (OSError, ValueError):
        range_uj = 0
    return _Domain(counter, range_uj, _read_uj(counter))


def _read_uj(path: Path) -> int:
    return int(path.read_text())
