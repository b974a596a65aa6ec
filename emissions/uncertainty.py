"""How sure an energy is: one interval for each component, and one rule to combine them.

A component's interval is the error of its sensor or model (its meter states it). Components err for different
reasons, so their half-widths combine in quadrature (GUM, JCGM 100:2008, 5.1.2), low and high apart. What no
sensor in the box sees (power supply, fans, board, disks) can only be missing: it comes on top, one-sided.
Over the rows of a table, intervals are added: the same sensors err the same way in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

UNSEEN_SHARE = 0.37
"""Of the wall's energy, at most, that the sensors in a workstation miss: 20 to 37 % in the three workloads of
Fischer et al. 2025 (arXiv 2509.22092), measured against a wall meter."""

STARTUP_ERROR = 0.5
"""Of the energy before the window, which is CPU time at the window's price: our choice."""


class Interval(NamedTuple):
    """An energy with the lowest and the highest that it may stand for, in any one unit."""

    energy: float
    low: float
    high: float


def unseen(energy: float) -> float:
    """The most that the box's sensors can have missed beside `energy`: wall = energy / (1 - share)."""
    return energy / (1 - UNSEEN_SHARE) - energy


def combine(components: Iterable[Interval], unseen_energy: float = 0.0) -> Interval:
    """The interval of the sum of components whose errors are independent, with what is unseen on top."""
    parts = list(components)
    energy = sum(part.energy for part in parts)
    below = math.sqrt(sum((part.energy - part.low) ** 2 for part in parts))
    above = math.sqrt(sum((part.high - part.energy) ** 2 for part in parts))
    return Interval(energy, max(energy - below, 0.0), energy + above + unseen_energy)
