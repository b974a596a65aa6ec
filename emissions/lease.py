"""GPU leases: each of the jobs on a node gets GPUs of its own.

A lease is a lock on a file named after the GPU's UUID, held by the job's process: the kernel frees it when its
holder dies, however it dies. Among the GPUs that CUDA_VISIBLE_DEVICES leaves to the job, the first free ones are
taken; a job waits while there are too few. What a cluster has already given out is taken as it is.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from emissions.meters.nvml import visible_gpus

logger = logging.getLogger(__name__)

POLL_S = 0.5
TELL_S = 60.0
_CLUSTERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "KUBERNETES_SERVICE_HOST")
AMD_VARIABLE, NVIDIA_VARIABLE = "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"


@contextmanager
def leased_gpus(
    count: int,
    gpus: Sequence[Mapping[str, Any]],
    folder: Path,
    environment: MutableMapping[str, str] = os.environ,
    tell: Callable[[str], None] = logger.warning,
) -> Iterator[list[str]]:
    """Hold `count` GPUs while the block runs; yields their UUIDs, which are then alone in CUDA_VISIBLE_DEVICES.

    Args:
        count: `resources: gpu=N` of the rule.
        gpus: of the node, each with `index` and `uuid`; none on a machine without GPUs, where nothing is leased.
        folder: where the node's jobs find each other's leases.
        environment: of the job, changed while the block runs.
        tell: hears what the job waits for.

    Raises:
        ValueError: if fewer GPUs can be used than are asked for.
    """
    if count < 1 or not gpus:
        yield []
        return
    variable = AMD_VARIABLE if str(gpus[0]["uuid"]).startswith("AMD-") else NVIDIA_VARIABLE
    before = environment.get(variable)
    usable, _ = visible_gpus(before, [(gpu["index"], gpu["uuid"]) for gpu in gpus])
    if len(usable) < count:
        shown = f"{variable} leaves {len(usable)}" if before is not None else f"this machine has {len(usable)}"
        raise ValueError(f"resources gpu={count}: {shown}")
    # a cluster has given them to this job alone; if another of ours holds one, it was meant to be shared
    waits = len(usable) > count or not any(name in environment for name in _CLUSTERS)
    locks = _locked(usable, count, folder, waits, tell)
    indices = {gpu["uuid"]: str(gpu["index"]) for gpu in gpus}
    # CUDA takes UUIDs, which no order of devices can confuse; simulated and AMD GPUs go by their index
    environment[variable] = ",".join(uuid if uuid.startswith("GPU-") else indices[uuid] for uuid in locks)
    try:
        yield list(locks)
    finally:
        for lock in locks.values():
            lock.close()
        if before is None:
            environment.pop(variable, None)
        else:
            environment[variable] = before


def _locked(
    usable: Sequence[str], count: int, folder: Path, waits: bool, tell: Callable[[str], None]
) -> dict[str, IO[str]]:
    """Locks on `count` of the usable GPUs, all or none, so that two jobs never wait for each other's half."""
    told_s = -TELL_S
    while True:
        locks: dict[str, IO[str]] = {}
        for uuid in usable:
            lock = _lock(folder / f"gpu-{uuid}.lock")
            if lock is not None:
                locks[uuid] = lock
            if len(locks) == count:
                return locks
        if not waits:
            tell("a GPU that the cluster gave to this job is held by another job of yours; they share it")
            return locks | {uuid: (folder / f"gpu-{uuid}.lock").open("a") for uuid in usable if uuid not in locks}
        for lock in locks.values():
            lock.close()
        if time.monotonic() - told_s >= TELL_S:
            told_s = time.monotonic()
            tell(f"waiting for {count} free GPU{'s' if count > 1 else ''} of {len(usable)}: {_holders(usable, folder)}")
        time.sleep(POLL_S)


def _lock(path: Path) -> IO[str] | None:
    """The lock, with our pid written into it, or None while another job holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _holders(usable: Sequence[str], folder: Path) -> str:
    pids = []
    for uuid in usable:
        try:
            pids.append((folder / f"gpu-{uuid}.lock").read_text())
        except OSError:
            continue
    return "held by process " + ", ".join(sorted(filter(None, pids)))
