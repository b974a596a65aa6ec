"""Jobs that come and go on one node, with readings that are known."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emissions.meters import MeterSettings, open_meters
from emissions.node import Node, OpenAttempt
from emissions.sensors import Part, Reading, Sensors

SIMULATED = {"cpu_w": 50.0, "ram_w": 8.0, "gpu_w": [250.0, 260.0]}
GPUS = ["SIMULATED-0", "SIMULATED-1"]


class Scripted(Sensors):
    """Sensors whose readings a test gives; all else is simulated hardware."""

    def __init__(self, settings: MeterSettings) -> None:
        super().__init__(settings, open_meters(settings))
        self.readings: Iterator[Reading] = iter(())

    def read(self) -> Reading:
        return next(self.readings)


class ScriptedTree:
    """Processes that have used what a test says."""

    def __init__(self) -> None:
        self.used_s = 0.0
        self.inside: set[int] = set()

    def cpu_s(self) -> float:
        return self.used_s

    def has(self, pid: int) -> bool:
        return pid in self.inside


def reading(seconds: float = 1.0, **changes: Any) -> Reading:
    values: dict[str, Any] = {
        "seconds": seconds,
        "cpu": Part(50.0 * seconds, 20.0 * seconds),
        "ram": Part(8.0 * seconds, 8.0 * seconds),
        "psys": Part(0.0, 0.0),
        "gpus": {GPUS[0]: Part(250.0 * seconds, None, 249.0 * seconds), GPUS[1]: Part(260.0 * seconds, None, None)},
        "busy_s": seconds,
        "metering_s": 0.01 * seconds,
        "capacity_s": 4.0 * seconds,
    }
    return Reading(**{**values, **changes})


@pytest.fixture
def node() -> Node:
    settings = MeterSettings(simulated=SIMULATED)
    return Node(settings, Scripted(settings))


@pytest.fixture
def opened(node: Node, tmp_path: Path) -> Any:
    def job(item: str = "a", **changes: Any) -> OpenAttempt:
        described = {
            "stage": "train_diffusion", "item": item, "factors": {}, "journal": str(tmp_path / "journal.jsonl"),
            "folders": [str(tmp_path)], "pid": os.getpid(), "pid_started": 0, "own": True, "count_startup": False,
            "startup_s": 0.0, "cpus": 1.0, "usable_cpus": float(os.cpu_count() or 1), "leased": [], "no_gpu": False,
            "visible": None, "codecarbon": False,
        } | changes  # fmt: skip
        script(node, reading(0.5))
        attempt = node.open(described)
        attempt.tree = ScriptedTree()  # type: ignore[assignment]
        attempt.last_cpu_s = 0.0
        return attempt

    return job


def script(node: Node, *readings: Reading) -> None:
    assert isinstance(node.sensors, Scripted)
    node.sensors.readings = iter(readings)


def use(attempt: OpenAttempt, cpu_s: float) -> None:
    assert isinstance(attempt.tree, ScriptedTree)
    attempt.tree.used_s += cpu_s


def job_j(attempt: OpenAttempt) -> float:
    totals = attempt.totals
    return (totals.cpu_j or 0) + (totals.gpu_j or 0) + (totals.ram_j or 0)


def step(node: Node, seconds: float = 1.0, **changes: Any) -> None:
    script(node, reading(seconds, **changes))
    node.read()


def test_one_job_alone_owns_the_node_but_for_others_and_the_metering(node: Node, opened: Any) -> None:
    attempt = opened()
    use(attempt, 0.6)
    step(node)
    totals = attempt.totals
    assert totals.cpu_j == pytest.approx(20 + 30 * 0.6)  # idle, and above it by CPU time
    assert totals.metering_j == pytest.approx(30 * 0.01)
    assert totals.rest_j == pytest.approx(30 * 0.39)
    assert (totals.ram_j, totals.gpu_j, totals.node_j) == (8.0, 510.0, 568.0)
    assert totals.idle_j is None  # of the GPUs nobody knows it
    assert totals.cpu_s == 0.6


def test_whatever_jobs_come_and_go_their_shares_metering_and_rest_are_the_node(node: Node, opened: Any) -> None:
    dice = random.Random(3)
    witness = opened("witness", no_gpu=True)
    ended: list[OpenAttempt] = []
    for number in range(200):
        running = node.attempts[1:]
        if len(running) < 8 and dice.random() < 0.4:
            leased = [GPUS[number % 2]] if number % 3 == 0 and not any(a.leased for a in running) else []
            opened(f"job {number}", leased=leased, cpus=float(dice.randint(1, 4)))
        elif running and dice.random() < 0.3:
            leaving = dice.choice(running)
            use(leaving, dice.random())
            script(node, reading(dice.random(), busy_s=5.0))
            node.close(leaving)
            ended.append(leaving)
        for attempt in node.attempts:
            use(attempt, dice.random())
        step(node, dice.random() + 0.01, busy_s=9.0)
    everyone = [*node.attempts, *ended]
    assert len(everyone) > 30
    owned_j = sum(job_j(attempt) + attempt.totals.metering_j for attempt in everyone) + witness.totals.rest_j
    assert owned_j == pytest.approx(witness.totals.node_j, rel=1e-12)


def test_a_leased_gpu_is_its_holders_and_one_that_nobody_holds_is_the_rest(node: Node, opened: Any) -> None:
    first, second = opened("a", leased=[GPUS[0]]), opened("b", no_gpu=True)
    before_j = first.totals.gpu_j or 0.0
    step(node)
    assert (first.totals.gpu_j or 0) - before_j == 250.0
    assert second.totals.gpu_j == 0.0
    assert second.totals.rest_j >= 260.0


def test_a_gpu_that_two_jobs_see_is_split_and_said_so(node: Node, opened: Any) -> None:
    first, second = opened("a", visible="0"), opened("b", visible="0")
    before_j = first.totals.gpu_j or 0.0  # alone until the second came
    step(node, 2.0)
    assert second.totals.gpu_j == 250.0 and (first.totals.gpu_j or 0) - before_j == 250.0
    assert "several metered jobs" in second.warnings[0]
    assert second.totals.gpu_low_j == 0.0  # it may have been all the other's doing
    assert second.totals.gpu_high_j >= 500.0


def test_a_job_that_shares_what_it_sees_does_not_see_what_another_has_leased(node: Node, opened: Any) -> None:
    opened("a", leased=[GPUS[0]])
    assert list(opened("b").gpus) == [GPUS[1]]


def test_a_lease_comes_before_what_others_only_see(node: Node, opened: Any) -> None:
    looker, holder = opened("a"), opened("b", leased=[GPUS[0]])
    before_j = looker.totals.gpu_j or 0.0
    step(node)
    assert holder.totals.gpu_j == 250.0 and (looker.totals.gpu_j or 0) - before_j == 260.0


def test_a_mig_slice_is_unknown_and_not_zero(node: Node, opened: Any) -> None:
    attempt = opened(visible="MIG-1234")
    step(node)
    assert attempt.totals.gpu_j is None and attempt.totals.cpu_j == pytest.approx(20)
    assert "MIG-1234" in attempt.warnings[0]


def test_cpu_time_before_the_window_is_charged_at_the_windows_price(node: Node, opened: Any) -> None:
    attempt = opened()
    attempt.startup_cpu_s = 3.0
    step(node, busy_s=2.0)  # 30 J above idle for 2 CPU seconds
    assert attempt.totals.startup_j == pytest.approx(45)


def test_a_meter_that_stops_to_answer_makes_the_sum_unknown(node: Node, opened: Any) -> None:
    attempt = opened()
    step(node, cpu=Part(None))
    assert attempt.totals.cpu_j is None and attempt.totals.ram_j == 8.0


def test_rows_on_disk_are_the_totals(node: Node, opened: Any, tmp_path: Path) -> None:
    from emissions.attempt_file import read_attempt

    attempt = opened()
    for _ in range(3):
        use(attempt, 0.25)
        step(node)
        node.write_rows()
    read = read_attempt(tmp_path / f"{attempt.header['attempt_id']}.jsonl")
    assert [row.t_s for row in read.rows] == [1, 2, 3]
    assert read.totals.row() == attempt.totals.row()
    assert not read.ended


def test_cpu_time_of_a_job_inside_another_is_the_inner_ones(node: Node, opened: Any) -> None:
    outer, middle, inner = (opened(name, pid=pid, own=False) for name, pid in (("a", 1), ("b", 2), ("c", 3)))
    outer.tree.inside, middle.tree.inside = {2, 3}, {3}
    for attempt, used_s in ((outer, 0.6), (middle, 0.5), (inner, 0.2)):  # each tree holds those inside it
        use(attempt, used_s)
    step(node)
    assert [attempt.totals.cpu_s for attempt in (outer, middle, inner)] == pytest.approx([0.1, 0.3, 0.2])
