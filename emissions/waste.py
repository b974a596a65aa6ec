"""Attempts that ended early: how they ended, and what of each stage's energy was lost with them."""

from __future__ import annotations

import pandas as pd

from emissions.records import OUTCOMES


def ended_early(attempts: pd.DataFrame) -> pd.DataFrame:
    """Of `ledger.collect_attempts`, those that a later attempt had to follow."""
    return attempts[attempts["outcome"] != "ok"]


def early_count(ledger: pd.DataFrame) -> int:
    """How many attempts ended early, by the ledger: it knows them even where the journal has lost their lines."""
    return int(ledger["attempts"].sum()) - len(ledger)


def outcomes_text(outcomes: pd.Series, count: int) -> str:
    """How `count` attempts ended, in the order of `OUTCOMES`: "1 failed, 2 killed"; those without an outcome are
    "unknown"; "" for none."""
    counts = outcomes.value_counts()
    parts = [(int(counts[outcome]), outcome) for outcome in OUTCOMES if outcome in counts]
    parts += [(count - len(outcomes), "unknown")]
    return ", ".join(f"{number:,} {outcome}" for number, outcome in parts if number > 0)


def waste_by_stage(by_stage: pd.DataFrame, ledger: pd.DataFrame, attempts: pd.DataFrame) -> pd.DataFrame:
    """A row per stage, in the order of `compare.by_stage`: its attempts, how many ended early and how, and its energy
    as kept and wasted."""
    table = by_stage.groupby("stage", sort=False)[["energy_kwh", "wasted_kwh"]].sum().reset_index()
    # Rounding may leave a waste that is a hair above a stage's whole energy.
    table["kept_kwh"] = (table["energy_kwh"] - table["wasted_kwh"]).clip(lower=0.0)
    table["wasted_percent"] = 100 * table["wasted_kwh"] / table["energy_kwh"].where(table["energy_kwh"] > 0)
    rows = [ledger[ledger["stage"] == stage] for stage in table["stage"]]
    table["attempts"] = [int(of_stage["attempts"].sum()) for of_stage in rows]
    table["early"] = [early_count(of_stage) for of_stage in rows]
    early = ended_early(attempts)
    table["ended_early"] = [
        outcomes_text(early.loc[early["stage"] == stage, "outcome"], count)
        for stage, count in zip(table["stage"], table["early"], strict=True)
    ]
    return table
