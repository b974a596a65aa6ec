"""The study's carbon intensity as a running job needs it: now, and over the hours that have passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emissions.grid.choice import FILE, TABLES, intensity_ahead, intensity_behind
from emissions.grid.intensity import CarbonIntensity
from emissions.pricing import energy_by_slot_kwh


class StudySignal:
    """The signal that the config's `carbon` names; a file that changes is read again, a live source asked again."""

    def __init__(self, carbon: Mapping[str, Any]) -> None:
        self._carbon = carbon
        self._held: dict[str, tuple[float, CarbonIntensity]] = {}

    def at(self, moment: datetime) -> float:
        """gCO2e/kWh of the present. Raises ValueError for a source that fails and a moment that it says nothing of."""
        ahead = self._fresh("ahead", moment, lambda: intensity_ahead(self._carbon, moment))
        return ahead.at(moment)

    def mean_g_per_kwh(self, start: datetime, end: datetime, since: datetime) -> float:
        """Over a window that has passed. For hours that a live source does not tell yet, its last value stands in.

        since: the earliest time that will be asked for. Raises ValueError where it tells of no hour of the window.
        """
        behind = self._fresh("behind", end, lambda: intensity_behind(self._carbon, since, end))
        shares = energy_by_slot_kwh(start, end, 1.0, None, behind.step)
        values = pd.Series(behind.lookup(pd.DatetimeIndex(shares.index))).ffill().bfill().to_numpy()  # (slots,)
        if np.isnan(values).any():
            raise ValueError(f"{behind.source} has no carbon intensity between {start:%Y-%m-%d %H:%M} and {end:%H:%M}")
        return float((values * shares.to_numpy()).sum())

    def _fresh(self, which: str, moment: datetime, ask: Callable[[], CarbonIntensity]) -> CarbonIntensity:
        state = self._state(moment)
        if which not in self._held or self._held[which][0] != state:
            self._held[which] = state, ask()
        return self._held[which][1]

    def _state(self, moment: datetime) -> float:
        """What an answer holds for: as long as a file is not written anew, and a live source not asked again."""
        if self._carbon["intensity"] == FILE:
            return Path(self._carbon["file"]["path"]).stat().st_mtime
        if self._carbon["intensity"] == TABLES:
            return 0.0
        return moment.timestamp() // (3600 * self._carbon["live"]["max_age_h"])
