"""Stand-in hardware of known watts (an NVML library, a RAPL tree) and a stand-in for Snakemake's script object."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.standins.rapl import RaplTree as RaplTree  # beside the other stand-ins

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
    subprocess.run([*command, "-o", str(library), str(STANDINS / "nvml.c"), "-lm", "-lpthread"], check=True)
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    return library


@dataclass(frozen=True)
class PowerProfile:
    """What the NVML stand-in's GPUs draw: for each GPU, its watts from given seconds after `start_s` on.

    Attributes:
        points: for each GPU, pairs of seconds and watts, sorted; 0 W before the first.
        start_s: `time.monotonic()` at which all times begin.
        period_s: all profiles repeat after so long; None: the last watts stay.
        options: other lines of the stand-in's file, as `{"counter_update_ms": 100}` (see nvml.c).
    """

    points: Sequence[Sequence[tuple[float, float]]]
    start_s: float
    period_s: float | None = None
    options: Mapping[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """For FAKE_NVML_FILE, in one step: a process may be reading it."""
        lines = [f"{name} {value!r}" for name, value in self.options.items()]
        lines += [f"start_s {self.start_s!r}", f"period_s {self.period_s or 0!r}"]
        lines += [f"{gpu} {s!r} {watts!r}" for gpu, points in enumerate(self.points) for s, watts in points]
        temporary = path.with_name(f"{path.name}.next")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(path)

    def joules(self, gpu: int, from_s: float, to_s: float) -> float:
        """Exact energy of a GPU between two instants of `time.monotonic()`."""
        return self._total_j(gpu, to_s - self.start_s) - self._total_j(gpu, from_s - self.start_s)

    def _total_j(self, gpu: int, s: float) -> float:
        if not self.period_s:
            return self._once_j(gpu, s)
        periods, rest_s = divmod(max(s, 0.0), self.period_s)
        return periods * self._once_j(gpu, self.period_s) + self._once_j(gpu, rest_s)

    def _once_j(self, gpu: int, s: float) -> float:
        starts = [at_s for at_s, _ in self.points[gpu]]
        ends = [*starts[1:], float("inf")]
        watts = [watts for _, watts in self.points[gpu]]
        return sum(w * (min(end, s) - start) for w, start, end in zip(watts, starts, ends, strict=True) if start < s)


def with_powercap(folder: Path, command: Sequence[str]) -> list[str]:
    """`command` in a mount namespace of its own, where `folder` is /sys/class/powercap.

    Where the machine has no such folder, nothing else is in /sys/class there.

    Raises:
        RuntimeError: where this user may not make one.
    """
    mount = """
        if ! [ -d /sys/class/powercap ]; then mount -t tmpfs none /sys/class; mkdir /sys/class/powercap; fi
        mount --bind "$0" /sys/class/powercap
        exec "$@"
    """
    inside = [
        "unshare",
        "--mount",
        *([] if os.geteuid() == 0 else ["--map-root-user"]),
        "sh",
        "-ec",
        mount,
        str(folder),
    ]
    tried = subprocess.run([*inside, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise RuntimeError(f"a mount namespace needs root or user namespaces: {tried.stderr.strip()}")
    return [*inside, *command]


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
    """The environment of a process that finds the NVML stand-in, as a container with one GPU driver would.

    Settings are variables, of the stand-in (FAKE_NVML_...) or of the project (FOOTPRINT_RUNTIME_DIR).
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FAKE_NVML")}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    environment |= {
        "LD_LIBRARY_PATH": str(nvml_folder),
        "PATH": f"{nvml_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    return environment | settings
