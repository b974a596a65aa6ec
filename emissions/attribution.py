"""Attribution: every joule that a node used between two readings goes to one owner.

Owners are the metered jobs, the metering itself, and the rest: what a scheduler gave to others, what other
processes did, GPUs that no job holds. Shares, metering and rest add up to the node. Pure arithmetic; the
recorder calls it with what its meters counted.

* CPU, idle power known: the idle energy of the CPUs that the jobs may use is theirs, by reserved CPUs (SCI, ISO/IEC
  21031, counts reserved hardware); the energy above idle goes by CPU time, other processes' part to the rest.
* CPU, idle power unknown (a bare counter): the part of the node that the jobs may use is theirs, by their CPU
  time. Other processes in that part cannot be told from idling and are borne by the jobs.
* RAM by reserved CPUs, as schedulers hand out memory.
* A GPU to its holder; where several jobs use one, in equal parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """What one job has of the node between two readings."""

    cpu_s: float
    """CPU seconds that its processes used."""

    cpus: float
    """Logical CPUs reserved for it."""


@dataclass(frozen=True)
class Split:
    """Joules by owner: `shares_j` and `idle_j` (of the shares; None where unknown) in the order of the claims."""

    shares_j: tuple[float, ...]
    idle_j: tuple[float, ...] | None
    metering_j: float
    rest_j: float


def split_cpu(
    energy_j: float,
    idle_j: float | None,
    claims: Sequence[Claim],
    *,
    busy_s: float,
    metering_s: float,
    capacity_s: float,
    usable: float,
) -> Split:
    """Divide the CPU energy of one interval.

    Args:
        energy_j: counted for all packages.
        idle_j: what they would have used idling, or None.
        claims: the jobs present all through the interval.
        busy_s: CPU seconds of all processes of the node.
        metering_s: of them, the metering's own.
        capacity_s: logical CPUs of the node times the interval.
        usable: share of the node's CPUs that the jobs may use, 0 to 1.
    """
    if not claims:
        return Split((), None if idle_j is None else (), 0.0, energy_j)
    if idle_j is None:
        own_j = usable * energy_j
        metering_j = min(energy_j * metering_s / capacity_s, own_j) if capacity_s > 0 else 0.0
        weights = _shares([claim.cpu_s for claim in claims]) or _shares([claim.cpus for claim in claims])
        shares_j = tuple((own_j - metering_j) * weight for weight in weights)
        return Split(shares_j, None, metering_j, energy_j - metering_j - sum(shares_j))
    idle_j = min(idle_j, energy_j)
    used_s = sum(claim.cpu_s for claim in claims) + metering_s
    per_s = (energy_j - idle_j) / max(busy_s, used_s) if used_s > 0 else 0.0
    idle_shares_j = tuple(usable * idle_j * weight for weight in _shares([claim.cpus for claim in claims]))
    shares_j = tuple(idle + per_s * claim.cpu_s for idle, claim in zip(idle_shares_j, claims, strict=True))
    return Split(shares_j, idle_shares_j, per_s * metering_s, energy_j - per_s * metering_s - sum(shares_j))


def split_reserved(energy_j: float, idle_j: float | None, claims: Sequence[Claim], *, usable: float) -> Split:
    """Divide the energy of the memory in one interval by reserved CPUs; arguments as in `split_cpu`."""
    if not claims:
        return Split((), None if idle_j is None else (), 0.0, energy_j)
    weights = [usable * weight for weight in _shares([claim.cpus for claim in claims])]
    shares_j = tuple(energy_j * weight for weight in weights)
    idle_shares_j = None if idle_j is None else tuple(min(idle_j, energy_j) * weight for weight in weights)
    return Split(shares_j, idle_shares_j, 0.0, energy_j - sum(shares_j))


def split_gpu(energy_j: float, idle_j: float | None, holds: Sequence[bool], *, elsewhere: int = 0) -> Split:
    """Divide the energy of one GPU in one interval over the jobs that hold it.

    Args:
        energy_j: of the whole device.
        idle_j: of it, what it would have used idling, or None.
        holds: for each job whether it holds the GPU.
        elsewhere: how many jobs that another recorder meters hold it too; their part is the rest.
    """
    holders = sum(holds) + elsewhere
    if not any(holds):
        return Split((0.0,) * len(holds), None if idle_j is None else (0.0,) * len(holds), 0.0, energy_j)
    shares_j = tuple(energy_j / holders if hold else 0.0 for hold in holds)
    idle_shares_j = None
    if idle_j is not None:
        idle_shares_j = tuple(min(idle_j, energy_j) / holders if hold else 0.0 for hold in holds)
    return Split(shares_j, idle_shares_j, 0.0, energy_j - sum(shares_j))


def _shares(amounts: Sequence[float]) -> list[float]:
    """Each amount over their sum; empty where there is nothing to share by."""
    total = sum(amounts)
    return [amount / total for amount in amounts] if total > 0 else []
