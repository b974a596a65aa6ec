"""Stand-in hardware of known watts (an NVML library, a RAPL tree) and a stand-in for Snakemake's script
object."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

STANDINS = Path(__file__).parent
REPOSITORY = STANDINS.parents[1]


class Stopwatch:
    """Bounds of a metered window by our own clock: a busy machine may pause us between a reading and our
    clock.

    Make it just before the window opens, call `opened()` just after, `closing()` just before it ends.
    """

    def __init__(self) -> None:
        self._before_s = self._opened_s = self._closing_s = time.monotonic()

    def opened(self) -> None:
        self._opened_s = time.monotonic()

    def closing(self) -> None:
        self._closing_s = time.monotonic()

    def assert_joules(self, joules: float | None, watts: float, relative: float = 0.01) -> None:
        """Assert, just after the window has ended, that `joules` is `watts` over a time in its bounds."""
        longest_s = time.monotonic() - self._before_s
        assert joules is not None
        low_j = watts * (self._closing_s - self._opened_s) * (1 - relative)
        high_j = watts * longest_s * (1 + relative)
        assert low_j <= joules <= high_j, f"{joules} J is not in {low_j}..{high_j} J"


def build_nvml(folder: Path) -> Path:
    """Compile the NVML stand-in into `folder`, with an `nvidia-smi` beside it: CodeCarbon looks for both."""
    library = folder / "libnvidia-ml.so.1"
    command = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([*command, "-o", str(library), str(STANDINS / "nvml.c")], check=True)
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    return library


class RaplTree:
    """A powercap tree as sysfs shows it, whose counters run at known watts and wrap at `range_j`.

    Each package has `core` inside it and the machine has `psys`, which a meter must not add to the packages.
    """

    def __init__(
        self,
        folder: Path,
        package_w: tuple[float, ...] = (50.0,),
        dram_w: float | None = None,
        range_j: float = 10.0,
    ) -> None:
        self.folder = folder
        self._range_uj = int(range_j * 1e6)
        self._counters: list[tuple[Path, float]] = []
        for number, watts in enumerate(package_w):
            package = folder / "intel-rapl" / f"intel-rapl:{number}"
            self._add(package, f"package-{number}", watts)
            self._add(package / f"intel-rapl:{number}:0", "core", watts / 2)
            if dram_w is not None:
                self._add(package / f"intel-rapl:{number}:1", "dram", dram_w)
        self._add(folder / "intel-rapl" / f"intel-rapl:{len(package_w)}", "psys", 2 * sum(package_w))
        for domain in sorted((folder / "intel-rapl").rglob("intel-rapl:*")):
            (folder / domain.name).symlink_to(domain)
        self._start_s = time.monotonic()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _add(self, domain: Path, name: str, watts: float) -> None:
        domain.mkdir(parents=True)
        (domain / "name").write_text(name + "\n")
        (domain / "max_energy_range_uj").write_text(f"{self._range_uj}\n")
        self._counters.append((domain / "energy_uj", watts))
        (domain / "energy_uj").write_text("0\n")

    def advance(self, elapsed_s: float | None = None) -> None:
        """Set every counter to the present, or to a time since the tree was made."""
        with self._lock:
            if elapsed_s is None:
                elapsed_s = time.monotonic() - self._start_s
            for path, watts in self._counters:
                temporary = path.with_name("next")
                temporary.write_text(f"{int(elapsed_s * watts * 1e6) % self._range_uj}\n")
                temporary.replace(path)  # a reader sees the old number or the new one, never half of one

    def _run(self) -> None:
        while not self._stopping.wait(0.003):
            self.advance()

    def __enter__(self) -> RaplTree:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()


class Named(list[Any]):
    """Behaves as Snakemake's Namedlist: a list of values, each also an attribute."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values.values())
        self.__dict__.update(values)

    def get(self, name: str, default: Any = None) -> Any:
        return self.__dict__.get(name, default)


def fake_snakemake(results: Path, item: str = "unet-nano-ct-2d-64-x1-s0", **changes: Any) -> Any:
    """The object that a `script:` of rule `train_diffusion` gets, with its files under `results`."""
    folder = results / "models" / item
    files = {
        "record": str(folder / "emissions" / "train_diffusion.json"),
        "trace": str(folder / "emissions" / "train_diffusion.power.parquet"),
        "codecarbon": str(folder / "emissions" / "train_diffusion.codecarbon.csv"),
    }
    plan = {"family": "unet", "size": "nano", "spatial_dims": 2, "resolution": 64, "devices": 1, "seed": 0}
    values = {
        "rule": "train_diffusion",
        "input": Named(),
        "output": Named(**files),
        "params": Named(plan=plan),
        "wildcards": Named(model=item),
        "threads": 1,
        "resources": Named(),
        "log": Named(log=str(folder / "logs" / "train_diffusion.log")),
        "config": {"metering": {"interval_s": 0.1, "cpu_tdp_w": None, "ram_w": None}},
    }
    return SimpleNamespace(**{**values, **changes})


def standin_environment(nvml_folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a process that finds the NVML stand-in, as a container with one GPU driver would."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FAKE_NVML")}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    environment |= {
        "LD_LIBRARY_PATH": str(nvml_folder),
        "PATH": f"{nvml_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    return environment | settings
