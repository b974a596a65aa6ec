"""The pauses of trainings: `results/emissions/pauses.jsonl`, two lines a pause, appended when it begins and ends.

A training that is killed while it pauses leaves the first line alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from emissions.attempt_file import read_attempt
from emissions.records import parse_utc, utc_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pause:
    """Of one attempt. ended_at, energy_kwh: None where they are not known."""

    attempt_id: str
    began_at: datetime
    ended_at: datetime | None = None
    energy_kwh: float | None = None


def pauses_path(results: Path) -> Path:
    return results / "emissions" / "pauses.jsonl"


class PauseLog:
    """Writes the pauses of one attempt, with the energy that its own readings tell."""

    def __init__(self, path: Path, attempt_id: str, attempt_file: Path | None) -> None:
        self.path, self.attempt_id, self.attempt_file = path, attempt_id, attempt_file
        self.pauses: list[Pause] = []

    def began(self, moment: datetime) -> None:
        self._append(Pause(self.attempt_id, moment))

    def ended(self, began: datetime, moment: datetime) -> None:
        pause = Pause(self.attempt_id, began, moment, self._energy_kwh(began, moment))
        self.pauses.append(pause)
        self._append(pause)

    def _energy_kwh(self, began: datetime, ended: datetime) -> float | None:
        try:
            if self.attempt_file is None:
                raise ValueError("no trace of this attempt is on disk")
            attempt = read_attempt(self.attempt_file)
            return attempt.energy_until_kwh(ended) - attempt.energy_until_kwh(began)
        except (OSError, ValueError) as error:
            logger.warning("the energy of a pause is unknown: %s", error)
            return None

    def _append(self, pause: Pause) -> None:
        line = {
            "attempt_id": pause.attempt_id,
            "began_at": utc_text(pause.began_at),
            "ended_at": None if pause.ended_at is None else utc_text(pause.ended_at),
            "energy_kwh": pause.energy_kwh,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, json.dumps(line).encode() + b"\n")  # one write: lines of two jobs do not mix
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("a pause is not in %s: %s", self.path, error)


def read_pauses(path: Path) -> list[Pause]:
    """Each pause once, in the order in which they began. Raises ValueError naming a line that is none."""
    pauses: dict[tuple[str, str], Pause] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            told = json.loads(line)
            pauses[told["attempt_id"], told["began_at"]] = _pause(told)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a pause ({error}); delete the line") from error
    return sorted(pauses.values(), key=lambda pause: pause.began_at)


def _pause(told: Mapping[str, str]) -> Pause:
    ended = told["ended_at"]
    energy_kwh = None if told["energy_kwh"] is None else float(told["energy_kwh"])
    return Pause(str(told["attempt_id"]), parse_utc(told["began_at"]), parse_utc(ended) if ended else None, energy_kwh)
