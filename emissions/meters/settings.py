"""What the config says about metering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 0.1, 10.0
SIMULATED_KEYS = ("cpu_w", "ram_w", "gpu_w")


@dataclass(frozen=True)
class MeterSettings:
    """Plain values, so that they can be handed to another process as JSON.

    Attributes:
        interval_s: seconds between readings.
        cpu_tdp_w: watts of the whole CPU at full load, for a modelled one; None: by the processor's name.
        ram_w: watts of all memory, for modelled memory; None: by its size.
        cpu_idle_w: watts of an idle CPU, for a measured one (a modelled one has 10 % of its TDP); None: unknown.
        gpu_idle_w: watts of one idle GPU; None: unknown.
        codecarbon: whether CodeCarbon runs beside.
        simulated: known watts in place of hardware: any of `cpu_w`, `ram_w` and `gpu_w` (a list, one per GPU).
    """

    interval_s: float = 1.0
    cpu_tdp_w: float | None = None
    ram_w: float | None = None
    cpu_idle_w: float | None = None
    gpu_idle_w: float | None = None
    codecarbon: bool = True
    simulated: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError that names the key of the config."""
        if not _is_number(self.interval_s) or not SHORTEST_INTERVAL_S <= self.interval_s <= LONGEST_INTERVAL_S:
            raise _error("interval_s", self.interval_s, "0.1 to 10 (seconds between readings)")
        for key in ("cpu_tdp_w", "ram_w"):
            value = getattr(self, key)
            if value is not None and not (_is_watts(value) and value > 0):
                raise _error(key, value, "watts above 0, or null")
        for key in ("cpu_idle_w", "gpu_idle_w"):
            value = getattr(self, key)
            if value is not None and not _is_watts(value):
                raise _error(key, value, "watts, or null")
        if not isinstance(self.codecarbon, bool):
            raise _error("codecarbon", self.codecarbon, "true or false")
        if self.simulated is not None:
            _check_simulated(self.simulated)

    @classmethod
    def from_config(cls, metering: Mapping[str, Any]) -> MeterSettings:
        """From the config's `metering` section, which may hold other keys too. Raises ValueError naming the key."""
        return cls(**{item.name: metering[item.name] for item in fields(cls) if item.name in metering})

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `MeterSettings(**settings.to_dict())` is the same again."""
        return asdict(self)


def _check_simulated(simulated: Any) -> None:
    if not isinstance(simulated, Mapping) or not set(simulated) <= set(SIMULATED_KEYS):
        raise _error("simulated", simulated, f"a mapping with keys of {', '.join(SIMULATED_KEYS)}, or null")
    for key in ("cpu_w", "ram_w"):
        if key in simulated and not _is_watts(simulated[key]):
            raise _error(f"simulated.{key}", simulated[key], "watts")
    gpu_w = simulated.get("gpu_w", [])
    if not isinstance(gpu_w, list) or not all(_is_watts(watts) for watts in gpu_w):
        raise _error("simulated.gpu_w", gpu_w, "a list of watts, one per GPU")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_watts(value: Any) -> bool:
    return _is_number(value) and 0 <= value < float("inf")


def _error(key: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"config metering.{key} is {value!r}; expected {expected}")
