"""What the tests of live sources share: a server of all sources, and where each one's answers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from emissions.grid.intensity import SeriesIntensity
from emissions.grid.live import NAMES, LiveSettings, history
from emissions.grid.live.factors import FACTORS_G_PER_KWH
from emissions.grid.zones import find_zone
from tests.standins.grid_server import PASSWORD, TOKEN, USER, GridServer, grams, lbs, megawatts, month_grams

START = datetime(2026, 3, 10, tzinfo=UTC)
DAY = timedelta(days=1)
SECRETS = (TOKEN, USER, PASSWORD, "session-", "s3cret%2Btoken%2Fof%3Dtests", "pass+word", "pass%20word")


def mix_g_per_kwh(time: datetime) -> float:
    """The closed form of ENTSO-E's and EIA's hours: no storage, and nothing of unknown fuel."""
    made = {fuel: mw for fuel, mw in megawatts(time).items() if fuel in FACTORS_G_PER_KWH}
    return sum(mw * FACTORS_G_PER_KWH[fuel] for fuel, mw in made.items()) / sum(made.values())


@dataclass(frozen=True)
class Case:
    """One source: a zone that it has, and what its answers are worth."""

    name: str
    zone: str
    step_min: int
    kind: str
    value_g_per_kwh: Callable[[datetime], float]
    forecasts: bool = False

    def ask(self, settings: LiveSettings, start: datetime = START, end: datetime = START + DAY) -> SeriesIntensity:
        return history(self.name, find_zone(self.zone), start, end, settings)


CASES = {
    case.name: case
    for case in (
        Case("electricity_maps", "DE", 60, "average lifecycle", grams, True),
        Case("uk", "GB", 30, "average direct", grams, True),
        Case("entsoe", "DE", 60, "average lifecycle", mix_g_per_kwh),
        Case("eia", "US-CAL-CISO", 60, "average lifecycle", mix_g_per_kwh),
        Case("ember", "DE", 60, "average lifecycle", lambda time: month_grams(time.year, time.month)),
        Case("watttime", "US-CAL-CISO", 5, "marginal direct", lambda time: lbs(time) * 0.45359237, True),
    )
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GridServer]:
    """All sources ask this one, with the right tokens."""
    with GridServer() as running:
        for name in NAMES:
            monkeypatch.setenv(f"FOOTPRINT_{name.upper()}_URL", running.url + ("/api" if name == "entsoe" else ""))
            monkeypatch.setenv(f"FOOTPRINT_{name.upper()}_TOKEN", TOKEN)
        monkeypatch.setenv("FOOTPRINT_WATTTIME_USER", USER)
        monkeypatch.setenv("FOOTPRINT_WATTTIME_PASSWORD", PASSWORD)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> LiveSettings:
    """A cache of its own, and waits of a twenty-fifth: short, and long enough for a machine that is busy."""
    return LiveSettings(cache=str(tmp_path / "cache"), timeout_s=0.4)


def expected(case: Case, start: datetime, end: datetime) -> pd.Series:
    """The closed form at each slot of [start, end)."""
    times = pd.date_range(start, end, freq=f"{case.step_min}min", inclusive="left")
    values = [case.value_g_per_kwh(time.to_pydatetime()) for time in times]
    if case.name == "uk":  # this half-hour has no value yet
        values = [float("nan") if f"{time:%H:%M}" == "03:30" else v for time, v in zip(times, values, strict=True)]
    return pd.Series(values, index=times, dtype=float)


def age(folder: str, hours: float) -> None:
    """Make all answers in a cache older than they are."""
    import json

    for path in Path(folder).glob("*.json"):
        beside = json.loads(path.read_text())
        beside["fetched_at"] = (pd.Timestamp(beside["fetched_at"]) - pd.Timedelta(hours=hours)).isoformat()
        path.write_text(json.dumps(beside))
