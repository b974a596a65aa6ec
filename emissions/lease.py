"""GPU leases: each of the jobs on a node gets GPUs of its own.

A lease is a lock on a file named after the GPU's UUID, held by the job's process: the kernel frees it when its
holder dies, however it dies. Among the GPUs that CUDA_VISIBLE_DEVICES leaves to the job, the first free ones are
taken; a job waits while there are too few. What a cluster has already given out is taken as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import IO, Any

from emissions.meeting import runtime_folder
from emissions.meters.nvml import VARIABLES, visible_gpus

logger = logging.getLogger(__name__)

POLL_S = 0.5
TELL_S = 60.0
_CLUSTERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "KUBERNETES_SERVICE_HOST")


@contextlib.contextmanager
def leased_gpus(
    count: int,
    gpus: Sequence[Mapping[str, Any]],
    folder: Path | None = None,
    environment: MutableMapping[str, str] = os.environ,
    tell: Callable[[str], None] = logger.warning,
    asked_by: str = "resources gpu",
) -> Iterator[list[str]]:
    """Hold `count` GPUs while the block runs; yields their UUIDs, which are then alone in CUDA_VISIBLE_DEVICES.

    Yields none on a machine without GPUs, where the job has MIG slices, and where no lock can be made: the job then
    shares what it sees.

    Args:
        count: `resources: gpu=N` of the rule.
        gpus: of the node, each with `index` and `uuid`.
        folder: where the node's jobs find each other's leases; None: `meeting.runtime_folder()`.
        environment: of the job, changed while the block runs.
        tell: hears what the job waits for, and why it shares GPUs.
        asked_by: name of the setting that is `count`, for the error.

    Raises:
        ValueError: if fewer GPUs can be used than are asked for.
    """
    if count < 1 or not gpus:
        yield []
        return
    variable = next((name for name in VARIABLES if name in environment), VARIABLES[0])
    before = environment.get(variable)
    if before is not None and "MIG-" in before:
        tell("slices of GPUs (MIG) cannot be leased; this job shares those that it sees")
        yield []
        return
    usable, _ = visible_gpus(before, [(gpu["index"], gpu["uuid"]) for gpu in gpus])
    if len(usable) < count:
        there = f"this machine has {len(usable)}" if before is None else f"{variable}={before} leaves {len(usable)}"
        raise ValueError(f"{asked_by}={count}: {there}")
    # a cluster has given them to this job alone; if another of ours holds one, it was meant to be shared
    waits = len(usable) > count or not any(name in environment for name in _CLUSTERS)
    with contextlib.ExitStack() as locks:
        try:
            leased = _leased(usable, count, folder or runtime_folder(), locks, tell, waits=waits)
        except OSError as error:
            tell(f"no GPU can be leased ({error}); this job shares those that it sees")
            leased = []
        if leased:
            _show(leased, gpus, environment, variable)
        try:
            yield leased
        finally:
            if before is not None:
                environment[variable] = before
            elif leased:
                environment.pop(variable, None)


def _show(
    leased: Sequence[str], gpus: Sequence[Mapping[str, Any]], environment: MutableMapping[str, str], variable: str
) -> None:
    """CUDA takes UUIDs, which no order of devices can confuse; simulated and AMD GPUs go by their index."""
    indices = {gpu["uuid"]: str(gpu["index"]) for gpu in gpus}
    environment[variable] = ",".join(uuid if uuid.startswith("GPU-") else indices[uuid] for uuid in leased)


def _leased(
    usable: Sequence[str],
    count: int,
    folder: Path,
    locks: contextlib.ExitStack,
    tell: Callable[[str], None],
    *,
    waits: bool,
) -> list[str]:
    """Lock `count` of the usable GPUs, all or none, so that two jobs never wait for each other's half."""
    folder.mkdir(parents=True, exist_ok=True)
    told_s = -math.inf
    while True:
        with (folder / "leases.lock").open("a") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            found, busy = _locked(usable, count, folder)
            if len(found) == count or not waits:
                for lock in found.values():
                    locks.enter_context(lock)
                if busy and not waits:
                    tell("a GPU that the cluster gave to this job is held by another job of yours; they share it")
                return list(found) if waits else list(usable)
            for lock in found.values():
                lock.close()
        if time.monotonic() - told_s >= TELL_S:
            told_s = time.monotonic()
            wanted = f"{count} free GPU{'s' if count > 1 else ''} of {len(usable)}"
            tell(f"waiting for {wanted}: held by process {', '.join(_holders(busy, folder))}")
        time.sleep(POLL_S)


def _locked(usable: Sequence[str], count: int, folder: Path) -> tuple[dict[str, IO[bytes]], list[str]]:
    """Locks on the first free GPUs, `count` at most, and the GPUs before them that others hold."""
    found: dict[str, IO[bytes]] = {}
    busy: list[str] = []
    for uuid in usable:
        lock = _lock(_lock_path(folder, uuid))
        if lock is None:
            busy.append(uuid)
        else:
            found[uuid] = lock
        if len(found) == count:
            break
    return found, busy


def _lock_path(folder: Path, uuid: str) -> Path:
    return folder / f"gpu-{uuid}.lock"


def _lock(path: Path) -> IO[bytes] | None:
    """The lock, with our pid written into it, or None while another job holds it."""
    lock = path.open("ab", buffering=0)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    with contextlib.suppress(OSError):  # a full disk; the number is only for those who wait
        lock.truncate(0)
        lock.write(b"%d" % os.getpid())
    return lock


def _holders(busy: Sequence[str], folder: Path) -> list[str]:
    return sorted(filter(None, {_lock_path(folder, uuid).read_text(encoding="ascii") for uuid in busy}))
