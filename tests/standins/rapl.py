"""A stand-in for the kernel's powercap tree, with counters of known watts.

In a test: `RaplTree`. For other processes to read: `python -m tests.standins.rapl FOLDER --package-w 50 --range-j 50`,
which says "ready" and runs until its standard input ends. Mounted over /sys/class/powercap
(`hardware.with_powercap`), the tree is read by CodeCarbon as it is.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from types import TracebackType


class RaplTree:
    """A powercap tree as sysfs shows it, whose counters run at known watts and all wrap at once.

    The package that draws most wraps at `range_j`.

    Each package has `core` inside it and the machine has `psys`, which a meter must not add to the packages.
    """

    def __init__(
        self,
        folder: Path,
        package_w: tuple[float, ...] = (50.0,),
        dram_w: float | None = None,
        range_j: float = 10.0,
        update_s: float = 0.003,
    ) -> None:
        self.folder = folder
        self._wrap_s = range_j / max(package_w)
        self._update_s = update_s
        self._counters: list[tuple[Path, float, int]] = []
        for number, watts in enumerate(package_w):
            package = f"intel-rapl:{number}"
            self._add(package, f"package-{number}", watts)
            self._add(f"{package}/{package}:0", "core", watts / 2)
            if dram_w is not None:
                self._add(f"{package}/{package}:1", "dram", dram_w)
        self._add(f"intel-rapl:{len(package_w)}", "psys", 2 * sum(package_w))
        (folder / "intel-rapl" / "subsystem").symlink_to("..")
        self._start_s = time.monotonic()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _add(self, place: str, name: str, watts: float) -> None:
        domain = self.folder / "intel-rapl" / place
        domain.mkdir(parents=True)
        (domain / "name").write_text(name + "\n")
        range_uj = round(self._wrap_s * watts * 1e6)
        (domain / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self._counters.append((domain / "energy_uj", watts, range_uj))
        (domain / "energy_uj").write_text("0\n")
        (self.folder / domain.name).symlink_to(
            Path("intel-rapl") / place
        )  # relative: the tree may be mounted elsewhere

    def advance(self, elapsed_s: float | None = None) -> None:
        """Set every counter to the present, or to a time since the tree was made."""
        with self._lock:
            if elapsed_s is None:
                elapsed_s = time.monotonic() - self._start_s
            for path, watts, range_uj in self._counters:
                temporary = path.with_name("next")
                temporary.write_text(f"{int(elapsed_s * watts * 1e6) % range_uj}\n")
                temporary.replace(path)  # a reader sees the old number or the new one, never half of one

    def _run(self) -> None:
        while not self._stopping.wait(self._update_s):
            self.advance()

    def __enter__(self) -> RaplTree:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package-w", type=float, nargs="+", default=[50.0], help="watts of each package")
    parser.add_argument("--dram-w", type=float, help="watts of each package's memory; without it, no such domain")
    parser.add_argument("--range-j", type=float, default=50.0, help="joules at which the package that draws most wraps")
    parser.add_argument("--update-ms", type=float, default=5.0, help="step of the counters")
    given = parser.parse_args()
    with RaplTree(given.folder, tuple(given.package_w), given.dram_w, given.range_j, given.update_ms / 1000):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
