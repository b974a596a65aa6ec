"""The thread in a job that looks after grid and budget, and tells the training by its control file."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from emissions.acting.pauses import PauseLog
from emissions.files import atomic_path

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
BUDGET_EVERY_S = 10.0  # reading what all attempts have used takes longer than looking at the grid
RUN, PAUSE, STOP = "run", "pause", "stop"


class Controller:
    """Writes the control file while a stage runs.

    Args:
        path: of the control file, which a training looks at.
        pause_above_g_per_kwh: with `intensity_g_per_kwh` of an instant; None: never.
        latest_pause: until when a pause leaves time enough; None: always.
        over_budget: what is used up, in words, or "".
        stops: whether a training stops then; else `warn` is called with one line, once.
        tell: one line for a person.
    """

    def __init__(
        self,
        path: Path,
        *,
        intensity_g_per_kwh: Callable[[datetime], float],
        pause_above_g_per_kwh: float | None = None,
        latest_pause: datetime | None = None,
        over_budget: Callable[[], str] = lambda: "",
        stops: bool = False,
        tell: Callable[[str], None] = logger.info,
        warn: Callable[[str], None] = logger.warning,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = path
        self._intensity, self._limit, self._latest_pause = intensity_g_per_kwh, pause_above_g_per_kwh, latest_pause
        self._over_budget, self._stops, self._tell, self._warn, self._now = over_budget, stops, tell, warn, now
        self._over, self._obeyed = threading.Event(), False
        self._state, self._warned, self._spent = RUN, False, ""
        self._budget_looked: datetime | None = None
        self._pause_began: datetime | None = None
        self._log: PauseLog | None = None
        self._thread = threading.Thread(target=self._watch, name="footprint-controller", daemon=True)

    def start(self, log: PauseLog) -> None:
        """Look, and go on looking until `close`. Raises ValueError or OSError where even the first look fails."""
        self._log = log
        self.path.unlink(missing_ok=True)  # of an attempt that was killed
        self.look()
        self._thread.start()

    def obeyed(self) -> None:
        """The work will look at the control file: only from now on is it told to pause. Raises as `start`."""
        self._obeyed = True
        self.look()

    def close(self) -> None:
        """End the thread, and the pause if there is one, and remove the control file; never raises."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(2 * LOOK_EVERY_S)
        self._end_pause()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s", error)

    def look(self) -> None:
        """Look once, and write the control file where what it should say has changed."""
        state, reason = self._wanted()
        if state == self._state:
            return
        if state == PAUSE:
            self._begin_pause()
        else:
            self._end_pause()
        self._state = state
        self._tell(f"{state}: {reason}")
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps({"state": state, "reason": reason}), encoding="utf-8")

    def _wanted(self) -> tuple[str, str]:
        moment = self._now()
        if self._budget_looked is None or (moment - self._budget_looked).total_seconds() >= BUDGET_EVERY_S:
            self._budget_looked, self._spent = moment, self._over_budget()
        if self._spent and self._stops:
            return STOP, self._spent
        if self._spent and not self._warned:
            self._warned = True
            self._warn(f"over budget: {self._spent}")
        if self._limit is None or not self._obeyed:
            return RUN, ""
        grams = self._intensity(moment)
        if grams <= self._limit:
            return RUN, f"{grams:.0f} g/kWh is at or below the limit of {self._limit:g}"
        if self._latest_pause is not None and moment >= self._latest_pause:
            return RUN, f"{grams:.0f} g/kWh is above the limit of {self._limit:g}, and there is no time left to wait"
        return PAUSE, f"{grams:.0f} g/kWh is above the limit of {self._limit:g}"

    def _begin_pause(self) -> None:
        self._pause_began = self._now()
        if self._log:
            self._log.began(self._pause_began)

    def _end_pause(self) -> None:
        if self._pause_began is not None and self._log:
            self._log.ended(self._pause_began, self._now())
        self._pause_began = None

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                self.look()
            except (OSError, ValueError) as error:  # the job is not harmed by what cannot be looked at
                logger.warning("the grid and the budget could not be looked at: %s", error)
