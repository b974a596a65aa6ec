"""The transport, the secrets and the cache of live sources, and `footprint intensity`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emissions.cli import Parser
from emissions.grid.live import LiveSettings, SourceError, forecast, history
from emissions.grid.live.command import register
from emissions.grid.series import read_intensity_csv
from emissions.grid.zones import find_zone
from tests.emissions.live import CASES, DAY, SECRETS, START, Case, age, server, settings
from tests.standins.grid_server import TOKEN, USER, GridServer, grams

__all__ = ["server", "settings"]

pytestmark = [  # entsoe-py's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning:entsoe"),
    pytest.mark.filterwarnings("ignore:It looks like you're using an HTML parser"),
]
DE = find_zone("DE")
MAPS = CASES["electricity_maps"]


# --- transport


def test_retry_after_is_waited_for(server: GridServer, settings: LiveSettings):
    server.next("429")
    server.retry_after = "1"
    started_s = time.monotonic()
    MAPS.ask(replace(settings, timeout_s=1.0))
    assert 1.0 <= time.monotonic() - started_s < 3.0


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_long_retry_after_is_told_and_not_waited_for(form: str, server: GridServer, settings: LiveSettings):
    server.next("429")
    server.retry_after = "3600" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(hours=1), True)
    with pytest.raises(SourceError, match=r"DE: HTTP 429 .*: to be asked again in 3[56]\d\d s"):
        MAPS.ask(settings)
    assert len(server.requests) == 1


def test_a_server_that_drips_does_not_hold_anyone_up(server: GridServer, settings: LiveSettings):
    server.always = "drip"
    started_s = time.monotonic()
    with pytest.raises(SourceError, match=r"the answer was not whole after 1\.2 s"):
        MAPS.ask(settings)
    assert time.monotonic() - started_s < 3.0


def test_no_server_at_all(settings: LiveSettings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(SourceError, match=r"^uk: GB: no connection \(ConnectError\) after 4 tries$"):
        CASES["uk"].ask(replace(settings, url="http://127.0.0.1:9"))


def test_requests_to_one_host_are_apart(server: GridServer, settings: LiveSettings):
    started_s = time.monotonic()
    CASES["uk"].ask(replace(settings, timeout_s=5.0), START, START + timedelta(days=70))
    assert len(server.requests) == 5
    assert time.monotonic() - started_s >= 4 * 5.0 / 50


def test_all_tries_together_have_an_end(server: GridServer, settings: LiveSettings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("emissions.grid.live.http.DEADLINE", 1)
    server.always = "429"
    server.retry_after = "1"
    with pytest.raises(SourceError, match=r"given up after HTTP 429 .*: not done within 0\.5 s"):
        MAPS.ask(replace(settings, timeout_s=0.5))


def test_an_answer_that_is_too_large_is_not_read(
    server: GridServer, settings: LiveSettings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("emissions.grid.live.http.LARGEST_BYTES", 1000)
    with pytest.raises(SourceError, match="the answer is larger than"):
        MAPS.ask(settings)


# --- settings and secrets


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"timeout": 3}, "carbon.live.timeout: no such setting"),
        ({"timeout_s": 0}, "carbon.live.timeout_s is 0"),
        ({"max_age_h": True}, "carbon.live.max_age_h is True"),
        ({"url": 3}, "carbon.live.url is 3"),
    ],
)
def test_settings_that_are_none(section: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said):
        LiveSettings.from_config(section)


def test_settings_of_the_default_config():
    section = {"url": None, "token_file": None, "cache": None, "max_age_h": 1.0, "timeout_s": 10.0}
    assert LiveSettings.from_config(section) == LiveSettings()


@pytest.mark.parametrize("url", ["ftp://host", "host/path", "https://", "https://user:word@host", "https://host?key=1"])
def test_base_urls_that_are_none_are_refused_without_being_shown(url: str, settings: LiveSettings):
    with pytest.raises(ValueError, match="is not of the form") as caught:
        MAPS.ask(replace(settings, url=url))
    assert "user:word" not in str(caught.value) and "key=1" not in str(caught.value)


def test_a_token_comes_from_a_file_before_the_environment(
    server: GridServer, settings: LiveSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FOOTPRINT_ELECTRICITY_MAPS_TOKEN", "another")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    MAPS.ask(replace(settings, token_file=str(tmp_path / "token")))
    with pytest.raises(SourceError, match=r"electricity_maps: DE: .*No such file"):
        MAPS.ask(replace(settings, token_file=str(tmp_path / "none")), START + DAY, START + 2 * DAY)


def test_a_missing_token_is_named(server: GridServer, settings: LiveSettings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FOOTPRINT_EIA_TOKEN")
    with pytest.raises(SourceError, match="eia: US-CAL-CISO: needs a token: FOOTPRINT_EIA_TOKEN is not set"):
        CASES["eia"].ask(settings)
    monkeypatch.delenv("FOOTPRINT_WATTTIME_PASSWORD")
    with pytest.raises(SourceError, match="FOOTPRINT_WATTTIME_USER and FOOTPRINT_WATTTIME_PASSWORD"):
        CASES["watttime"].ask(settings)
    assert server.requests == []


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.name != "uk"], ids=lambda case: case.name)
def test_a_secret_is_nowhere_but_in_the_request(
    case: Case, server: GridServer, settings: LiveSettings, caplog: pytest.LogCaptureFixture
):
    """With all logging on, through answers and faults whose text repeats the secret."""
    texts = []
    with caplog.at_level(logging.DEBUG):
        case.ask(settings)
        for fault in ("403", "500", "unit", "half"):
            server.always = fault
            with pytest.raises(SourceError) as caught:
                case.ask(settings, START + DAY, START + 2 * DAY)
            error: BaseException | None = caught.value
            while error is not None:
                texts.append(f"{error} {error!r} {vars(error)}")
                error = error.__cause__ or error.__context__
    texts += [f"{path.name} {path.read_text()}" for path in Path(str(settings.cache)).iterdir()]
    # httpcore's own debugging shows the headers of answers, and none of requests
    texts += [record.getMessage() for record in caplog.records]
    assert any("HTTP Request: GET http" in text for text in texts)
    for secret in SECRETS:
        assert not [text for text in texts if secret in text]


def test_a_refused_password_is_not_repeated(
    server: GridServer, settings: LiveSettings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FOOTPRINT_WATTTIME_PASSWORD", "not it")
    with pytest.raises(SourceError, match=r"HTTP 403 \(wrong password for ") as caught:
        CASES["watttime"].ask(settings)
    assert USER not in str(caught.value) and "not it" not in str(caught.value)


# --- cache


def recent(hours: float = 30) -> tuple[datetime, datetime]:
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours)
    return start, start + timedelta(hours=24)


def test_a_fresh_answer_is_not_asked_for_again_and_an_old_one_is(server: GridServer, settings: LiveSettings):
    start, end = recent()
    first = MAPS.ask(settings, start, end)
    again = MAPS.ask(settings, start, end)
    assert len(server.requests) == 1
    assert (again.data_hash, again.source, again.basis, again.step) == (
        first.data_hash, first.source, first.basis, first.step,
    )  # fmt: skip
    pd.testing.assert_series_equal(again.sources, first.sources, check_freq=False, check_names=False)
    age(str(settings.cache), 1.1)
    MAPS.ask(settings, start, end)
    assert len(server.requests) == 2


def test_hours_that_are_long_past_are_asked_for_once(server: GridServer, settings: LiveSettings):
    MAPS.ask(settings)
    age(str(settings.cache), 24 * 30)
    part = MAPS.ask(settings, START + timedelta(hours=3), START + timedelta(hours=5))
    assert list(part.values_g_per_kwh) == [grams(START + timedelta(hours=hour)) for hour in (3, 4)]
    assert part.source == "Electricity Maps v3"
    assert len(server.requests) == 1


def test_a_gap_in_the_past_is_asked_for_again(server: GridServer, settings: LiveSettings):
    CASES["uk"].ask(settings)
    age(str(settings.cache), 1.1)
    CASES["uk"].ask(settings)
    assert len(server.requests) == 2


def test_an_answer_of_another_server_or_span_does_not_stand_in(server: GridServer, settings: LiveSettings):
    MAPS.ask(settings)
    server.always = "401"
    with pytest.raises(SourceError):
        MAPS.ask(settings, START, START + 2 * DAY)
    with pytest.raises(SourceError):
        MAPS.ask(replace(settings, url=f"{server.url}/other"))


@pytest.mark.parametrize("damage", ["csv", "json", "swapped", "gone"])
def test_a_damaged_entry_is_fetched_anew(damage: str, server: GridServer, settings: LiveSettings):
    MAPS.ask(settings)
    folder = Path(str(settings.cache))
    (csv,), (beside,) = folder.glob("*.csv"), folder.glob("*.json")
    if damage == "gone":
        csv.unlink()
    elif damage == "swapped":
        csv.write_text(csv.read_text().replace(",210.0,", ",999.0,"))
    else:
        broken = csv if damage == "csv" else beside
        broken.write_text(broken.read_text()[:100])
    assert MAPS.ask(settings).values_g_per_kwh.iloc[0] == 210.0
    assert len(server.requests) == 2
    MAPS.ask(settings)
    assert len(server.requests) == 2


@pytest.mark.parametrize("hours", [1, 2])
def test_half_hours_come_back_as_half_hours(hours: int, server: GridServer, settings: LiveSettings):
    start, end = START + timedelta(hours=3), START + timedelta(hours=3 + hours)
    first, again = (CASES["uk"].ask(settings, start, end) for _ in range(2))
    assert len(server.requests) == 1
    assert first.data_hash == again.data_hash and again.step == pd.Timedelta("30min")
    assert np.isnan(again.values_g_per_kwh.iloc[1])


def test_a_cache_that_cannot_be_written_costs_only_the_cache(
    server: GridServer, settings: LiveSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        MAPS.ask(replace(settings, cache=str(tmp_path / "file")))
    assert "electricity_maps: the answer is not cached" in caplog.text


def test_the_cache_is_the_users_by_default(server: GridServer, settings: LiveSettings, tmp_path: Path):
    MAPS.ask(replace(settings, cache=None))
    assert len(list((tmp_path / "home" / "latent-footprint" / "intensity").glob("electricity_maps-DE-history-*"))) == 2


def test_a_forecast_is_used_for_max_age_and_does_not_reach_back(server: GridServer, settings: LiveSettings):
    now = datetime.now(UTC)
    forecast("electricity_maps", DE, settings, now)
    later = forecast("electricity_maps", DE, settings, now + timedelta(minutes=59))
    assert len(server.requests) == 1
    assert later.values_g_per_kwh.index[0] == pd.Timestamp(now + timedelta(minutes=59)).floor("h")
    forecast("electricity_maps", DE, settings, now + timedelta(minutes=61))
    assert len(server.requests) == 2


def test_an_end_before_the_start(settings: LiveSettings):
    with pytest.raises(ValueError, match="is not after the start"):
        MAPS.ask(settings, START, START)
    with pytest.raises(ValueError, match="unknown source of carbon intensity 'sun'; there are electricity_maps, uk"):
        history("sun", DE, START, START + DAY, settings)


# --- the command


@pytest.fixture
def parser() -> Iterator[Parser]:
    parser = Parser(prog="footprint")
    register(parser.add_subparsers())
    yield parser


def command(parser: Parser, *arguments: str) -> int:
    parsed = parser.parse_args(["intensity", *arguments])
    return int(parsed.run(parsed))


SPAN = ("electricity_maps", "--zone", "DE", "--from", "2026-03-10", "--to", "2026-03-11T00:00Z")


def test_the_command_writes_what_a_config_can_read(
    parser: Parser, server: GridServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command(parser, *SPAN, "--out", str(tmp_path / "DE.csv")) == 0
    assert "24 slots of 60 min; average lifecycle; Electricity Maps v3" in capsys.readouterr().out
    series = read_intensity_csv(tmp_path / "DE.csv")
    assert series.data_hash == MAPS.ask(LiveSettings()).data_hash
    assert command(parser, *SPAN) == 0
    assert capsys.readouterr().out == (tmp_path / "DE.csv").read_text()


def test_the_command_prints_json(parser: Parser, server: GridServer, capsys: pytest.CaptureFixture[str]):
    assert command(parser, "uk", "--zone", "GB", "--from", "2026-03-10", "--to", "2026-03-11", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["zone"], told["intensity_kind"], told["step_min"]) == ("GB", "average direct", 30.0)
    assert told["rows"][7]["carbon_intensity_g_per_kwh"] is None
    assert told["rows"][0] == {
        "time": "2026-03-10T00:00:00Z",
        "carbon_intensity_g_per_kwh": 210.0,
        "intensity_source": "UK Carbon Intensity API",
    }
    assert "CC BY 4.0" in told["credit"]


def test_the_command_forecasts(parser: Parser, server: GridServer, capsys: pytest.CaptureFixture[str]):
    assert command(parser, "watttime", "--zone", "US-CAL-CISO", "--forecast") == 0
    assert capsys.readouterr().out.count("marginal direct") == 72 * 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("uk", "--zone", "GB"), "name the span with --from and --to"),
        (("uk", "--zone", "GB", "--forecast", "--from", "2026-03-10"), "--forecast starts now"),
        (("ember", "--zone", "DE", "--forecast"), "ember: has no forecasts"),
        (("uk", "--zone", "Atlantis", "--forecast"), "unknown zone"),
    ],
)
def test_what_the_command_refuses(parser: Parser, arguments: tuple[str, ...], said: str, server: GridServer):
    with pytest.raises(ValueError, match=said):
        command(parser, *arguments)


@pytest.mark.parametrize("wrong", [("sun", "--zone", "DE"), ("uk", "--zone", "GB", "--from", "yesterday")])
def test_what_the_parser_refuses(parser: Parser, wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        command(parser, *wrong)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_registering_the_command_imports_nothing_heavy():
    import subprocess
    import sys

    program = "import sys, emissions.grid.live.command; print({'pandas', 'httpx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
