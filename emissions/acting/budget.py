"""What a study has used so far, running jobs included, and whether that is too much."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from emissions.acting.settings import Acting
from emissions.attempt_file import read_end
from emissions.records import parse_utc, read_journal

MeanIntensity = Callable[[datetime, datetime, datetime], float]  # start, end, since: StudySignal.mean_g_per_kwh
Window = tuple[datetime, datetime, float]  # start, end, energy of IT in kWh


class Budget:
    """The budget of a study whose attempts are in `journal`, and whose running ones have files in `folders`."""

    def __init__(
        self, acting: Acting, journal: Path, folders: Iterable[Path], mean_g_per_kwh: MeanIntensity, pue: float
    ) -> None:
        self._acting, self._journal, self._folders = acting, journal, list(folders)
        self._mean, self._pue = mean_g_per_kwh, pue

    def over(self) -> str:
        """What is used up, in words; "" within the budget. Raises ValueError where the signal has no value."""
        windows = windows_so_far(self._journal, self._folders)
        energy_kwh = sum(kwh for *_, kwh in windows)
        limit_kwh, limit_g = self._acting.budget_kwh, self._acting.budget_g
        if limit_kwh is not None and energy_kwh > limit_kwh:
            return f"{energy_kwh:.3g} kWh of budget.energy_kwh {limit_kwh:g} are used"
        if limit_g is None or not windows:
            return ""
        since = min(start for start, *_ in windows)
        grams = sum(kwh * self._pue * self._mean(start, end, since) for start, end, kwh in windows if kwh > 0)
        return f"{grams:.3g} g of budget.emissions_g {limit_g:g} are emitted" if grams > limit_g else ""


def windows_so_far(journal: Path, folders: Iterable[Path]) -> list[Window]:
    """Every attempt of the journal once, and those that run now, as far as their files tell.

    A file that cannot be read counts nothing: its attempt is in the journal when it has ended.
    """
    ended = {line["attempt_id"]: line for line in read_journal(journal)}
    windows = [
        (parse_utc(line["started_at"]), parse_utc(line["ended_at"]), float(line["energy_kwh"]))
        for line in ended.values()
    ]
    for path in (path for folder in folders if folder.is_dir() for path in folder.glob("*.jsonl")):
        if path.stem not in ended and (window := _running(path, journal)):
            windows.append(window)
    return windows


def _running(path: Path, journal: Path) -> Window | None:
    try:
        attempt = read_end(path)
        if Path(attempt.header["journal"]) != journal:
            return None
        start = parse_utc(attempt.header["started_at"])
        return start, start + timedelta(seconds=attempt.totals.t_s), attempt.energy_kwh
    except (OSError, ValueError, KeyError):
        return None


def warn_once(path: Path, line: str, acting: Acting, tell: Callable[[str], None]) -> None:
    """Tell a person that the budget is used up, unless another job of the study has told of this very budget."""
    budget = f"budget: {acting.budget_kwh} kWh, {acting.budget_g} g"
    if path.is_file() and path.read_text(encoding="utf-8").startswith(budget + "\n"):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{budget}\n{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n", encoding="utf-8")
    tell(line)
