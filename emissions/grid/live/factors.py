"""From generation by fuel to carbon intensity.

    I = sum_f(G_f x F_f) / sum_f(G_f)       over the fuels f that are known

G is what was generated, F the lifecycle emissions of a kWh from that fuel. Storage gives back what was generated
before, at another time and with losses, and is left out, as is what it takes in. Generation of unknown fuel is left
out too, which counts it like the rest; its share is told, and an hour with much of it is a gap. It is a mix of
production: imports and exports are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

# Medians, gCO2e/kWh: IPCC 2014, AR5 WG3, Annex III, table A.III.2 (solar: utility-scale PV). Oil is not in it: IPCC
# 2011, Special Report on Renewable Energy, Annex II, table A.II.4. Lignite, peat, oil shale and gas made from coal have
# no row in either; they are counted as coal, which is too little for the first three.
FACTORS_G_PER_KWH: dict[str, float] = {
    "coal": 820.0,
    "oil": 840.0,
    "gas": 490.0,
    "biomass": 230.0,
    "solar": 48.0,
    "geothermal": 38.0,
    "hydro": 24.0,
    "marine": 17.0,
    "nuclear": 12.0,
    "wind offshore": 12.0,
    "wind": 11.0,
}
UNKNOWN, STORAGE = "unknown", "storage"
BASIS = "production mix, IPCC 2014 medians"
MOST_UNKNOWN = 0.25  # of an hour's generation: above, the rest says too little about it
MATTERS = 0.02  # of a typical hour's generation: an hour without a fuel of this size is a gap, not an hour without it


def mix_intensity(generation_mwh: pd.DataFrame) -> tuple[np.ndarray, float]:
    """Intensity of each of N hours in gCO2e/kWh, (N,), NaN where it cannot be told, and the share of unknown fuel.

    generation_mwh: (N, fuels), by the hour's start in UTC; columns are fuels of `FACTORS_G_PER_KWH`, `UNKNOWN` or
    `STORAGE`, NaN what was not reported. Below zero is a plant's own use, and counts as zero.
    """
    made = generation_mwh.drop(columns=STORAGE, errors="ignore").clip(lower=0.0)
    late = _unreported(made)
    made = made.fillna(0.0)
    unknown = made[UNKNOWN] if UNKNOWN in made else pd.Series(0.0, index=made.index)
    known = made.drop(columns=UNKNOWN, errors="ignore")
    factors = np.array([FACTORS_G_PER_KWH[str(fuel)] for fuel in known.columns])
    known_mwh = known.sum(axis=1)
    total_mwh = known_mwh + unknown
    told = ~late & (known_mwh > 0) & (unknown <= MOST_UNKNOWN * total_mwh)
    grams = known.to_numpy(dtype=float) @ factors
    values = np.where(told, grams / known_mwh.where(told, 1.0).to_numpy(dtype=float), np.nan)
    share = float(unknown[told].sum() / total_mwh[told].sum()) if told.any() else 0.0
    return values, share


def by_fuel(generation_mwh: pd.DataFrame, fuels: Mapping[str, str]) -> pd.DataFrame:
    """Columns of a service's own types added up to fuels; a type that is not in `fuels` is unknown."""
    names = [fuels.get(str(column), UNKNOWN) for column in generation_mwh.columns]
    return generation_mwh.T.groupby(names).sum(min_count=1).T


def unknown_text(share: float) -> str:
    """What to add to the source's name."""
    return f"; {share:.1%} of unknown fuel counted like the rest" if share >= 0.0005 else ""


def _unreported(made: pd.DataFrame) -> pd.Series:
    """The hours in which a fuel that matters was not reported; solar matters by day."""
    typical_mwh = made.sum(axis=1, min_count=1).median()
    hours = pd.DatetimeIndex(made.index).hour
    late = pd.Series(False, index=made.index)
    for fuel in made.columns:
        usual = made.groupby(hours)[fuel].transform("max") if fuel == "solar" else made[fuel].max()
        late |= made[fuel].isna() & (usual > MATTERS * typical_mwh)
    return late
