"""How far typical-year values lie from years that are not in them: makes emissions/data/profile_error.csv.

    python tools/profile_error.py HOURLY.parquet > emissions/data/profile_error.csv

HOURLY: column `datetime_utc`, and a column per zone; several whole years, in any unit: only ratios are used.
"""

import sys

import numpy as np
import pandas as pd

NORMAL_90 = 1.645  # half-width of the central 90 % of a normal distribution, in standard deviations


def statistics(hourly: pd.DataFrame) -> pd.DataFrame:
    """A row per zone, and two pooled rows, `one year` and `annual`, for zones with less data than that.

    Each bound is the ratio of a true value to the typical one, as low or high as in 5 % of cases.
    month_low, month_high: a month's mean, against that month in the other years; from the RMS of the logarithm, since
    there are few years. hour_low, hour_high: single hours, against the mean of their month and UTC hour in the other
    years.
    """
    rows, one_year, annual = [], [], []
    for zone, values in hourly.items():
        values = values[values > 0]
        frame = pd.DataFrame({"g": values.astype(float), "year": values.index.year, "month": values.index.month})
        frame["hour"] = values.index.hour
        months = frame.groupby(["year", "month"])["g"].mean().unstack("year")  # (12, years)
        others = (months.sum(axis=1).to_numpy()[:, None] - months) / (months.shape[1] - 1)
        hours = _of_hours(frame)
        rows.append(
            {
                "zone": zone,
                **_bounds(months / others),
                "hour_low": hours.quantile(0.05),
                "hour_high": hours.quantile(0.95),
            }
        )
        years = frame.groupby("year")["g"].mean()
        pairs = [(a, b) for a in months for b in months if a != b]
        one_year += [np.log(months[a] / months[b]) for a, b in pairs]
        annual += [np.log(months[a] / years[b]) for a, b in pairs]
    table = pd.DataFrame(rows).sort_values("zone")
    hour = np.log(table[["hour_low", "hour_high"]].median())
    pooled = []
    for name, logarithms in (("one year", one_year), ("annual", annual)):
        month = _bounds(np.exp(np.concatenate(logarithms)))
        # within a month, hours differ as they do elsewhere, and independently of the month's own error
        low, high = (
            np.exp(s * np.hypot(hour[f"hour_{n}"], np.log(month[f"month_{n}"]))) for s, n in ((-1, "low"), (1, "high"))
        )
        pooled.append({"zone": name, **month, "hour_low": low, "hour_high": high})
    return pd.concat([table, pd.DataFrame(pooled)], ignore_index=True).round(4)


def _bounds(ratios: pd.DataFrame | np.ndarray) -> dict[str, float]:
    spread = NORMAL_90 * float(np.sqrt(np.nanmean(np.log(np.asarray(ratios)) ** 2)))
    return {"month_low": float(np.exp(-spread)), "month_high": float(np.exp(spread))}


def _of_hours(frame: pd.DataFrame) -> pd.Series:
    """Each hour over the mean of its month and UTC hour in the other years."""
    cells = frame.groupby(["month", "hour"])["g"]
    of_year = frame.groupby(["year", "month", "hour"])["g"]
    total, count = cells.transform("sum"), cells.transform("size")
    own, own_count = of_year.transform("sum"), of_year.transform("size")
    return frame["g"] / ((total - own) / (count - own_count))


if __name__ == "__main__":
    statistics(pd.read_parquet(sys.argv[1]).set_index("datetime_utc")).to_csv(
        sys.stdout, index=False, lineterminator="\n"
    )
