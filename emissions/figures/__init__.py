"""Figures: pure functions from a table to a plotly figure."""

from emissions.figures.cost import (
    break_even,
    by_devices,
    by_resolution,
    by_sampler,
    by_size,
    by_stage,
    training_against_generation,
)
from emissions.figures.grid import season_heat_map, world_map
from emissions.figures.hours import hours_of_day
from emissions.figures.interval import interval
from emissions.figures.methods import codecarbon_ratio, components
from emissions.figures.quality import fidelity
from emissions.figures.waste import waste

__all__ = [
    "break_even",
    "by_devices",
    "by_resolution",
    "by_sampler",
    "by_size",
    "by_stage",
    "codecarbon_ratio",
    "components",
    "fidelity",
    "hours_of_day",
    "interval",
    "season_heat_map",
    "training_against_generation",
    "waste",
    "world_map",
]
