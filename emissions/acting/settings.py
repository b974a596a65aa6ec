"""What a study is to do about the grid: the config's `schedule` and `budget`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOW, GREEN = "now", "green"


@dataclass(frozen=True)
class Acting:
    """Times in hours from the first request of the study. None: no limit."""

    start: str = NOW
    deadline_h: float = 24.0
    duration_h: float | None = None
    pause_above_g_per_kwh: float | None = None
    budget_kwh: float | None = None
    budget_g: float | None = None
    stops: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Acting:
        """Of a checked config; a section that is not there asks for nothing."""
        schedule, budget = config.get("schedule") or {}, config.get("budget") or {}
        return cls(
            start=schedule.get("start", NOW),
            deadline_h=schedule.get("deadline_h", 24.0),
            duration_h=schedule.get("duration_h"),
            pause_above_g_per_kwh=schedule.get("pause_above_g_per_kwh"),
            budget_kwh=budget.get("energy_kwh"),
            budget_g=budget.get("emissions_g"),
            stops=budget.get("action") == "stop",
        )

    def asked(self) -> dict[str, Any]:
        """What a plan of the study's start depends on: with other words, it is planned anew."""
        return {"start": self.start, "deadline_h": self.deadline_h, "duration_h": self.duration_h}

    @property
    def has_budget(self) -> bool:
        return self.budget_kwh is not None or self.budget_g is not None

    @property
    def watches(self) -> bool:
        """Whether jobs have anything to look after while they run."""
        return self.has_budget or self.pause_above_g_per_kwh is not None

    @property
    def waits_or_pauses(self) -> bool:
        """Whether the study has a deadline to keep."""
        return self.start == GREEN or self.pause_above_g_per_kwh is not None
