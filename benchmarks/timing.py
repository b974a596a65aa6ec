"""Timing of alternatives against each other: in one process and in turn: all meet the same machine."""

import time
from collections.abc import Callable

import torch

Round = Callable[[], float]  # does a fixed piece of work and returns its rate


def now_s() -> float:
    """Seconds on a monotonic clock, after the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def alternate(rounds: dict[str, Round], budget_s: float, at_least: int) -> dict[str, list[float]]:
    """Rates of each alternative, measured in turn: A B C, A B C, ...

    The first turn is not kept: kernels are chosen and memory is claimed in it.

    Args:
        rounds: the alternatives by name.
        budget_s: no new turn begins after so many seconds; the first turn does not count.
        at_least: turns kept even so.

    Returns:
        equally many rates for each name, in the order in which they were measured.
    """
    rates: dict[str, list[float]] = {name: [] for name in rounds}
    for run in rounds.values():
        run()
    began, turns = time.monotonic(), 0
    while turns < at_least or time.monotonic() - began < budget_s:
        for name, run in rounds.items():
            rates[name].append(run())
        turns += 1
    return rates
