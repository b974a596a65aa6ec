"""Recorders that are not one divide the node all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emissions.meters.base import J_PER_KWH
from emissions.neighbours import Holdings, NoticeBoard
from tests.emissions import jobs
from tests.standins.hardware import REPOSITORY, standin_environment

BOARD = """
import sys
from collections import Counter
from pathlib import Path
from emissions.neighbours import Holdings, NoticeBoard
board = NoticeBoard(Path(sys.argv[1]))
board.post(Holdings(Counter({"GPU-0": 2}), Counter({"GPU-0": 1}), 0.5))
print("posted", flush=True)
sys.stdin.readline()
board.close()
"""


@pytest.fixture
def neighbour(tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BOARD, str(tmp_path)]
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout is not None and process.stdout.readline() == "posted\n"
    return process


def test_a_neighbours_notice_is_seen_until_it_leaves(tmp_path: Path, neighbour: subprocess.Popen[str]) -> None:
    board = NoticeBoard(tmp_path)
    board.post(Holdings(usable=1.0))  # one's own is not the others'
    others = board.others()
    assert (dict(others.gpus), dict(others.leased), others.usable) == ({"GPU-0": 2}, {"GPU-0": 1}, 0.5)
    neighbour.communicate("")
    assert board.others() == Holdings()
    board.close()
    assert not list(tmp_path.iterdir())


def test_a_notice_whose_recorder_was_killed_is_taken_down(tmp_path: Path, neighbour: subprocess.Popen[str]) -> None:
    os.kill(neighbour.pid, signal.SIGKILL)
    neighbour.wait()
    neighbour.communicate()
    assert NoticeBoard(tmp_path).others() == Holdings()
    assert len(list(tmp_path.iterdir())) == 1


def test_nonsense_and_no_folder_are_nobody(tmp_path: Path, neighbour: subprocess.Popen[str]) -> None:
    (notice,) = tmp_path.iterdir()
    notice.write_text("{")
    assert NoticeBoard(tmp_path).others() == Holdings()
    neighbour.communicate("")
    board = NoticeBoard(tmp_path / "nowhere")
    board.post(Holdings())
    assert board.others() == NoticeBoard(None).others() == Holdings()


def test_two_allocations_of_a_cluster_on_one_node_do_not_count_it_twice(
    nvml_folder: Path, runtime_folder: Path, tmp_path: Path
) -> None:
    """Neither was given a GPU, so both see the node's two; and both may use all CPUs."""
    environment = standin_environment(nvml_folder, FAKE_NVML_WATTS="100,300", FOOTPRINT_RUNTIME_DIR=str(runtime_folder))
    environment["FOOTPRINT_POWERCAP"] = str(tmp_path / "none")
    running = []
    for number in range(2):
        mine = environment | {"SLURM_JOB_ID": str(1000 + number)}
        running.append(jobs.start_job(tmp_path, f"job-{number}", 6.0, environment=mine, interval_s=0.2, ram_w=20.0))
    opened_s = [jobs.wait_until_open(job) for job in running]
    assert len(jobs.recorders(runtime_folder)) == 2
    ended = [jobs.said(job) for job in running]
    records = [jobs.record_of(tmp_path, f"job-{number}") for number in range(2)]
    # a window ends between the block's last line and the line after it, where a busy machine may take a while
    shortest_s, longest_s = (
        max(moments[name] for moments in ended) - min(opened_s) for name in ("closing_s", "closed_s")
    )
    for part, watts in (("gpu", 100.0 + 300.0), ("ram", 20.0)):
        used_j = sum(record[f"{part}_kwh"] for record in records) * J_PER_KWH
        assert 0.9 * watts * shortest_s <= used_j <= 1.1 * watts * longest_s, part
    assert all("several metered jobs" in record["warnings"] for record in records)
