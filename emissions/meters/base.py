"""What every meter offers, and the meter of hardware that is not there."""

from __future__ import annotations

from typing import Protocol

J_PER_KWH = 3.6e6


class Meter(Protocol):
    """One component's energy. Making a meter finds the hardware; `start` sets it to zero.

    `read_j` takes a reading and returns the cumulative joules, or None where they are unknown. It never
    raises for hardware that fails later: it keeps what it knows and adds a line to `warnings`.
    """

    @property
    def method(self) -> str:
        """In the vocabulary of the ledger, for the joules as they stand now."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of what is metered, one entry per device."""

    @property
    def longest_gap_s(self) -> float:
        """Read at least this often, or energy may be lost."""

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figure should know, one line each."""

    def start(self) -> None:
        """Count from now."""

    def read_j(self) -> float | None:
        """Joules from `start` up to now."""

    def interval_j(self) -> tuple[float, float]:
        """Lowest and highest joules that the last reading is compatible with."""

    def idle_j(self) -> float | None:
        """The part of the last reading that an idle machine would have used; None where unknown."""

    def close(self) -> None:
        """Release the hardware; the figures of the last reading stay available."""


class AbsentMeter:
    """Hardware that is not there: 0 J by definition.

    Hardware that is there but cannot be read (`unread`): unknown.
    """

    method = "none"
    devices: tuple[str, ...] = ()
    longest_gap_s = float("inf")

    def __init__(self, unread: str = "") -> None:
        self._known = not unread
        self.warnings = [unread] if unread else []

    def start(self) -> None:
        pass

    def read_j(self) -> float | None:
        return 0.0 if self._known else None

    def interval_j(self) -> tuple[float, float]:
        return 0.0, 0.0

    def idle_j(self) -> float | None:
        return 0.0 if self._known else None

    def close(self) -> None:
        pass
