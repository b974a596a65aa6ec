"""The meters of a node, one small file each, all with the interface of `base.Meter`."""

from __future__ import annotations

from typing import Any, NamedTuple

from emissions.meters import amd, nvml
from emissions.meters.base import AbsentMeter, GpuMeter, Meter
from emissions.meters.model import ModelCpuMeter
from emissions.meters.ram import ModelRamMeter
from emissions.meters.rapl import RaplMeter, permission_advice
from emissions.meters.settings import MeterSettings
from emissions.meters.simulated import SimulatedGpu, SimulatedMeter

__all__ = ["MeterSettings", "Meters", "open_meters"]


class Meters(NamedTuple):
    """All meters of a node. `psys` holds the CPU and more: for comparison, never added to the others."""

    cpu: Meter
    ram: Meter
    gpus: list[GpuMeter | AbsentMeter]
    psys: Meter


def open_meters(settings: MeterSettings) -> Meters:
    """The best meter that this machine offers for each component, or the simulated one that the config names.

    Never raises: what fails is a warning of the meter.
    """
    simulated = settings.simulated or {}
    return Meters(
        _open_cpu(settings, simulated), _open_ram(settings, simulated), _open_gpus(settings, simulated), _open_psys()
    )


def _open_cpu(settings: MeterSettings, simulated: dict[str, Any]) -> Meter:
    """RAPL packages where they can be read, else the load model with a warning that says how to do better."""
    if "cpu_w" in simulated:
        return SimulatedMeter("simulated CPU", simulated["cpu_w"], settings.cpu_idle_w)
    warnings: list[str] = []
    try:
        return RaplMeter("package", idle_w=settings.cpu_idle_w)
    except PermissionError as error:
        warnings.append(f"CPU energy is modelled: {permission_advice(error.filename)}")
    except FileNotFoundError:
        pass  # no RAPL here, as in most virtual machines
    except (OSError, ValueError) as error:
        warnings.append(f"CPU energy is modelled: RAPL cannot be read ({error})")
    return ModelCpuMeter(settings.cpu_tdp_w, warnings)


def _open_ram(settings: MeterSettings, simulated: dict[str, Any]) -> Meter:
    """The DRAM domain of RAPL where it can be read, else constant watts."""
    if "ram_w" in simulated:
        return SimulatedMeter("simulated RAM", simulated["ram_w"], simulated["ram_w"])
    try:
        return RaplMeter("dram")
    except (OSError, ValueError):  # the CPU's meter has said why
        return ModelRamMeter(settings.ram_w)


def _open_gpus(settings: MeterSettings, simulated: dict[str, Any]) -> list[GpuMeter | AbsentMeter]:
    if "gpu_w" in simulated:
        return [SimulatedGpu(index, watts, settings.gpu_idle_w) for index, watts in enumerate(simulated["gpu_w"])]
    return [*nvml.open_gpus(settings.gpu_idle_w), *amd.open_gpus(settings.gpu_idle_w)]


def _open_psys() -> Meter:
    try:
        return RaplMeter("psys")
    except (OSError, ValueError):  # laptops and desktops have it, servers hardly
        return AbsentMeter()
