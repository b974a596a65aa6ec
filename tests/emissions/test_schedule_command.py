"""`footprint schedule`, as a user runs it, and the study's own table of proposed starts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emissions import cli
from emissions.grid.series import series_intensity, write_intensity
from emissions.grid.zones import find_zone
from emissions.ledger import read_ledger
from emissions.schedule.policies import START_COLUMNS
from emissions.schedule.propose import propose, write_schedule
from emissions.tables import read_table, write_table
from tests.emissions.studies import carbon, collect, make_plan, write_study

FROM = ["--from", "2026-11-25T08:00Z"]
HOUR = pd.Timedelta("1h")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study on disk: 8 tasks of a minute."""
    results = tmp_path_factory.mktemp("study") / "results"
    plan = make_plan(sizes=("nano",), dims=(2,), resolutions=(32,), samplers=(("ddim", 50),))
    ledger, attempts = collect(results, plan, write_study(results, plan))
    write_table(ledger, results / "emissions/ledger.csv")
    write_table(attempts, results / "emissions/attempts.csv")
    return results


@pytest.fixture
def run(capsys):
    """Run `footprint schedule` in this process; returns what it printed."""

    def call(*arguments, status=0):
        assert cli.main(["schedule", *map(str, arguments)]) == status
        out, err = capsys.readouterr()
        assert bool(err) == bool(status) and len(err.splitlines()) <= 1
        return err if status else out

    return call


@pytest.fixture
def refused(run, capsys):
    """Run it with what argparse refuses; returns the one line."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert len(line.splitlines()) == 1
        return line

    return call


def signal(path, values, zone="DE", start="2026-11-25T08:00Z", step=HOUR, kind="average lifecycle"):
    times = pd.date_range(start, periods=len(values), freq=step)
    made = series_intensity(times, values, zone=find_zone(zone), source="made up", kind=kind, step=step)
    write_intensity(made, times, path)
    return path


def ledger_of(study):
    return study / "emissions/ledger.csv"


def test_the_policies_are_printed_side_by_side(run, study):
    out = run(ledger_of(study), "--zones", "DE,SE", "--deadline", "48h", *FROM, "--scale", "200", "--gpus", "DE=1,SE=2")
    for policy in ("now", "best single start", "best site", "whole DAG"):
        assert f"\n{policy} " in out
    assert "8 tasks" in out and "average lifecycle" in out and "gap" in out
    assert "extrapolated: durations and energy are 200 times what was measured" in out
    assert "train_diffusion unet-nano-ct-2d-32-x1-s0" in out


def test_json_has_the_figures_of_the_table(run, study):
    figures = json.loads(run(ledger_of(study), "--zones", "DE", *FROM, "--deadline", "36h", "--scale", "60", "--json"))
    rows = {row["policy"]: row for row in figures["policies"]}
    assert list(rows) == ["now", "best single start", "whole DAG"]
    assert rows["now"]["begins"] == figures["earliest"] == "2026-11-25T08:00:00Z"
    assert rows["whole DAG"]["emissions_g"] <= rows["best single start"]["emissions_g"] <= rows["now"]["emissions_g"]
    assert 0 <= rows["whole DAG"]["gap"] <= 1e-4
    assert figures["intensity"]["DE"]["kind"] == "average lifecycle" and len(figures["intensity"]["DE"]["hash"]) == 16
    energy_kwh = read_ledger(ledger_of(study))["energy_kwh"].sum() * 60
    for policy, row in rows.items():
        starts = [start for start in figures["starts"] if start["policy"] == policy]
        assert len(starts) == 8
        assert sum(start["energy_kwh"] for start in starts) == pytest.approx(energy_kwh) == row["energy_kwh"]
        assert sum(start["emissions_g"] for start in starts) == pytest.approx(row["emissions_g"])


def test_a_deadline_may_be_a_time(run, study):
    figures = json.loads(
        run(ledger_of(study), "--zones", "DE", *FROM, "--deadline", "2026-11-25T20:00+01:00", "--json")
    )
    assert figures["deadline"] == "2026-11-25T19:00:00Z"


def test_forecasts_of_a_file_are_planned_on_and_judged_by_another(run, study, tmp_path):
    promised, real = np.full(24, 400.0), np.full(24, 400.0)
    promised[5], real[9] = 100, 100
    forecast, actual = signal(tmp_path / "forecast.csv", promised), signal(tmp_path / "actual.csv", real)
    arguments = [ledger_of(study), "--zones", "DE", *FROM, "--intensity", forecast, "--actual", actual]
    figures = json.loads(run(*arguments, "--json"))
    rows = {row["policy"]: row for row in figures["policies"]}
    assert rows["best single start"]["begins"] == "2026-11-25T13:00:00Z"
    assert rows["best single start"]["actual_g"] == pytest.approx(rows["now"]["actual_g"])
    assert rows["perfect foresight"]["saving_percent"] == pytest.approx(75)
    assert figures["intensity"]["DE"]["source"] == "made up"
    assert "in fact" in run(*arguments)


def test_pue_may_differ_by_site(run, study):
    figures = json.loads(run(ledger_of(study), "--zones", "DE,SE", "--pue", "SE=1.1,DE=1.3", *FROM, "--json"))
    assert figures["pue"] == {"DE": 1.3, "SE": 1.1}
    alone = json.loads(run(ledger_of(study), "--zones", "DE", *FROM, "--json"))
    assert figures["policies"][0]["emissions_g"] == pytest.approx(1.3 * alone["policies"][0]["emissions_g"])


def test_heavy_data_stay_at_home(run, study):
    arguments = [ledger_of(study), "--zones", "PL,SE", *FROM, "--kwh-per-gb", "0.05", "--json"]
    light, heavy = (json.loads(run(*arguments, "--gb", gb)) for gb in (0.1, 10_000))
    assert [figures["policies"][-1]["site"] for figures in (light, heavy)] == ["SE", "PL"]


def test_local_times_change_on_the_day_that_clocks_do(run, study, tmp_path):
    """Clocks in Berlin go back at 01:00 UTC on 25 October 2026; the cleanest hours are on either side of it."""
    values = np.full(24, 500.0)
    values[[0, 1]] = [60, 50]
    path = signal(tmp_path / "dst.csv", values, start="2026-10-25T00:00Z")
    out = run(
        ledger_of(study), "--zones", "DE", "--from", "2026-10-25T00:00Z", "--intensity", path, "--deadline", "24h"
    )
    assert "2026-10-25 01:00  2026-10-25 02:00 CET" in out
    values[1] = 500
    signal(path, values, start="2026-10-25T00:00Z")
    out = run(
        ledger_of(study), "--zones", "DE", "--from", "2026-10-25T00:00Z", "--intensity", path, "--deadline", "24h"
    )
    assert "2026-10-25 00:00  2026-10-25 02:00 CEST" in out


def test_half_hour_files_are_planned_by_the_half_hour(run, study, tmp_path):
    values = np.full(48, 400.0)
    values[11] = 100
    path = signal(tmp_path / "gb.csv", values, zone="GB", step=HOUR / 2)
    figures = json.loads(run(ledger_of(study), "--zones", "GB", *FROM, "--intensity", path, "--json"))
    assert figures["policies"][1]["begins"] == "2026-11-25T13:30:00Z"


@pytest.mark.parametrize(("timezone", "hour"), [("UTC", "13"), ("Europe/Berlin", "14"), ("America/New_York", "08")])
def test_begin_is_the_local_time_of_this_machine(run, study, tmp_path, monkeypatch, timezone, hour):
    values = np.full(24, 400.0)
    values[5] = 100
    path = signal(tmp_path / "forecast.csv", values)
    monkeypatch.setenv("TZ", timezone)
    time.tzset()
    try:
        out = run(ledger_of(study), "--zones", "DE", *FROM, "--intensity", path, "--begin")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert out == f"--begin=2026-11-25T{hour}:00:00\n"


def test_without_a_time_the_plan_begins_in_the_next_minute(run, study):
    figures = json.loads(run(ledger_of(study), "--zones", "DE", "--json"))
    late = pd.Timestamp(figures["earliest"]) - pd.Timestamp.now(tz="UTC")
    assert pd.Timedelta("-10s") < late <= pd.Timedelta("60s")


def test_without_a_plan_tasks_follow_each_other(run, study, tmp_path):
    alone = tmp_path / "ledger.csv"
    alone.write_bytes(ledger_of(study).read_bytes())
    out = run(alone, "--zones", "DE", *FROM)
    assert "tasks follow each other in the order in which they started" in out
    assert "follow each other" not in run(alone, "--zones", "DE", *FROM, "--plan", study / "plan.csv")


def test_a_file_of_codecarbon_is_planned_too(run, tmp_path):
    rows = [
        {
            "timestamp": f"2026-11-20T0{hour}:00:00", "project_name": "codecarbon", "run_id": f"r{hour}",
            "experiment_id": "e", "duration": 1800.0, "emissions": 0.1, "energy_consumed": 0.5, "cpu_energy": 0.3,
            "gpu_energy": 0.1, "ram_energy": 0.1, "country_iso_code": "DEU",
        }
        for hour in (1, 2, 3)
    ]  # fmt: skip
    path = tmp_path / "emissions.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    figures = json.loads(run(path, "--zones", "DE", *FROM, "--json"))
    assert figures["tasks"] == 3
    assert figures["policies"][0]["energy_kwh"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--zones", "DX"], "unknown zone 'DX'"),
        (["--zones", "DE,DEU"], "--zones: DE, DE: a zone is there twice"),
        (
            ["--zones", "DE", "--deadline", "5min"],
            "the deadline leaves 5 min, and the longest chain of tasks takes 7 min",
        ),
        (["--zones", "DE", "--deadline", "2026-11-24T08:00Z"], "is not after the earliest start"),
        (["--zones", "DE,SE", "--gpus", "DE=1"], "--gpus: 'DE=1' has no number for SE"),
        (["--zones", "DE", "--gpus", "0"], "needs 1 GPUs or places at once, and no site has more than 0"),
        (["--zones", "DE", "--gpus", "two"], "--gpus: 'two'"),
        (["--zones", "DE", "--pue", "0.5"], "number of at least 1.0"),
        (["--zones", "DE", "--scale", "0"], "--scale: 0 is not above zero"),
        (["--zones", "DE", "--intensity", "nowhere.csv"], "nowhere.csv"),
        (["--zones", "DE", "--plan", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(run, study, arguments, words):
    assert words in run(ledger_of(study), *FROM, *arguments, status=2)


def test_a_forecast_that_ends_before_the_deadline_is_no_plan(run, study, tmp_path):
    path = signal(tmp_path / "short.csv", np.full(6, 300.0))
    told = run(ledger_of(study), "--zones", "DE", *FROM, "--intensity", path, status=2)
    assert "2026-11-25 14:00" in told
    other = signal(tmp_path / "se.csv", np.full(30, 30.0), zone="SE")
    assert "is of zone SE" in run(ledger_of(study), "--zones", "DE,FR", *FROM, "--intensity", other, status=2)


def test_a_forecast_of_a_zone_needs_what_became_of_it(run, study, tmp_path):
    german = signal(tmp_path / "de.csv", np.full(30, 300.0))
    swedish = signal(tmp_path / "se.csv", np.full(30, 30.0), zone="SE")
    arguments = [*FROM, "--zones", "DE,SE", "--intensity", german, "--intensity", swedish, "--actual", german]
    assert "what became of the forecast of SE" in run(ledger_of(study), *arguments, status=2)


def test_two_kinds_are_not_compared(run, study, tmp_path):
    path = signal(tmp_path / "marginal.csv", np.full(30, 300.0), kind="marginal direct")
    assert "of several kinds" in run(ledger_of(study), "--zones", "DE,SE", *FROM, "--intensity", path, status=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "FILE"),
        (["ledger.csv"], "--zones"),
        (["ledger.csv", "--zones", "DE", "--deadline", "soon"], "'soon' is not a duration above zero"),
        (["ledger.csv", "--zones", "DE", "--from", "2026-11-25T08:00"], "no time zone"),
        (["ledger.csv", "--zones", "DE", "--gb", "-1"], "--gb"),
        (["ledger.csv", "--zones", "DE", "--json", "--begin"], "not allowed with"),
        (["backtest"], "HISTORY"),
        (["backtest", "history.csv", "--forecasts", "f.csv", "--slack", "1d"], "--duration"),
        (
            ["backtest", "history.csv", "--forecasts", "f.csv", "--slack", "1d", "--duration", "6"],
            "'6' is not a duration",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_one_line(refused, arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize(("arguments", "name"), [([], "schedule"), (["backtest"], "schedule backtest")])
def test_both_commands_have_help_with_an_example(run, capsys, arguments, name):
    with pytest.raises(SystemExit) as ended:
        run(*arguments, "--help")
    assert ended.value.code == 0
    assert f"example: footprint {name}" in " ".join(capsys.readouterr().out.split())


def test_the_command_waits_for_nothing_that_it_does_not_need():
    script = "import sys, emissions.schedule.command; print({'pandas', 'numpy', 'scipy'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ended.stdout == "set()\n"


# --- the study's own table


def test_proposed_starts_are_of_the_measured_study_and_no_clock(study, tmp_path):
    tables = []
    for name in ("one.csv", "two.csv"):
        write_schedule(ledger_of(study), study / "plan.csv", tmp_path / name, carbon(pue=1.2), 24)
        tables.append((tmp_path / name).read_bytes())
    assert tables[0] == tables[1]
    table = read_table(tmp_path / "one.csv")
    assert tuple(table.columns) == START_COLUMNS
    assert list(table["policy"].unique()) == ["now", "best single start", "whole DAG"]
    now = table[table["policy"] == "now"]
    assert now["planned_start"].min() == "2026-01-15T10:00:00Z"  # when the study began
    energy_kwh = read_ledger(ledger_of(study))["energy_kwh"].sum()
    assert now["energy_kwh"].sum() == pytest.approx(energy_kwh)
    priced_g = now["energy_kwh"] * 1.2 * now["carbon_intensity_g_per_kwh"]
    assert now["emissions_g"].to_list() == pytest.approx(priced_g.to_list())
    emitted = table.groupby("policy")["emissions_g"].sum()
    assert emitted["whole DAG"] <= emitted["best single start"] < emitted["now"]
    ends = pd.to_datetime(table.groupby("policy")["planned_end"].max())
    assert (ends - ends["now"] <= pd.Timedelta("24h 5min")).all()


def test_no_slack_and_a_zone_without_seasons_change_nothing(study):
    ledger, plan = read_ledger(ledger_of(study)), read_table(study / "plan.csv")
    for settings, slack_h in ((carbon(), 0), (carbon(zone="AF"), 48)):
        table = propose(ledger, plan, settings, slack_h)
        assert table["saved_g"].abs().max() < 1e-9
        assert table.groupby("policy")["planned_start"].min().nunique() == 1


def test_a_slack_below_zero_is_refused(study):
    with pytest.raises(ValueError, match="slack_h is -1"):
        propose(read_ledger(ledger_of(study)), read_table(study / "plan.csv"), carbon(), -1)


# --- history replayed -----------------------------------------------------------------------------------------


@pytest.fixture
def replayed(tmp_path: Path) -> list[str]:
    """Arguments for ten days that are greenest at 20:00, and were foretold to be so at 10:00."""
    hours = pd.date_range("2026-03-01", periods=240, freq="h", tz="UTC")
    actual = 300 + 100 * np.cos(2 * np.pi * (hours.hour - 8) / 24)
    pd.DataFrame({"time": hours.strftime("%Y-%m-%dT%H:%MZ"), "g": actual}).to_csv(tmp_path / "history.csv", index=False)
    rows = []
    for issued in hours[hours.hour == 0]:
        ahead = pd.date_range(issued, periods=48, freq="h")
        told = 300 + 100 * np.cos(2 * np.pi * (ahead.hour - 8) / 24) - 250 * (ahead.hour == 10)
        rows.append(pd.DataFrame({"issued_at": issued, "time": ahead, "carbon_intensity_g_per_kwh": told}))
    pd.concat(rows).to_csv(tmp_path / "issued.csv", index=False)
    arguments = ["backtest", str(tmp_path / "history.csv"), "--forecasts", str(tmp_path / "issued.csv"), "--zone", "DE"]
    return [*arguments, "--time-column", "time", "--value-column", "g", "--kind", "average lifecycle"]


def test_a_backtest_reports_what_was_saved_and_the_regret(replayed, run):
    (row,) = json.loads(run(*replayed, "--duration", "1h", "--slack", "23h", "--json"))
    # 10:00 was in truth 300 + 100 cos(30 degrees); 20:00 is 200; now, at midnight, 300 + 100 cos(120 degrees)
    assert (row["policy"], row["jobs"]) == ("best start", 10)
    assert row["saving_percent"] == pytest.approx(100 * (1 - (300 + 50 * 3**0.5) / 250))
    assert row["perfect_saving_percent"] == pytest.approx(20.0)
    assert row["regret_percent"] == pytest.approx(100 * ((300 + 50 * 3**0.5) / 200 - 1))
    assert row["worse_percent"] == 100.0


def test_a_backtest_of_pauses_is_a_table_for_a_person(replayed, run):
    out = run(*replayed, "--duration", "3h", "--slack", "20h", "--pausable")
    assert "10 jobs of 3:00:00 with 20:00:00 of slack, zone DE, average lifecycle" in out
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["best", "paused", "threshold"]
