"""The study's energy in other places and at other times of the year: arithmetic on energy that was measured
once.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from emissions.allocation import without_control
from emissions.equivalents import car_km
from emissions.grid.intensity import NO_SEASONS, annual_intensity_of, typical_intensity_of
from emissions.grid.local_time import by_local_hour
from emissions.grid.zones import SEASONS, all_zones, data_table
from emissions.pricing import check_pue, operational_emissions_g


def by_zone(shares: pd.DataFrame, year: int, pue: float) -> pd.DataFrame:
    """The study's total at the annual mean of each of the 352 zones that have one, cleanest first.

    shares: `allocation.allocate`. Per image and per volume, or per sequence: all emissions of
    such runs over their samples. Raises ValueError for a PUE below 1.
    """
    check_pue(pue)
    low, energy, high = (shares[f"energy{bound}_kwh"].sum() for bound in ("_low", "", "_high"))
    annual, seasonal = (set(data_table(f"{name}.csv")["zone"]) for name in ("annual_intensity", "typical_year"))
    per_sample = _energy_per_sample(shares)
    rows = []
    for zone in all_zones().values():
        if zone.zone not in annual:
            continue
        intensity = annual_intensity_of(zone, year)
        value = intensity.value_g_per_kwh
        grams = operational_emissions_g(energy, pue, value)
        rows.append(
            {
                "zone": zone.zone,
                "zone_name": zone.zone_name,
                "country": zone.country,
                "energy_kwh": energy,
                "pue": float(pue),
                "carbon_intensity_g_per_kwh": value,
                "intensity_source": intensity.source,
                "intensity_kind": intensity.kind,
                "year": intensity.year,
                "has_seasonal_data": zone.zone in seasonal,
                "emissions_g": grams,
                "emissions_low_g": operational_emissions_g(low, pue, value),
                "emissions_high_g": operational_emissions_g(high, pue, value),
                "car_km": car_km(grams),
                **{f"emissions_g_per_{kind}": kwh * pue * value for kind, kwh in per_sample.items()},
            }
        )
    table = pd.DataFrame(rows).sort_values(["carbon_intensity_g_per_kwh", "zone"], ignore_index=True)
    smallest = table["carbon_intensity_g_per_kwh"].min()
    return table.assign(ratio_to_smallest=table["carbon_intensity_g_per_kwh"] / smallest)


def by_season(shares: pd.DataFrame, year: int, pue: float) -> pd.DataFrame:
    """The study's total in each month of each zone with a typical year (the mean over all hours of the
    month).

    Every other zone has one row without a month, whose basis says that there is an annual value only.
    `ratio_to_smallest` compares the months of one zone. Raises ValueError for a PUE below 1.
    """
    check_pue(pue)
    energy = shares["energy_kwh"].sum()
    per_sample = _energy_per_sample(shares)
    rows = []
    for zone in all_zones().values():
        place = {"zone": zone.zone, "zone_name": zone.zone_name, "country": zone.country}
        place["hemisphere"] = zone.hemisphere
        typical = typical_intensity_of(zone)
        if typical is None:
            months: list[tuple] = [(None, None, annual_intensity_of(zone, year).value_g_per_kwh, None, NO_SEASONS)]
        else:
            means = typical.month_means()
            months = [
                (month, zone.season(month), mean, mean / means.min(), typical.basis)
                for month, mean in enumerate(means, start=1)
            ]
        rows += [
            {
                **place,
                "month": month,
                "season": season,
                "energy_kwh": energy,
                "pue": float(pue),
                "carbon_intensity_g_per_kwh": value,
                "emissions_g": operational_emissions_g(energy, pue, value),
                **{f"emissions_g_per_{kind}": kwh * pue * value for kind, kwh in per_sample.items()},
                "ratio_to_smallest": ratio,
                "basis": basis,
            }
            for month, season, value, ratio, basis in months
        ]
    return pd.DataFrame(rows).astype({"month": "Int64", "ratio_to_smallest": "float64"})


def by_hour(shares: pd.DataFrame, year: int, pue: float) -> pd.DataFrame:
    """The study's total at each hour of the day, in the zone's own time, of each zone with a typical year.

    The hour is the mean of its twelve months; `winter_g_per_kwh` and so on are means of the zone's own seasons, missing
    between the tropics. `ratio_to_smallest` compares the hours of one zone. Raises ValueError for a PUE below 1.
    """
    check_pue(pue)
    energy = shares["energy_kwh"].sum()
    tables = []
    for zone in all_zones().values():
        typical = typical_intensity_of(zone)
        if typical is None:
            continue
        local = by_local_hour(typical.table_g_per_kwh, zone.timezone, year)  # (12, 24)
        mean = local.mean(axis=0)  # (24,)
        seasons = np.array([zone.season(month) for month in range(1, 13)])
        of_season = {f"{name}_g_per_kwh": _mean_of(local[seasons == name]) for name in SEASONS}
        columns = {
            "zone": zone.zone,
            "zone_name": zone.zone_name,
            "country": zone.country,
            "timezone": zone.timezone,
            "hour": range(24),
            "energy_kwh": energy,
            "pue": float(pue),
            "carbon_intensity_g_per_kwh": mean,
            **of_season,
            "emissions_g": operational_emissions_g(energy, pue, mean),
            "ratio_to_smallest": mean / mean.min(),
            "intensity_kind": typical.kind,
            "intensity_hash": typical.data_hash,
            "basis": typical.basis,
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def _mean_of(months: np.ndarray) -> np.ndarray:
    """Mean over months of a (M, 24) table, (24,); missing where there are none."""
    return months.mean(axis=0) if len(months) else np.full(24, np.nan)


def _energy_per_sample(shares: pd.DataFrame) -> dict[str, float]:
    """kWh per image and per volume, or per sequence: all that the runs of that kind took over the samples they made.

    Without what was trained and made to follow masks.
    """
    shares = without_control(shares)
    sequences = (shares["sample_kind"] == "sequence").any()
    per_sample = {}
    for kind in ("sequence",) if sequences else ("image", "volume"):
        energy, samples = shares.loc[shares["sample_kind"] == kind, ["energy_kwh", "samples"]].sum()
        per_sample[kind] = energy / samples if samples else float("nan")
    return per_sample
