"""What every meter offers: one sensor (or model) of one part of the node, counted since the meter was opened.

A meter knows nothing of jobs. The recorder reads all meters of a node at the same instants and divides what
they counted between two of them (`emissions.attribution`).
"""

from __future__ import annotations

from typing import Protocol

J_PER_KWH = 3.6e6


class Meter(Protocol):
    """One part of the node: all CPU packages, all memory, or one GPU. Opening a meter finds the hardware.

    `read_j` never raises for hardware that fails later: it keeps what it knows and adds a line to `warnings`.
    """

    device: str
    """Name of what is metered."""

    longest_gap_s: float
    """Read at least this often, or energy may be lost."""

    idle_w: float | None
    """Watts that the part draws when nothing runs; None where unknown (a counter does not tell)."""

    warnings: list[str]
    """What a reader of the figure should know, one line each; it only grows."""

    @property
    def method(self) -> str:
        """In the vocabulary of the ledger (`records.is_measured`), for the joules as they stand now."""

    def read_j(self) -> float | None:
        """Joules from opening up to now, never falling; None where they are unknown."""

    def interval_j(self, energy_j: float, duration_s: float) -> tuple[float, float]:
        """Lowest and highest true energy that `energy_j`, counted over a window of this length, may stand for."""

    def close(self) -> None:
        """Release the hardware."""


class GpuMeter(Meter, Protocol):
    """A GPU, with a second figure beside the first and how busy it was at the last reading."""

    index: int
    uuid: str

    integral_j: float | None
    """Sampled power integrated from opening to the last reading; None where power cannot be read."""

    utilisation_percent: float | None
    memory_gb: float | None

    def divergence(self, energy_j: float, integral_j: float | None, duration_s: float) -> str:
        """A warning where counter and integral of one window disagree by more than both allow, else ""."""


class AbsentMeter:
    """Hardware that is not there: 0 J by definition.

    Hardware that is there but cannot be read (`unread` says why): unknown.
    """

    device = ""
    method = "none"
    longest_gap_s = float("inf")

    def __init__(self, unread: str = "") -> None:
        self._known = not unread
        self.idle_w = 0.0 if self._known else None
        self.warnings = [unread] if unread else []

    def read_j(self) -> float | None:
        return 0.0 if self._known else None

    def interval_j(self, energy_j: float, duration_s: float) -> tuple[float, float]:
        return energy_j, energy_j

    def close(self) -> None:
        pass
