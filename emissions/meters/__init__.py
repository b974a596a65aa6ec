"""The meters of a machine, one small file each, all with the interface of `base.Meter`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from emissions.meters import codecarbon, rapl
from emissions.meters.base import AbsentMeter, Meter
from emissions.meters.model import ModelCpuMeter
from emissions.meters.nvml import open_nvml
from emissions.meters.ram import ModelRamMeter

logger = logging.getLogger(__name__)

SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 0.1, 10.0


class Meters(NamedTuple):
    """One meter per component of the ledger."""

    cpu: Meter
    gpu: Meter
    ram: Meter


@dataclass(frozen=True)
class MeterSettings:
    """Plain values, so that they can be handed to another process.

    None: CodeCarbon's own default for this machine.
    """

    interval_s: float = 1.0
    cpu_tdp_w: float | None = None
    ram_w: float | None = None

    @classmethod
    def from_config(cls, metering: Mapping[str, Any]) -> MeterSettings:
        """From the config's `metering` section. Raises ValueError naming the key."""
        interval_s = metering.get("interval_s", cls.interval_s)
        if not _is_number(interval_s) or not SHORTEST_INTERVAL_S <= interval_s <= LONGEST_INTERVAL_S:
            raise ValueError(
                f"config metering.interval_s is {interval_s!r}; expected 0.1 to 10 (seconds between readings)"
            )
        for key in ("cpu_tdp_w", "ram_w"):
            value = metering.get(key)
            if value is not None and (not _is_number(value) or value <= 0):
                raise ValueError(f"config metering.{key} is {value!r}; expected watts above 0, or null")
        return cls(float(interval_s), metering.get("cpu_tdp_w"), metering.get("ram_w"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def open_meters(settings: MeterSettings) -> Meters:
    """The best meter that this machine offers for each component.

    Never raises: what fails is a warning of the meter.
    """
    return Meters(open_cpu(settings, rapl.POWERCAP_FOLDER), _open_gpu(), open_ram(settings, rapl.POWERCAP_FOLDER))


def open_cpu(settings: MeterSettings, powercap_folder: Path) -> Meter:
    """RAPL packages where they can be read, else the load model with a warning that says how to do better."""
    warnings: list[str] = []
    try:
        return rapl.RaplMeter("package", powercap_folder)
    except PermissionError as error:
        warnings.append(f"CPU energy is modelled: no permission to read {error.filename}; {rapl.PERMISSION_ADVICE}")
    except FileNotFoundError:
        pass  # no RAPL here, as in most virtual machines
    except (OSError, ValueError) as error:
        warnings.append(f"CPU energy is modelled: RAPL cannot be read ({error})")
    return ModelCpuMeter(settings.cpu_tdp_w or codecarbon.default_cpu_tdp_w(), warnings)


def open_ram(settings: MeterSettings, powercap_folder: Path) -> Meter:
    """The DRAM domain of RAPL where it can be read, else constant watts."""
    try:
        return rapl.RaplMeter("dram", powercap_folder)
    except (OSError, ValueError):  # the CPU's meter has said why
        return ModelRamMeter(settings.ram_w or codecarbon.default_ram_w())


def _open_gpu() -> Meter:
    gpu = open_nvml()
    if isinstance(gpu, AbsentMeter) and not gpu.warnings and Path("/dev/kfd").exists():
        return AbsentMeter("an AMD GPU is present and is not metered; its energy is unknown")
    return gpu
