"""Everyday equivalents of emissions, each with the source of its factor beside it."""

from __future__ import annotations

CAR_G_PER_KM = 107.5
CAR_SOURCE = (
    "107.5 gCO2/km, the average new passenger car registered in the EU in 2020 (European Environment Agency; "
    "the factor of carbontracker since 1.1.7)"
)


def car_km(emissions_g: float) -> float:
    """Kilometres by an average new European car (2020) that emit as much: tailpipe CO2, see `CAR_SOURCE`."""
    return emissions_g / CAR_G_PER_KM
