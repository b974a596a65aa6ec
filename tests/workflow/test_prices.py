"""The same study at prices from a file and from a live source: seconds of arithmetic, no stage again."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from emissions.tables import read_table
from tests.standins.grid_server import TOKEN, GridServer, grams
from tests.workflow.snake import TINY, snakemake

pytestmark = pytest.mark.study


@pytest.fixture
def study(tiny_study: Path, tmp_path: Path) -> Path:
    """A copy, whose prices may change."""
    shutil.copytree(tiny_study, tmp_path / "study")
    return tmp_path / "study"


def hours_of(ledger: pd.DataFrame) -> pd.DatetimeIndex:
    started, ended = (pd.to_datetime(ledger[column], utc=True) for column in ("started_at", "ended_at"))
    return pd.date_range(started.min().floor("h"), ended.max().floor("h"), freq="h")


def priced_by(study: Path, carbon: str) -> tuple[pd.DataFrame, str]:
    overlay = study / "overlay.yaml"
    overlay.write_text(f"carbon: {carbon}")
    finished = snakemake(study, "results/emissions/priced.csv", configs=(TINY, overlay))
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return read_table(study / "results/emissions/priced.csv"), finished.stdout + finished.stderr


def test_a_file_prices_the_hours_that_it_has(study: Path) -> None:
    ledger = read_table(study / "results/emissions/ledger.csv")
    hours = hours_of(ledger)
    table = pd.DataFrame({"when": hours.strftime("%Y-%m-%dT%H:%MZ"), "grams": 123.0})
    table.to_csv(study / "mine.csv", index=False)
    columns = "{path: mine.csv, time: when, value: grams, kind: average lifecycle}"
    priced, said = priced_by(study, f"{{intensity: file, file: {columns}}}")
    assert "train" not in said
    assert set(priced["intensity_source"]) == {"mine.csv, column grams"}
    assert priced["emissions_g"].sum() == pytest.approx(123.0 * ledger["energy_kwh"].sum())


def test_a_live_source_is_asked_once_and_stands_in_every_row(study: Path, grid_server: GridServer) -> None:
    live = "{intensity: electricity_maps, live: {cache: cache}}"
    ledger = read_table(study / "results/emissions/ledger.csv")
    hours = hours_of(ledger)
    priced, said = priced_by(study, live)
    assert priced["intensity_source"].str.contains("Electricity Maps").all()
    expected = [grams(hour.to_pydatetime()) for hour in hours]
    intensities = priced["carbon_intensity_g_per_kwh"]
    assert min(expected) - 1e-9 <= intensities.min() <= intensities.max() <= max(expected) + 1e-9
    signal = read_table(study / "results/emissions/intensity.csv")
    assert list(signal["carbon_intensity_g_per_kwh"]) == expected
    asked = len(grid_server.data_requests)
    assert asked > 0
    priced_by(study, live)
    assert len(grid_server.data_requests) == asked
    text = said + "".join(path.read_text() for path in (study / "results/emissions/logs").glob("*.log"))
    assert TOKEN not in text


def test_a_live_source_that_fails_leaves_the_study_at_the_tables_and_says_so(
    study: Path, grid_server: GridServer
) -> None:
    grid_server.always = "401"
    priced, said = priced_by(study, "{intensity: electricity_maps, live: {cache: cache}}")
    assert priced["intensity_source"].str.contains("typical year.*, for want of Electricity Maps").all()
    assert "the token is wrong, has expired or does not cover this" in said
    overlay = study / "overlay.yaml"
    overlay.write_text("carbon: {intensity: electricity_maps, fallback: false, year: 2023, live: {cache: cache}}")
    finished = snakemake(study, "results/emissions/priced.csv", configs=(TINY, overlay))
    assert finished.returncode != 0
    assert "the token is wrong, has expired or does not cover this" in finished.stdout + finished.stderr
    assert TOKEN not in finished.stdout + finished.stderr


def test_a_file_that_is_not_there_stops_the_study_before_it_begins(study: Path) -> None:
    overlay = study / "overlay.yaml"
    overlay.write_text("carbon: {intensity: file, file: {path: nowhere.csv}}")
    finished = snakemake(study, "-n", configs=(TINY, overlay))
    assert finished.returncode != 0
    assert "config: `carbon.file.path`: nowhere.csv: no such file" in finished.stdout + finished.stderr
