"""A node that jobs share: whose window is open, and what each has used of it.

Readings are divided between the attempts that were open all through the interval (`emissions.attribution`), so the
node is read whenever one opens or closes.
"""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from emissions.attempt_file import FIELDS, AttemptFile, Totals, now_utc
from emissions.attribution import Claim, Split, split_cpu, split_gpu, split_reserved
from emissions.meters import MeterSettings
from emissions.meters.base import AbsentMeter, Meter
from emissions.meters.nvml import visible_gpus
from emissions.meters.processor import processor_name
from emissions.neighbours import Holdings, NoticeBoard
from emissions.processes import ProcessTree
from emissions.records import utc_text
from emissions.sensors import Part, Reading, Sensors

CLOCK_JUMP_S = 2.0


@dataclass
class HeldGpu:
    """What one attempt has of one GPU since its window opened."""

    share_j: float = 0.0
    alone_j: float = 0.0  # of it, while no other job held the GPU
    whole_j: float = 0.0  # of the device, while this job held it
    integral_j: float | None = 0.0  # of the device, likewise


@dataclass(eq=False)
class OpenAttempt:
    """An attempt whose window is open: who it is, what it holds, what it has used."""

    header: dict[str, Any]
    file: AttemptFile
    tree: ProcessTree
    cpus: float
    usable: float
    leased: bool
    gpus: dict[str, HeldGpu]
    startup_cpu_s: float
    last_cpu_s: float
    totals: Totals = field(default_factory=Totals)
    warnings: list[str] = field(default_factory=list)
    node_cpu_j: float = 0.0
    node_ram_j: float = 0.0
    price_j_s: float = 0.0  # price of a CPU second, in joules, integrated over time

    def warn(self, text: str) -> None:
        """Keep a warning, once."""
        if text and text not in self.warnings:
            self.warnings.append(text)
            self.file.write({"warning": text})

    def claim(self) -> Claim:
        """What it has of the interval that ends now."""
        before_s, self.last_cpu_s = self.last_cpu_s, self.tree.cpu_s()
        return Claim(self.last_cpu_s - before_s, self.cpus)

    def add(self, reading: Reading, claim: Claim, cpu: Split, ram: Split, place: int) -> None:
        """Add its part of the CPU and the memory of one interval."""
        totals = self.totals
        totals.t_s += reading.seconds
        totals.cpu_s += claim.cpu_s
        totals.cpu_j = _plus(totals.cpu_j, None if reading.cpu.energy_j is None else cpu.shares_j[place])
        totals.ram_j = _plus(totals.ram_j, None if reading.ram.energy_j is None else ram.shares_j[place])
        totals.psys_j = _plus(totals.psys_j, reading.psys.energy_j)
        for split in (cpu, ram):
            totals.idle_j = _plus(totals.idle_j, split.idle_j[place] if split.idle_j is not None else None)
        totals.node_j += reading.node_j
        self.node_cpu_j += reading.cpu.energy_j or 0.0
        self.node_ram_j += reading.ram.energy_j or 0.0
        self.price_j_s += reading.j_per_cpu_s * reading.seconds
        totals.startup_j = self.startup_cpu_s * self.price_j_s / totals.t_s if totals.t_s > 0 else 0.0

    def add_gpu(self, gpu: str, part: Part, split: Split, place: int, holders: int) -> None:
        """Add its part of one GPU in one interval."""
        held = self.gpus[gpu]
        share_j = split.shares_j[place]
        held.share_j += share_j
        held.whole_j += part.energy_j or 0.0
        held.alone_j += share_j if holders == 1 else 0.0
        held.integral_j = _plus(held.integral_j, part.integral_j)
        self.totals.gpu_j = _plus(self.totals.gpu_j, None if part.energy_j is None else share_j)
        self.totals.idle_j = _plus(self.totals.idle_j, split.idle_j[place] if split.idle_j is not None else None)
        if holders > 1:
            self.warn(f"GPU {gpu} was held by several metered jobs at a time; its energy was split in equal parts")

    def add_gpu_use(self, sensors: Sensors, seconds: float) -> None:
        """Add how busy its GPUs are, and how much of their memory is in use."""
        held = [gpu for gpu in sensors.gpus if gpu.uuid in self.gpus]
        totals = self.totals
        totals.gpu_integral_j = _sum([self.gpus[gpu.uuid].integral_j for gpu in held])
        percent = _sum([gpu.utilisation_percent for gpu in held])
        mean = percent / len(held) if percent is not None and held else None
        totals.gpu_busy_s = _plus(totals.gpu_busy_s, None if mean is None else mean / 100 * seconds)
        in_use_gb = _sum([gpu.memory_gb for gpu in held])
        totals.gpu_memory_gb = None if in_use_gb is None else max(totals.gpu_memory_gb or 0.0, in_use_gb)

    def set_intervals(self, sensors: Sensors) -> None:
        """The meters' intervals of the whole node, scaled to the share that is this attempt's."""
        totals, seconds, meters = self.totals, self.totals.t_s, sensors.meters
        totals.cpu_low_j, totals.cpu_high_j = _scaled(meters.cpu, totals.cpu_j or 0.0, self.node_cpu_j, seconds)
        totals.ram_low_j, totals.ram_high_j = _scaled(meters.ram, totals.ram_j or 0.0, self.node_ram_j, seconds)
        totals.gpu_low_j = totals.gpu_high_j = 0.0
        for gpu in sensors.gpus:
            if gpu.uuid in self.gpus:
                held = self.gpus[gpu.uuid]
                # of what was shared, anything from nothing to all may have been this job's doing
                totals.gpu_low_j += min(gpu.interval_j(held.alone_j, seconds)[0], held.share_j)
                totals.gpu_high_j += max(gpu.interval_j(held.whole_j, seconds)[1], held.share_j)


class Node:
    """The sensors of this node and the attempts that share it. Knows nothing of sockets.

    Args:
        settings: of the config.
        sensors: in place of those of this machine.
        folder: where this node's recorders know of each other; None: there is no other.
    """

    def __init__(self, settings: MeterSettings, sensors: Sensors | None = None, folder: Path | None = None) -> None:
        self.settings = settings
        self.sensors = sensors or Sensors(settings)
        self.attempts: list[OpenAttempt] = []
        self._board = NoticeBoard(folder)

    def gpus(self) -> list[dict[str, Any]]:
        """Index, UUID and model of every GPU that is metered."""
        return [{"index": gpu.index, "uuid": gpu.uuid, "model": gpu.device} for gpu in self.sensors.gpus]

    def open(self, job: Mapping[str, Any]) -> OpenAttempt:
        """Open the window of an attempt at `job` (see `emissions.job.job_of`)."""
        self.read()
        tree = ProcessTree(job["pid"], own=job["own"], without=frozenset({os.getpid()} - {job["pid"]}))
        before_s = tree.cpu_s()
        inside = any(attempt.tree.has(job["pid"]) for attempt in self.attempts if attempt.header["pid"] != job["pid"])
        held, warnings = self._held(job)
        header = {
            **job,
            "attempt_id": uuid.uuid4().hex,
            "started_at": utc_text(now_utc()),
            "node": platform.node(),
            "cpu_model": processor_name(),
            "gpus": [gpu for gpu in self.gpus() if gpu["uuid"] in held],
            "methods": self._methods(held),
            "interval_s": self.settings.interval_s,
            "simulated": bool(self.settings.simulated),
            "psys": not isinstance(self.sensors.meters.psys, AbsentMeter),
            "fields": FIELDS,
        }
        attempt = OpenAttempt(
            header=header,
            file=AttemptFile(map(Path, job["folders"]), header),
            tree=tree,
            cpus=job["cpus"],
            usable=min(job["usable_cpus"] / self.sensors.cpus, 1.0),
            leased=bool(job["leased"]),
            gpus={gpu: HeldGpu() for gpu in held},
            # inside another job, that CPU time is the other's already
            startup_cpu_s=0.0 if inside or not job["count_startup"] else before_s,
            last_cpu_s=before_s,
        )
        if self._has_unknown_gpu(job, held):
            attempt.totals.gpu_j = attempt.totals.idle_j = None
        for text in warnings:
            attempt.warn(text)
        self.attempts.append(attempt)
        self._post()
        return attempt

    def _post(self) -> None:
        holdings = Holdings(usable=max((attempt.usable for attempt in self.attempts), default=0.0))
        for attempt in self.attempts:
            holdings.gpus.update(attempt.gpus.keys())
            if attempt.leased:
                holdings.leased.update(attempt.gpus.keys())
        self._board.post(holdings)

    def leave(self) -> None:
        """Release the hardware, and be no neighbour any more."""
        self.sensors.close()
        self._board.close()

    def _held(self, job: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """UUIDs of the GPUs that a job holds, and what there is to say about them."""
        if job["leased"]:
            return list(job["leased"]), []
        if job["no_gpu"]:
            return [], []
        held, warnings = visible_gpus(job["visible"], [(gpu.index, gpu.uuid) for gpu in self.sensors.gpus])
        warnings = [*warnings, *(text for meter in self.sensors.unread_gpus for text in meter.warnings)]
        leased = {gpu for attempt in self.attempts if attempt.leased for gpu in attempt.gpus}
        return [gpu for gpu in held if gpu not in leased], warnings

    def _has_unknown_gpu(self, job: Mapping[str, Any], held: list[str]) -> bool:
        """Whether it may use a GPU that cannot be read, or a slice of one: then nobody knows its energy."""
        if job["leased"] or job["no_gpu"]:
            return False
        return "MIG-" in (job["visible"] or "") or (bool(self.sensors.unread_gpus) and not held)

    def _methods(self, held: list[str]) -> dict[str, str]:
        meters = self.sensors.meters
        of_gpus = sorted({gpu.method for gpu in self.sensors.gpus if gpu.uuid in held})
        return {"cpu": meters.cpu.method, "ram": meters.ram.method, "gpu": " + ".join(of_gpus) or "none"}

    def read(self) -> None:
        """Read the sensors and divide what the node used since the last reading."""
        reading = self.sensors.read()
        if not self.attempts or reading.seconds <= 0:
            return
        claims = self._claims()
        others = self._board.others()
        usable = max(attempt.usable for attempt in self.attempts)
        usable /= max(usable + others.usable, 1.0)  # allocations that overlap share what both may use
        cpu = split_cpu(
            reading.cpu.energy_j or 0.0,
            reading.cpu.idle_j,
            claims,
            busy_s=reading.busy_s,
            metering_s=reading.metering_s,
            capacity_s=reading.capacity_s,
            usable=usable,
        )
        ram = split_reserved(reading.ram.energy_j or 0.0, reading.ram.idle_j, claims, usable=usable)
        for place, (attempt, claim) in enumerate(zip(self.attempts, claims, strict=True)):
            attempt.add(reading, claim, cpu, ram, place)
        splits = [cpu, ram, *(self._divide_gpu(gpu, part, others) for gpu, part in reading.gpus.items())]
        reserved = sum(claim.cpus for claim in claims)
        for attempt, claim in zip(self.attempts, claims, strict=True):
            attempt.totals.rest_j += sum(split.rest_j for split in splits)
            attempt.totals.metering_j += sum(split.metering_j for split in splits) * claim.cpus / reserved
            attempt.add_gpu_use(self.sensors, reading.seconds)
            attempt.set_intervals(self.sensors)

    def _claims(self) -> list[Claim]:
        """CPU time of each attempt; of a job inside another (`footprint track -- make study`) it is the inner one's."""
        claims = [attempt.claim() for attempt in self.attempts]
        used_s = [claim.cpu_s for claim in claims]
        around = [self._around(attempt) for attempt in self.attempts]
        for place, outer in enumerate(around):
            if outer:
                nearest = max(outer, key=lambda candidate: len(around[candidate]))
                used_s[nearest] -= claims[place].cpu_s
        return [Claim(max(cpu_s, 0.0), claim.cpus) for cpu_s, claim in zip(used_s, claims, strict=True)]

    def _around(self, attempt: OpenAttempt) -> list[int]:
        """Places of the attempts in whose tree this one runs."""
        pid = attempt.header["pid"]
        return [
            place
            for place, other in enumerate(self.attempts)
            if other is not attempt and other.header["pid"] != pid and other.tree.has(pid)
        ]

    def _divide_gpu(self, gpu: str, part: Part, others: Holdings) -> Split:
        holds, elsewhere = [gpu in attempt.gpus for attempt in self.attempts], others.gpus[gpu]
        leased = [held and attempt.leased for held, attempt in zip(holds, self.attempts, strict=True)]
        if any(leased) or others.leased[gpu]:  # a lease comes before what others only see
            holds, elsewhere = leased, others.leased[gpu]
        split = split_gpu(part.energy_j or 0.0, part.idle_j, holds, elsewhere=elsewhere)
        for place, attempt in enumerate(self.attempts):
            if holds[place]:
                attempt.add_gpu(gpu, part, split, place, sum(holds) + elsewhere)
        return split

    def write_rows(self) -> None:
        """Put the totals as they stand on disk."""
        for attempt in self.attempts:
            attempt.file.write(attempt.totals.row())

    def close(self, attempt: OpenAttempt) -> None:
        """Read once more and end the window of an attempt; its totals stand."""
        self.read()
        self.attempts.remove(attempt)
        self._post()
        header, totals = attempt.header, attempt.totals
        jump_s = (now_utc() - datetime.fromisoformat(header["started_at"])).total_seconds() - totals.t_s
        if abs(jump_s) > CLOCK_JUMP_S:
            attempt.warn(f"the system clock was set by {jump_s:+.0f} s in the window; times follow its start")
        held = [gpu for gpu in self.sensors.gpus if gpu.uuid in attempt.gpus]
        for gpu in held:
            mine = attempt.gpus[gpu.uuid]
            attempt.warn(gpu.divergence(mine.whole_j, mine.integral_j, totals.t_s))
        for meter in (self.sensors.meters.cpu, self.sensors.meters.ram, *held):
            for text in meter.warnings:
                attempt.warn(text)
        for text in (*self.sensors.failures, attempt.file.problem):
            attempt.warn(text)
        header["methods"] = self._methods(list(attempt.gpus))
        header["gpu_detail"] = [self._detail(gpu, attempt.gpus[gpu.uuid]) for gpu in held]
        attempt.file.write(totals.row())

    @staticmethod
    def _detail(gpu: Any, held: HeldGpu) -> dict[str, Any]:
        figures = {"device_j": held.whole_j, "integral_j": held.integral_j, "job_j": held.share_j}
        rounded = {name: None if joules is None else round(joules, 3) for name, joules in figures.items()}
        return {"uuid": gpu.uuid, "index": gpu.index, "model": gpu.device, "method": gpu.method, **rounded}


def _plus(total: float | None, more: float | None) -> float | None:
    """A sum that is unknown as soon as a part of it is."""
    return None if total is None or more is None else total + more


def _sum(values: list[float | None]) -> float | None:
    total: float | None = 0.0
    for value in values:
        total = _plus(total, value)
    return total


def _scaled(meter: Meter, share_j: float, node_j: float, seconds: float) -> tuple[float, float]:
    low_j, high_j = meter.interval_j(node_j, seconds)
    share = share_j / node_j if node_j > 0 else 0.0
    return min(share * low_j, share_j), max(share * high_j, share_j)
