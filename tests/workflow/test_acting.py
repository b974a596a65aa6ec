"""Studies that wait for their start, pause and keep a budget: through Snakemake, in real time."""

import json
import shutil
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from emissions.acting.pauses import read_pauses
from emissions.acting.starts import open_start, read_starts, starts_path
from emissions.records import parse_utc, read_journal, read_record, utc_text
from emissions.tables import read_table
from tests.standins.slurm import Slurm
from tests.workflow.snake import TINY, jobs_of, snakemake, snakemake_command

pytestmark = pytest.mark.study

MODEL = "unet-nano-ct-2d-16-x1-s0"
IMAGES = 8_000  # three times as long as a job takes to look at its budget for the second time
ONE_MODEL = """
matrix: {family: [unet], spatial_dims: [2], include: []}
metering: {interval_s: 0.1, simulated: {cpu_w: 100, ram_w: 20}}
"""
LONG = f"diffusion: {{images: {{2d: {IMAGES}, 3d: 16}}, batch_size: {{2d: 8, 3d: 2}}}}"


def overlay(folder: Path, text: str, name: str = "overlay.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def write_grid(folder: Path, grams: float) -> Path:
    """Two days of one intensity, from yesterday on."""
    hours = pd.date_range(datetime.now(UTC) - timedelta(days=1), periods=72, freq="h").floor("h")
    table = pd.DataFrame({"when": hours.strftime("%Y-%m-%dT%H:%MZ"), "grams": grams})
    new = folder / "new.csv"
    table.to_csv(new, index=False)
    return new.replace(folder / "grid.csv")


GRID = "{intensity: file, fallback: false, file: {path: grid.csv, time: when, value: grams, kind: average lifecycle}}"


def wait_for(happened, run: subprocess.Popen[str], seconds: float = 240.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not happened():
        assert run.poll() is None and time.monotonic() < deadline_s, run.communicate()[0][-3000:]
        time.sleep(0.1)


def test_a_training_pauses_above_the_limit_goes_on_below_it_and_the_saving_is_told(tmp_path):
    """The grid is dirty until the training pauses, and clean from then on; the file in the end is the price."""
    write_grid(tmp_path, 500.0)
    acting = overlay(tmp_path, f"{ONE_MODEL}\ncarbon: {GRID}\nschedule: {{pause_above_g_per_kwh: 300}}\n")
    command, environment = snakemake_command(tmp_path, "all", configs=(TINY, acting))
    control = tmp_path / "results/models" / MODEL / "control.json"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        autoencoder = tmp_path / "results/autoencoders/ct-2d-16-kl/control.json"
        wait_for(autoencoder.exists, run)
        assert json.loads(autoencoder.read_text())["state"] == "pause"
        checkpoint = autoencoder.with_name("checkpoint.pt")
        wait_for(checkpoint.exists, run)
        time.sleep(3)
        assert not autoencoder.with_name("autoencoder.pt").exists()
        write_grid(tmp_path, 100.0)
        output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output[-3000:]
    assert "pause: 500 g/kWh is above the limit of 300" in output and "run: 100 g/kWh is at or below" in output
    assert not control.exists() and not autoencoder.exists()
    results = tmp_path / "results"
    record = read_record(results / "autoencoders/ct-2d-16-kl/emissions/train_autoencoder.json")
    assert record["attempts"] == 1 and record["paused_s"] > 3 and record["checkpoints"] >= 1
    # the machine draws 120 W whatever it does, and the training has a part of it while it sleeps
    assert 0 < record["paused_kwh"] <= 1.02 * 120 * record["paused_s"] / 3.6e6
    assert record["paused_kwh"] < record["energy_kwh"]
    pauses = read_pauses(results / "emissions/pauses.jsonl")
    assert {pause.attempt_id for pause in pauses} == {record["attempt_id"]}, "only the training paused"
    (pause,) = pauses
    assert pause.energy_kwh == pytest.approx(record["paused_kwh"])
    savings = read_table(results / "emissions/savings.csv")
    ledger = read_table(results / "emissions/ledger.csv")
    assert savings["energy_kwh"].sum() == pytest.approx(ledger["energy_kwh"].sum())
    # at one price for all hours a pause saves nothing and costs what was used in it
    assert savings["saved_g"].sum() == pytest.approx(-100 * record["paused_kwh"])
    assert "acted" in (results / "summary.txt").read_text()
    (plan,) = read_starts(starts_path(results))
    assert plan["planned_start"] == plan["requested_at"] and plan["done_at"]
    assert jobs_of(snakemake(tmp_path, "-n", configs=(TINY, acting))) == {}


def test_a_budget_stops_training_at_a_checkpoint_and_a_larger_one_goes_on(tmp_path):
    tables = overlay(tmp_path, f"{ONE_MODEL}\n{LONG}\n", "model.yaml")
    before = snakemake(tmp_path, "results/autoencoders/ct-2d-16-kl/latents.pt", configs=(TINY, tables))
    assert before.returncode == 0, before.stderr[-2000:]
    journal = tmp_path / "results/emissions/journal.jsonl"
    used_kwh = sum(line["energy_kwh"] for line in read_journal(journal))
    one_second = 120 / 3.6e6
    tight = overlay(tmp_path, f"{ONE_MODEL}\n{LONG}\nbudget: {{energy_kwh: {used_kwh + one_second}, action: stop}}\n")
    stopped = snakemake(tmp_path, "models", configs=(TINY, tight))
    assert stopped.returncode != 0
    assert "budget.energy_kwh" in stopped.stderr, stopped.stderr[-2000:]
    assert "resumes with `make study`" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    attempts = [line for line in read_journal(journal) if line["stage"] == "train_diffusion"]
    assert [line["outcome"] for line in attempts] == ["failed"]
    wide = overlay(tmp_path, f"{ONE_MODEL}\n{LONG}\nbudget: {{energy_kwh: 100, action: stop}}\n")
    finished = snakemake(tmp_path, "models", configs=(TINY, wide))
    assert finished.returncode == 0, finished.stderr[-2000:]
    record = read_record(tmp_path / f"results/models/{MODEL}/emissions/train_diffusion.json")
    assert record["attempts"] == 2 and record["images_seen"] == IMAGES
    assert 0 < record["images_resumed"] < IMAGES
    # what came before the checkpoint was not in vain
    assert record["wasted_kwh"] < 0.5 * attempts[0]["energy_kwh"]


GREEN = "schedule: {start: green, deadline_h: 5, duration_h: 1}"


def plan_ahead(folder: Path, seconds: float) -> datetime:
    """A start that is planned already, so many seconds ahead, as `GREEN` asks for; returns it."""
    now = datetime.now(UTC)
    start = (now + timedelta(seconds=seconds)).replace(microsecond=0)
    plan = {"requested_at": now, "planned_start": start, "deadline": now + timedelta(hours=5)}
    plan = {name: utc_text(moment) for name, moment in plan.items()}
    asked = {"start": "green", "deadline_h": 5, "duration_h": 1, "zone": "DE"}
    plan |= {"asked": asked, "duration_s": 3600.0, "now_g_per_kwh": 400, "carbon_intensity_g_per_kwh": 300}
    path = starts_path(folder / "results")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([plan]))
    return start


def test_a_study_waits_for_its_planned_start_and_a_warning_does_not_stop_it(tmp_path):
    config = overlay(tmp_path, f"{ONE_MODEL}\n{GREEN}\nbudget: {{energy_kwh: 1.0e-9, action: warn}}\n")
    start = plan_ahead(tmp_path, 30)
    dry = snakemake(tmp_path, "-n", configs=(TINY, config))
    assert "waiting until" not in dry.stdout + dry.stderr
    finished = snakemake(tmp_path, "results/cohorts/ct-2d-16/cohort.json", configs=(TINY, config))
    assert finished.returncode == 0, finished.stderr[-2000:]
    said = finished.stdout + finished.stderr
    assert "waiting until" in said and "300 g/kWh instead of 400 (DE)" in said
    attempts = read_journal(tmp_path / "results/emissions/journal.jsonl")
    assert min(parse_utc(line["started_at"]) for line in attempts) >= start
    assert said.count("over budget: ") == 1
    assert open_start(tmp_path / "results"), "the study has only begun"


def test_slurm_holds_the_jobs_of_a_study_until_its_planned_start(tmp_path, slurm_packages):
    """A real SLURM, told by a real Snakemake; nothing waits but the job."""
    config = overlay(tmp_path, f"{ONE_MODEL}\n{GREEN}\n")
    folder = Path(tempfile.mkdtemp(prefix="footprint-", dir="/tmp"))  # its sockets need a short path
    with Slurm(folder, gpus=0) as slurm:
        flags = ["--slurm-status-command=squeue", "--slurm-no-account", "--slurm-init-seconds-before-status-checks=7"]
        flags += ["--default-resources=runtime=10"]
        target = "results/images/ct/manifest.json"
        command, environment = snakemake_command(tmp_path, target, *flags, configs=(TINY, config), profile="slurm")
        start = plan_ahead(tmp_path, 30)
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env=slurm.environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as run:
            wait_for(lambda: slurm.run("squeue", "--noheader"), run)
            queued = slurm.run("squeue", "--noheader", "--format=%T %r %S").split()
            output = run.communicate(timeout=300)[0]
        assert run.returncode == 0, output[-3000:]
    shutil.rmtree(folder, ignore_errors=True)
    assert queued[:2] == ["PENDING", "BeginTime"]
    assert queued[2] == f"{start.astimezone():%Y-%m-%dT%H:%M:%S}"
    assert "the cluster holds jobs until" in output
    (attempt,) = read_journal(tmp_path / "results/emissions/journal.jsonl")
    assert parse_utc(attempt["started_at"]) >= start


def test_what_to_do_about_the_grid_trains_nothing_again(tiny_study, tmp_path):
    config = overlay(
        tmp_path,
        "schedule: {start: green, deadline_h: 48, duration_h: 1, pause_above_g_per_kwh: 300}\n"
        "budget: {energy_kwh: 1, emissions_g: 5, action: stop}\n",
    )
    assert jobs_of(snakemake(tiny_study, "-n", configs=(TINY, config))) == {}


def test_tables_are_made_at_once_whatever_the_study_waits_for(tiny_study, tmp_path):
    study = shutil.copytree(tiny_study, tmp_path / "study")
    start = plan_ahead(study, 3600)
    green = overlay(study, f"{GREEN}\ncarbon: {{zone: FR}}\n")
    finished = snakemake(study, "results/emissions/savings.csv", configs=(TINY, green))
    assert finished.returncode == 0 and datetime.now(UTC) < start, finished.stderr[-2000:]
    assert "waiting until" not in finished.stdout + finished.stderr
    assert not open_start(study / "results"), "all of it has been measured"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("schedule: {start: green}", "schedule.duration_h"),
        ("schedule: {start: green, duration_h: 30}", "schedule.deadline_h"),
    ],
)
def test_a_start_that_cannot_be_planned_is_one_line_that_names_its_key(tmp_path, wrong, said):
    target = "results/images/ct/manifest.json"
    finished = snakemake(tmp_path, target, configs=(TINY, overlay(tmp_path, wrong)))
    assert finished.returncode != 0
    lines = [line for line in finished.stderr.splitlines() if said in line]
    assert len(lines) == 1, finished.stderr
    assert "Traceback" not in finished.stderr
