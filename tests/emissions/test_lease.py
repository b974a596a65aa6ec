"""GPUs that jobs hold: processes of their own, for the kernel frees what a dead one held."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from emissions import lease
from emissions.lease import leased_gpus
from tests.standins.hardware import REPOSITORY

JOB = """
import json, os, sys, time
from pathlib import Path
from emissions.lease import leased_gpus
count, gpus, folder, seconds = json.loads(sys.argv[1])
with leased_gpus(count, gpus, Path(folder)) as held:
    shown = os.environ["CUDA_VISIBLE_DEVICES"]
    print(json.dumps({"held": held, "shown": shown, "from_s": time.monotonic()}), flush=True)
    time.sleep(seconds)
    until_s = time.monotonic()
print(json.dumps({"until_s": until_s}), flush=True)
"""


def gpu(index):
    return {"index": index, "uuid": f"GPU-{index}{index}{index}{index}", "model": "Stand-in GPU"}


def uuids(*indices):
    return [gpu(index)["uuid"] for index in indices]


TWO, THREE, FOUR = ([gpu(index) for index in range(count)] for count in (2, 3, 4))


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="lease-", dir="/tmp") as made:
        yield Path(made) / "runtime"


@pytest.fixture
def start(folder):
    """Start a job that holds GPUs for some seconds; all end with the test."""
    with contextlib.ExitStack() as jobs:

        def started(count, gpus, seconds=60.0):
            job = subprocess.Popen(
                [sys.executable, "-c", JOB, json.dumps([count, gpus, str(folder), seconds])],
                env={**without_gpu_variables(), "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            jobs.enter_context(job)
            jobs.callback(job.kill)
            return job

        yield started


def without_gpu_variables():
    return {key: value for key, value in os.environ.items() if key not in (*lease.VARIABLES, *lease._CLUSTERS)}


def told(job):
    return json.loads(job.stdout.readline())


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "POLL_S", 0.02)


def test_many_jobs_at_once_each_have_gpus_of_their_own(start):
    counts = [1, 2, 1, 1, 2, 3]
    jobs = [start(count, THREE, 0.2) for count in counts]
    holds = [told(job) | told(job) for job in jobs]
    assert [len(hold["held"]) for hold in holds] == counts
    assert [hold["shown"].split(",") for hold in holds] == [hold["held"] for hold in holds]
    for number, hold in enumerate(holds):
        for other in holds[:number]:
            overlaps = hold["from_s"] < other["until_s"] and other["from_s"] < hold["until_s"]
            assert not (overlaps and set(hold["held"]) & set(other["held"]))
    assert [job.wait() for job in jobs] == [0] * 6


def test_jobs_that_each_want_all_gpus_take_turns(start):
    jobs = [start(2, TWO, 0.1) for _ in range(4)]
    holds = sorted((told(job) | told(job) for job in jobs), key=lambda hold: hold["from_s"])
    assert all(before["until_s"] <= after["from_s"] for before, after in itertools.pairwise(holds))


def test_a_job_that_lacks_one_gpu_holds_none_while_it_waits(start, folder):
    first = start(1, TWO)
    assert told(first)["held"] == uuids(0)
    waiting = start(2, TWO)
    assert "waiting" in waiting.stderr.readline()
    with leased_gpus(1, TWO, folder, environment={}) as held:
        assert held == uuids(1)
    first.kill()
    assert told(waiting)["held"] == uuids(0, 1)


def test_a_killed_holder_holds_nothing(start, folder):
    holder = start(1, [gpu(0)])
    told(holder)
    waiting = start(1, [gpu(0)], 0.0)
    waiting.stderr.readline()
    holder.kill()
    killed_s = time.monotonic()
    assert told(waiting)["from_s"] - killed_s < 5
    assert waiting.wait() == 0


def test_a_job_that_waits_tells_for_what_and_for_whom(start, folder, quick):
    holder = start(1, TWO)
    told(holder)
    lines = []

    def hear(line):
        lines.append(line)
        holder.kill()

    with leased_gpus(2, TWO, folder, environment={}, tell=hear) as held:
        assert held == uuids(0, 1)
    assert lines == [f"waiting for 2 free GPUs of 2: held by process {holder.pid}"]


def test_a_long_wait_is_told_again(start, folder, quick, monkeypatch):
    monkeypatch.setattr(lease, "TELL_S", 0.1)
    holder = start(1, [gpu(0)])
    told(holder)
    lines = []

    def hear(line):
        lines.append(line)
        if len(lines) == 3:
            holder.kill()

    with leased_gpus(1, [gpu(0)], folder, environment={}, tell=hear):
        assert len(lines) == 3 and len(set(lines)) == 1


def test_a_lease_ends_with_its_block_however_it_ends(folder):
    with pytest.raises(KeyError), leased_gpus(1, [gpu(0)], folder, environment={}):
        raise KeyError
    with leased_gpus(1, [gpu(0)], folder, environment={}, tell=pytest.fail) as held:
        assert held == uuids(0)


@pytest.mark.parametrize(
    ("visible", "count", "held"),
    [
        ("2,1", 1, uuids(2)),
        ("2,1", 2, uuids(2, 1)),
        ("GPU-33,GPU-1", 2, uuids(3, 1)),
        ("3,0,1", 2, uuids(3, 0)),
        ("1,-1,2", 1, uuids(1)),  # as in CUDA, the list ends at what is invalid
    ],
)
def test_only_what_is_visible_is_leased(folder, visible, count, held):
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    with leased_gpus(count, FOUR, folder, environment, tell=pytest.fail) as leased:
        assert leased == held
        assert environment == {"CUDA_VISIBLE_DEVICES": ",".join(held)}
    assert environment == {"CUDA_VISIBLE_DEVICES": visible}


def test_the_environment_is_as_it_was(folder):
    environment = {"PATH": "/bin"}
    with leased_gpus(1, TWO, folder, environment):
        assert environment == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": uuids(0)[0]}
    assert environment == {"PATH": "/bin"}


def test_gpus_of_a_cluster_are_shared_if_another_job_holds_them(start, folder):
    told(start(1, [gpu(1)]))
    environment = {"CUDA_VISIBLE_DEVICES": "2,1", "SLURM_JOB_ID": "7"}
    lines = []
    with leased_gpus(2, THREE, folder, environment, lines.append) as held:
        assert held == uuids(2, 1)
        assert environment["CUDA_VISIBLE_DEVICES"] == ",".join(held)
    assert lines == ["a GPU that the cluster gave to this job is held by another job of yours; they share it"]


def test_gpus_of_a_cluster_that_are_free_are_held(folder):
    environment = {"CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_ID": "7"}
    with leased_gpus(1, TWO, folder, environment, pytest.fail) as held:
        assert held == uuids(1)
        with leased_gpus(1, TWO, folder, {}, pytest.fail) as others:
            assert others == uuids(0)


def test_jobs_inside_one_cluster_job_divide_what_it_has(start, folder):
    told(start(1, [gpu(1)]))
    environment = {"CUDA_VISIBLE_DEVICES": "1,2", "SLURM_JOB_ID": "7"}
    with leased_gpus(1, THREE, folder, environment, pytest.fail) as held:
        assert held == uuids(2)


@pytest.mark.parametrize(
    ("environment", "count", "words"),
    [
        ({}, 3, "resources gpu=3: this machine has 2"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 2, "resources gpu=2: CUDA_VISIBLE_DEVICES=1 leaves 1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, "resources gpu=1: CUDA_VISIBLE_DEVICES= leaves 0"),
        ({"HIP_VISIBLE_DEVICES": "5"}, 1, "resources gpu=1: HIP_VISIBLE_DEVICES=5 leaves 0"),
    ],
)
def test_too_few_gpus_are_one_line(folder, environment, count, words):
    before = dict(environment)
    with pytest.raises(ValueError, match=f"^{words}$"), leased_gpus(count, TWO, folder, environment):
        pytest.fail("there are not that many")
    assert environment == before


@pytest.mark.parametrize(
    ("count", "gpus", "environment"),
    [(1, [], {}), (0, TWO, {}), (0, TWO, {"CUDA_VISIBLE_DEVICES": "7"})],
    ids=["no GPU", "none wanted", "none wanted and none visible"],
)
def test_nothing_is_leased(folder, count, gpus, environment):
    before = dict(environment)
    with leased_gpus(count, gpus, folder, environment, tell=pytest.fail) as held:
        assert held == [] and environment == before
    assert not folder.exists()


def test_a_mig_slice_is_left_to_its_owner(folder):
    environment, lines = {"CUDA_VISIBLE_DEVICES": "MIG-1234"}, []
    with leased_gpus(1, TWO, folder, environment, lines.append) as held:
        assert held == [] and environment == {"CUDA_VISIBLE_DEVICES": "MIG-1234"}
    assert len(lines) == 1 and "MIG" in lines[0]


def test_a_folder_that_refuses_costs_the_lease_and_not_the_job(tmp_path):
    (tmp_path / "file").write_text("")
    environment, lines = {"CUDA_VISIBLE_DEVICES": "1"}, []
    with leased_gpus(1, TWO, tmp_path / "file" / "runtime", environment, lines.append) as held:
        assert held == [] and environment == {"CUDA_VISIBLE_DEVICES": "1"}
    assert len(lines) == 1 and "no GPU can be leased" in lines[0]


def test_the_folder_is_where_the_users_jobs_meet(folder, monkeypatch):
    monkeypatch.setenv("FOOTPRINT_RUNTIME_DIR", str(folder))
    with leased_gpus(1, TWO, environment={}) as held:
        assert (folder / f"gpu-{held[0]}.lock").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("environment", "variable"),
    [({}, "CUDA_VISIBLE_DEVICES"), ({"HIP_VISIBLE_DEVICES": "1,0"}, "HIP_VISIBLE_DEVICES")],
)
def test_gpus_without_nvidias_uuid_go_by_their_index(folder, environment, variable):
    amd = [{"index": index, "uuid": f"{index}7ff74a0-0000-1000-80fc", "model": "AMD"} for index in range(2)]
    with leased_gpus(2, amd, folder, environment, pytest.fail):
        assert sorted(environment[variable].split(",")) == ["0", "1"]


def test_threads_of_one_process_have_leases_of_their_own(folder, quick):
    held, seen = [], []

    def hold():
        with leased_gpus(1, TWO, folder, environment={}, tell=lambda line: None) as mine:
            held.extend(mine)
            seen.append(list(held))
            time.sleep(0.05)
            held.remove(mine[0])

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6
    assert all(len(at_once) == len(set(at_once)) for at_once in seen)
