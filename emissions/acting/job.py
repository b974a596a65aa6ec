"""What a metered job has to do with the grid and the budget: nothing, unless the config asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from emissions.acting.controller import Controller
from emissions.acting.pauses import PauseLog, pauses_path
from emissions.acting.settings import Acting
from emissions.acting.starts import open_start
from emissions.records import parse_utc

UNPAUSED: dict[str, float | None] = {"paused_s": 0.0, "paused_kwh": 0.0}


class ActingJob:
    """One job of a study that follows the grid or keeps a budget; its record is
    `results/{kind}/{item}/emissions/{stage}.json`.

    Raises ValueError where the study's budget is used up and says stop, or the grid cannot be looked at: nothing has
    begun then.
    """

    def __init__(
        self, config: Mapping[str, Any], record_path: Path, folders: Sequence[Path], tell: Callable[[str], None]
    ) -> None:
        acting = Acting.from_config(config)
        self._results = record_path.parents[3]
        self._log: PauseLog | None = None
        self._controller: Controller | None = None
        if acting.watches:
            path = record_path.parents[1] / "control.json"
            self._controller = _controller(acting, config["carbon"], self._results, folders, path, tell)

    def start(self, attempt_id: str, attempt_file: Path | None) -> None:
        """The job's window is open. Raises ValueError or OSError where the grid cannot be looked at."""
        if self._controller:
            self._log = PauseLog(pauses_path(self._results), attempt_id, attempt_file)
            self._controller.start(self._log)

    def control_file(self) -> Path | None:
        """The file that tells the work to pause or stop; None where the config asks for neither.

        Asking for it says that the work obeys it: other work is never told to pause.
        """
        if self._controller is None:
            return None
        self._controller.obeyed()
        return self._controller.path

    def close(self) -> dict[str, float | None]:
        """The job's window is about to close; the ledger's columns on its pauses. Never raises."""
        if self._controller is None or self._log is None:
            return UNPAUSED.copy()
        self._controller.close()
        lengths_s = [(p.ended_at - p.began_at).total_seconds() for p in self._log.pauses if p.ended_at]
        energies_kwh = [pause.energy_kwh for pause in self._log.pauses]
        known = [kwh for kwh in energies_kwh if kwh is not None]
        return {"paused_s": sum(lengths_s), "paused_kwh": sum(known) if len(known) == len(energies_kwh) else None}


def _controller(
    acting: Acting,
    carbon: Mapping[str, Any],
    results: Path,
    folders: Sequence[Path],
    control_path: Path,
    tell: Callable[[str], None],
) -> Controller:
    from emissions.acting.budget import Budget, warn_once
    from emissions.acting.signal import StudySignal  # pandas, which other jobs need not load

    signal, tables = StudySignal(carbon), results / "emissions"
    if acting.pause_above_g_per_kwh is not None:
        signal.at(datetime.now(UTC))  # what is wrong with it is said before the window opens
    budget = Budget(acting, tables / "journal.jsonl", folders, signal.mean_g_per_kwh, carbon["pue"])
    if acting.stops and (spent := budget.over()):
        raise ValueError(f"{spent}: not begun; goes on with a larger budget")
    return Controller(
        control_path,
        intensity_g_per_kwh=signal.at,
        pause_above_g_per_kwh=acting.pause_above_g_per_kwh,
        latest_pause=latest_pause(open_start(results)),
        over_budget=budget.over if acting.has_budget else lambda: "",
        stops=acting.stops,
        tell=tell,
        warn=lambda line: warn_once(tables / "over_budget.txt", line, acting, tell),
    )


def latest_pause(plan: Mapping[str, Any] | None) -> datetime | None:
    """Until when a study may pause and still end in time, were all of it yet to run; None without a plan."""
    if plan is None:
        return None
    return parse_utc(plan["deadline"]) - timedelta(seconds=plan["duration_s"] or 0.0)
