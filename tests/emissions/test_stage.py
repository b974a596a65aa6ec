from __future__ import annotations

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emissions import client, job, records
from emissions import stage as stage_module
from emissions.attempt_file import now_utc
from emissions.meters import MeterSettings
from emissions.meters.base import J_PER_KWH
from emissions.stage import Metered, stage, unmetered
from tests.emissions import jobs
from tests.standins.hardware import Named, fake_snakemake, standin_environment

pytestmark = pytest.mark.usefixtures("no_sensors", "runtime_folder")

ITEM = "unet-nano-ct-2d-64-x1-s0"


def journal_of(results: Path) -> list[records.Record]:
    return records.read_journal(results / "emissions" / "journal.jsonl")


@pytest.fixture(autouse=True)
def _startup_of_pytest_is_no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_startup_counted", True)


def outputs_of(snakemake: Any) -> list[Path]:
    return [Path(path) for path in snakemake.output]


def test_a_stage_leaves_record_trace_row_and_journal_line(tmp_path: Path) -> None:
    snakemake = fake_snakemake(tmp_path)
    with stage(snakemake) as metered:
        time.sleep(0.6)
        metered.work(images_seen=12_000, parameters=4_000_000)
    record = records.read_record(snakemake.output.record)
    assert (record["stage"], record["item"], record["outcome"]) == ("train_diffusion", ITEM, "ok")
    assert (record["attempts"], record["wasted_kwh"]) == (1, 0.0)
    assert (record["images_seen"], record["parameters"], record["samples"]) == (12_000, 4_000_000, None)
    assert (record["family"], record["resolution"], record["sampler"]) == ("unet", 64, None)
    assert (record["cpu_method"], record["gpu_method"]) == ("model:load x TDP", "none")
    assert (record["gpu_kwh"], record["gpu_count"], record["gpu_model"]) == (0.0, 0, None)
    assert record["energy_kwh"] == pytest.approx(record["cpu_kwh"] + record["ram_kwh"]) and record["energy_kwh"] > 0
    assert 0 < record["idle_kwh"] <= record["energy_kwh"] <= record["node_kwh"] * (1 + 1e-9)
    assert record["codecarbon_kwh"] > 0 and record["warnings"] == ""
    assert record["duration_s"] == pytest.approx(0.6, abs=0.2) and record["startup_kwh"] == 0
    assert record["energy_low_kwh"] < record["energy_kwh"] < record["energy_kwh"] + record["unseen_kwh"]
    assert record["energy_kwh"] + record["unseen_kwh"] < record["energy_high_kwh"]
    ended = records.parse_utc(record["ended_at"]) - records.parse_utc(record["started_at"])
    assert ended.total_seconds() == pytest.approx(record["duration_s"], abs=0.002)
    assert journal_of(tmp_path) == [record]
    trace = pq.read_table(snakemake.output.trace).to_pydict()
    assert 5 <= len(trace["time"]) <= 7 and None not in trace["ram_w"]
    with Path(snakemake.output.codecarbon).open(newline="") as stream:
        assert float(next(csv.DictReader(stream))["energy_consumed"]) == record["codecarbon_kwh"]
    assert sorted(file.name for file in Path(snakemake.output.record).parent.iterdir()) == [
        "train_diffusion.codecarbon.csv",
        "train_diffusion.json",
        "train_diffusion.power.parquet",
    ]


def test_a_failed_stage_leaves_only_its_journal_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snakemake = fake_snakemake(tmp_path)
    with pytest.raises(SystemExit) as caught, stage(snakemake) as metered:
        metered.work(images_seen=5)
        raise ValueError("config diffusion.batch is 0;\nset at least 1")
    assert caught.value.code == 2
    assert not any(path.exists() for path in outputs_of(snakemake))
    (line,) = journal_of(tmp_path)
    assert (line["outcome"], line["images_seen"]) == ("failed", 5)
    assert line["wasted_kwh"] == line["energy_kwh"] > 0
    log = snakemake.log[0]
    expected = f"error: train_diffusion {ITEM}: config diffusion.batch is 0; set at least 1 (traceback in {log})\n"
    assert capsys.readouterr().err == expected
    assert "Traceback" in Path(log).read_text() and "set at least 1" in Path(log).read_text()


def test_attempts_count_since_the_last_ok_one(tmp_path: Path) -> None:
    snakemake = fake_snakemake(tmp_path)
    for expected, fails in ((1, True), (2, True), (3, False), (1, False)):
        if fails:
            with pytest.raises(SystemExit), stage(snakemake):
                raise RuntimeError("out of memory")
            continue
        with stage(snakemake):
            pass
        record = records.read_record(snakemake.output.record)
        attempts = journal_of(tmp_path)[-expected:]
        assert record["attempts"] == expected
        assert record["energy_kwh"] == pytest.approx(sum(line["energy_kwh"] for line in attempts))
        assert record["wasted_kwh"] == pytest.approx(sum(line["energy_kwh"] for line in attempts[:-1]))
        assert record["earlier_attempts"].split() == [line["attempt_id"] for line in attempts[:-1]]
    assert len({line["attempt_id"] for line in journal_of(tmp_path)}) == 4


def test_the_line_that_tells_of_a_stage_tells_of_its_waste(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snakemake = fake_snakemake(tmp_path)
    with pytest.raises(SystemExit), stage(snakemake):
        raise RuntimeError("out of memory")
    capsys.readouterr()
    with stage(snakemake):
        pass
    assert re.fullmatch(
        r"train_diffusion \S+: [\d.]+ s, [\d.e-]+ Wh in 2 attempts, [\d.e-]+ Wh of it wasted\n", capsys.readouterr().err
    )


def test_work_up_to_the_checkpoint_that_was_resumed_from_is_not_waste(tmp_path: Path) -> None:
    snakemake = fake_snakemake(tmp_path)
    with pytest.raises(SystemExit), stage(snakemake):
        time.sleep(0.5)
        saved_at = records.utc_text(now_utc())
        time.sleep(0.5)
        raise RuntimeError("out of memory")
    with stage(snakemake) as metered:
        metered.work(images_seen=100, images_resumed=40, resumed_from=[saved_at])
    record = records.read_record(snakemake.output.record)
    (killed, _) = journal_of(tmp_path)
    assert record["wasted_kwh"] == pytest.approx(killed["energy_kwh"] / 2, rel=0.2)
    assert (record["images_seen"], record["images_resumed"]) == (100, 40)


def test_an_unexpected_error_is_named_with_its_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), stage(fake_snakemake(tmp_path)):
        raise KeyError("conv1")
    assert ": KeyError: 'conv1' (traceback in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"config": {"metering": {"interval_s": 0}}}, "metering.interval_s"),
        ({"wildcards": Named()}, "one wildcard"),
        ({"wildcards": Named(model="a", run="b")}, "one wildcard"),
    ],
)
def test_a_stage_that_cannot_start_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(SystemExit) as caught, stage(fake_snakemake(tmp_path, **changes)):
        raise AssertionError("the work must not start")
    errors = capsys.readouterr().err
    assert caught.value.code == 2 and word in errors and errors.count("\n") == 1


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, record: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(records, "write_record", full)
    snakemake = fake_snakemake(tmp_path)
    with pytest.raises(SystemExit) as caught, stage(snakemake):
        pass
    assert caught.value.code == 2 and "No space left on device" in capsys.readouterr().err
    assert not any(path.exists() for path in outputs_of(snakemake))
    assert [line["outcome"] for line in journal_of(tmp_path)] == ["failed"]


def test_no_recorder_at_all_is_a_job_that_is_metered_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("FOOTPRINT_RUNTIME_DIR", str(file / "below"))  # no socket can be made there
    snakemake = fake_snakemake(tmp_path)
    with stage(snakemake):
        time.sleep(0.5)
    record = records.read_record(snakemake.output.record)
    assert record["outcome"] == "ok" and record["ram_kwh"] > 0 and record["metering_kwh"] == 0
    assert [line["attempt_id"] for line in journal_of(tmp_path)] == [record["attempt_id"]]
    assert "metered from inside" in capsys.readouterr().err


def test_a_journal_that_cannot_be_written_is_a_warning_and_made_good_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "emissions" / "journal.jsonl"
    journal.mkdir(parents=True)  # a folder in the journal's place refuses every line
    snakemake = fake_snakemake(tmp_path)
    with pytest.raises(SystemExit), stage(snakemake):
        raise RuntimeError("out of memory")
    assert "not in the journal yet" in capsys.readouterr().err
    journal.rmdir()
    assert not journal_of(tmp_path)
    with stage(snakemake):
        pass
    assert [line["outcome"] for line in journal_of(tmp_path)] == ["failed", "ok"]
    assert records.read_record(snakemake.output.record)["attempts"] == 2


@pytest.mark.parametrize(("resources", "expected"), [({"gpu": 1}, 1), ({"gpu": 0}, 0), ({}, 2)])
def test_a_rule_has_the_gpus_that_its_resources_say(
    tmp_path: Path, nvml_folder: Path, resources: dict[str, int], expected: int
) -> None:
    job = """
import os, sys, time
from pathlib import Path
from emissions.stage import stage
from tests.emissions import jobs
from tests.standins.hardware import Named, fake_snakemake
resources = dict(pair.split("=") for pair in sys.argv[2:])
with stage(fake_snakemake(Path(sys.argv[1]), resources=Named(**resources))):
    print(os.environ.get("CUDA_VISIBLE_DEVICES"))
    time.sleep(0.5)
print(os.environ.get("CUDA_VISIBLE_DEVICES"))
"""
    command = [sys.executable, "-c", job, str(tmp_path), *(f"{name}={value}" for name, value in resources.items())]
    environment = standin_environment(nvml_folder, FAKE_NVML_WATTS="250,260")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    record = records.read_record(fake_snakemake(tmp_path).output.record)
    assert record["gpu_count"] == expected
    watts = {0: 0.0, 1: 250.0, 2: 510.0}[expected]
    assert record["gpu_kwh"] * J_PER_KWH == pytest.approx(watts * record["duration_s"], rel=0.02)
    assert done.stdout.splitlines()[0].startswith("GPU-00000000") is (expected == 1)
    assert done.stdout.splitlines()[1] == "None"


def test_fewer_gpus_than_asked_for_is_one_line_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client.Session, "gpus", [{"index": 0, "uuid": "GPU-0", "model": "one"}], raising=False)
    monkeypatch.setattr(client.Session, "__setattr__", _all_but_gpus)
    with pytest.raises(SystemExit), stage(fake_snakemake(tmp_path, resources=Named(gpu=2))):
        raise AssertionError("the work must not start")
    assert "resources gpu=2: this machine has 1" in capsys.readouterr().err


def _all_but_gpus(session: Any, name: str, value: Any) -> None:
    if name != "gpus":
        object.__setattr__(session, name, value)


def test_logging_goes_to_the_log_and_warnings_to_the_terminal_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snakemake = fake_snakemake(tmp_path)
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with stage(snakemake):
        logging.getLogger("models.train").info("epoch 1 of 2")
        logging.getLogger("models.train").warning("loss is not finite")
        warnings.warn("old function", DeprecationWarning, stacklevel=1)
    log = Path(snakemake.log[0]).read_text()
    assert "INFO models.train: epoch 1 of 2" in log and "loss is not finite" in log
    warned, done = capsys.readouterr().err.splitlines()
    assert warned == "WARNING: loss is not finite"
    assert re.fullmatch(r"train_diffusion \S+: [\d.]+ s, [\d.e-]+ Wh", done)
    assert (root.level, root.handlers) == before


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stage(fake_snakemake(tmp_path)):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_forked_worker_dies_of_sigterm_and_leaves_the_window_alone(tmp_path: Path) -> None:
    snakemake = fake_snakemake(tmp_path)
    with warnings.catch_warnings(), stage(snakemake):
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: data loaders do it
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
    assert [line["outcome"] for line in journal_of(tmp_path)] == ["ok"]


def test_queued_cuda_work_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        waited: list[int] = []  # noqa: RUF012

        is_available = is_initialized = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 2)
        synchronize = staticmethod(waited.append)

    monkeypatch.setitem(sys.modules, "torch", type("torch", (), {"cuda": Cuda}))
    with stage(fake_snakemake(tmp_path)):
        assert Cuda.waited == []
    assert Cuda.waited == [0, 1]


def test_unmetered_rules_fail_in_one_line_and_keep_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snakemake = fake_snakemake(tmp_path, rule="price_ledger", wildcards=Named(), output=Named(table="priced.csv"))
    with unmetered(snakemake):
        logging.getLogger("emissions.pricing").info("352 zones")
    assert "352 zones" in Path(snakemake.log[0]).read_text()
    with pytest.raises(SystemExit) as caught, unmetered(snakemake):
        raise ValueError("config carbon.zone is 'XX'; see `footprint zones`")
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: price_ledger: config carbon.zone is 'XX'") and errors.count("\n") == 1
    assert not journal_of(tmp_path)


@pytest.mark.parametrize("counts", [{"images": 1}, {"samples": -1}, {"flops": 1.5}, {"voxels": float("inf")}])
def test_work_refuses_what_the_ledger_cannot_hold(counts: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(counts))):
        Metered().work(**counts)


def test_empty_cells_of_the_plan_are_unknown() -> None:
    plan = {
        "family": "dit",
        "resolution": 64.0,
        "steps": float("nan"),
        "sampler": "",
        "seed": None,
        "run": "x",
    }
    factors = stage_module._factors(plan)
    assert (factors["family"], factors["resolution"]) == ("dit", 64)
    assert factors["steps"] is factors["sampler"] is factors["seed"] is factors["size"] is None


JOB = """
import sys, time
from pathlib import Path
from emissions.stage import stage
from tests.standins.hardware import fake_snakemake
with stage(fake_snakemake(Path(sys.argv[1]))) as metered:
    metered.work(images_seen=7)
    print("open", flush=True)
    try:
        time.sleep(float(sys.argv[2]))
    except Exception:  # as careless code does; an interruption must get through
        pass
"""


@pytest.mark.parametrize(("number", "outcome"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_an_interrupted_job_is_in_the_journal(
    tmp_path: Path, nvml_folder: Path, number: signal.Signals, outcome: str
) -> None:
    command = [sys.executable, "-c", JOB, str(tmp_path), "60"]
    environment = standin_environment(nvml_folder)
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdout is not None and job.stdout.readline() == "open\n"
        time.sleep(0.3)
        job.send_signal(number)
        time.sleep(0.01)
        job.send_signal(signal.SIGTERM)  # the second one, impatient, must not cost the line
        _, errors = job.communicate(timeout=20)
    assert job.returncode == 2
    assert errors.count("\n") == 1 and errors.startswith("error: train_diffusion")
    (line,) = journal_of(tmp_path)
    assert (line["outcome"], line["images_seen"]) == (outcome, 7)
    assert line["wasted_kwh"] == line["energy_kwh"] > 0 and line["duration_s"] >= 0.25
    assert not any(path.exists() for path in outputs_of(fake_snakemake(tmp_path)))
    (trace,) = (tmp_path / "emissions" / "attempts").iterdir()  # stays, for what was kept of the attempt
    assert trace.stem == line["attempt_id"]


def test_imports_before_the_window_are_counted_once(tmp_path: Path, nvml_folder: Path) -> None:
    job = """
import sys, time
from pathlib import Path
used_s = time.process_time()
while time.process_time() - used_s < 0.5:
    pass
from emissions.stage import stage
from tests.standins.hardware import fake_snakemake
for item in ("first", "second"):
    with stage(fake_snakemake(Path(sys.argv[1]), item)):
        time.sleep(0.2)
"""
    environment = standin_environment(nvml_folder)
    subprocess.run([sys.executable, "-c", job, str(tmp_path)], env=environment, check=True, capture_output=True)
    first, second = (records.read_record(fake_snakemake(tmp_path, item).output.record) for item in ("first", "second"))
    assert first["startup_s"] > 0.5 and first["startup_kwh"] > 0
    assert first["cpu_kwh"] > first["startup_kwh"] and first["energy_high_kwh"] > first["energy_kwh"]
    assert (second["startup_s"], second["startup_kwh"]) == (0, 0)


def test_a_whole_job_on_two_gpus(tmp_path: Path, nvml_folder: Path) -> None:
    environment = standin_environment(nvml_folder, FAKE_NVML_WATTS="250,260")
    command = [sys.executable, "-c", JOB, str(tmp_path), "1.5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.startswith("train_diffusion ") and len(done.stderr.splitlines()) == 1
    snakemake = fake_snakemake(tmp_path)
    record = records.read_record(snakemake.output.record)
    joules = record["gpu_kwh"] * J_PER_KWH
    assert joules == pytest.approx(510 * record["duration_s"], rel=0.01, abs=0.02 * 510)
    assert (record["gpu_count"], record["gpu_model"]) == (2, "Stand-in GPU")
    assert record["gpu_method"] == "nvml:energy-counter" and record["idle_kwh"] is None
    assert record["energy_low_kwh"] < record["energy_kwh"] < record["energy_high_kwh"]
    detail = json.loads(record["gpu_detail"])
    assert [gpu["device_j"] for gpu in detail] == pytest.approx([joules * 250 / 510, joules * 260 / 510], rel=0.01)
    assert [gpu["integral_j"] for gpu in detail] == pytest.approx([gpu["device_j"] for gpu in detail], rel=0.02)
    with Path(snakemake.output.codecarbon).open(newline="") as stream:
        row = next(csv.DictReader(stream))
    assert float(row["gpu_energy"]) * J_PER_KWH == pytest.approx(510 * float(row["duration"]), rel=0.01, abs=0.25 * 510)
    assert "CodeCarbon" not in record["warnings"]
    assert json.loads((tmp_path / "emissions" / "journal.jsonl").read_text()) == record


def test_a_recorder_that_is_gone_before_the_window_opens_harms_nobody(
    tmp_path: Path, runtime_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = client.Session(MeterSettings(codecarbon=False))
    for recorder in jobs.recorders(runtime_folder):
        recorder.kill()
    journal = tmp_path / "journal.jsonl"
    described = job.job_of(stage="track", item="x", factors={}, journal=journal, folders=[tmp_path], cpus=1)
    session.open(described)
    time.sleep(0.3)
    closed = session.close("ok", {})
    assert closed.record["duration_s"] == pytest.approx(0.3, abs=0.1) and closed.record["ram_kwh"] > 0
    assert session.saved("ok", closed.record, keep_trace=False, final=True) == ""
    assert [line["attempt_id"] for line in records.read_journal(journal)] == [closed.record["attempt_id"]]
