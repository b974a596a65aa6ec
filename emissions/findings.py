"""What the tables say, in plain sentences: pure functions from a table to the text above its figure."""

from __future__ import annotations

from calendar import month_name
from collections.abc import Callable

import pandas as pd

from emissions.allocation import dims_name
from emissions.breakdown import energy_parts
from emissions.compare import EXTRAPOLATED_SAMPLES
from emissions.figures.cost import sampler_label
from emissions.figures.quality import FID_NAME, frontier
from emissions.figures.theme import (
    a_unit,
    energy_text,
    family_name,
    groups_of,
    has_value,
    mass_text,
    ratio_text,
    rows_of,
    sampler_name,
    shape_name,
    significant,
    stage_name,
)
from emissions.waste import ended_early, outcomes_text


def two_digits(value: float) -> str:
    return significant(value, 2)


_FID = "fid_efficientnet_lite0"


def plural(count: int, word: str, words: str | None = None) -> str:
    """1, "image" -> "1 image"; 2 -> "2 images"; `words` where the plural is not made by an s."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {words or word + 's'}"


def range_text(values: pd.Series, text: Callable[[float], str] = two_digits) -> str:
    """The span of a column in words: "3 to 8", or one number where both ends read alike."""
    low, high = text(float(values.min())), text(float(values.max()))
    return low if low == high else f"{low} to {high}"


def training_against_generation(by_model: pd.DataFrame) -> str:
    known = by_model.dropna(subset=["training_kwh", "generation_kwh_per_sample"])
    if known.empty:
        return "No model has been both trained and sampled."
    sentences = []
    for _, group in groups_of(known, "spatial_dims"):
        kind = group["sample_kind"].iloc[0]
        times = group["generation_kwh_per_sample"] * EXTRAPOLATED_SAMPLES / group["training_kwh"]
        sentences.append(
            f"{EXTRAPOLATED_SAMPLES:,} {kind}s would take {range_text(times)} times the energy of training"
        )
    return f"By extrapolation, {'; '.join(sentences)}."


def break_even(by_model: pd.DataFrame) -> str:
    known = by_model[by_model["break_even_samples"] > 0]
    if known.empty:
        return "No model has been both trained and sampled."
    early = int((known["break_even_samples"] < EXTRAPOLATED_SAMPLES).sum())
    spans = [
        f"{range_text(group['break_even_samples'])} {group['sample_kind'].iloc[0]}s"
        for _, group in groups_of(known, "spatial_dims")
    ]
    return (
        f"Generating has cost as much as training after {' or '.join(spans)}. In {early} of {len(known)} "
        f"combinations of model and sampler that is before {EXTRAPOLATED_SAMPLES:,}."
    )


def _widest(table: pd.DataFrame, column: str) -> tuple[pd.Series, pd.Series] | None:
    """The cheapest and dearest row above zero, None unless two differ."""
    known = table[table[column] > 0]
    if len(known) < 2:
        return None
    ordered = known.sort_values(column)
    return ordered.iloc[0], ordered.iloc[-1]


def by_size(table: pd.DataFrame) -> str:
    sentences = []
    for _, group in groups_of(table, "spatial_dims"):
        ends = _widest(group, "generation_g_per_sample")
        if ends is None:
            continue
        low, high = ends
        ratio = high["generation_g_per_sample"] / low["generation_g_per_sample"]
        kind = a_unit(high["sample_kind"])
        sentences.append(
            f"{kind.capitalize()} from {family_name(high['family'])} {high['size']} costs "
            f"{ratio_text(ratio)} what one from {family_name(low['family'])} {low['size']} does."
        )
    return " ".join(sentences) or "The study has one size: add another to its matrix to compare."


def by_resolution(table: pd.DataFrame) -> str:
    sentences = []
    for dims, group in groups_of(table, "spatial_dims"):
        ordered = group[group["generation_g_per_sample"] > 0].sort_values("resolution")
        if len(ordered) < 2:
            continue
        low, high = ordered.iloc[0], ordered.iloc[-1]
        ratio = high["generation_g_per_sample"] / low["generation_g_per_sample"]
        kind = high["sample_kind"]  # slices and frames of sequences do not grow with resolution
        cells = (high["resolution"] / low["resolution"]) ** (2 if kind == "sequence" else int(dims))
        cell = "pixels" if dims == 2 else "voxels"
        sentences.append(
            f"From {shape_name(dims, low['resolution'], kind)} to {shape_name(dims, high['resolution'], kind)}, "
            f"{significant(cells, 2)} times the {cell} cost {ratio_text(ratio)} as much."
        )
    return " ".join(sentences) or "Each dimension has one resolution: add another to the matrix to compare."


def by_sampler(table: pd.DataFrame) -> str:
    sentences = []
    for dims, group in groups_of(table, "spatial_dims"):
        ends = _widest(group, "generation_g_per_sample")
        if ends is None:
            continue
        low, high = ends
        ratio = high["generation_g_per_sample"] / low["generation_g_per_sample"]
        sentences.append(
            f"In {dims_name(dims, high['sample_kind'])}, {sampler_name(high['sampler'])} with {high['steps']} steps "
            f"costs {ratio_text(ratio)} as much as {sampler_name(low['sampler'])} with {low['steps']}."
        )
    return " ".join(sentences) or "The study has one sampler: add another to its matrix to compare."


def by_devices(table: pd.DataFrame) -> str:
    sentences = []
    for dims, group in groups_of(table, "spatial_dims"):
        ends = _widest(group, "emissions_g_per_sample")
        if ends is not None:
            low, high = ends
            ratio = high["emissions_g_per_sample"] / low["emissions_g_per_sample"]
            sentences.append(
                f"In {dims_name(dims, high['sample_kind'])}, {plural(int(high['devices']), 'device')} cost "
                f"{ratio_text(ratio)} as much a sample as {plural(int(low['devices']), 'device')}, training included."
            )
    return " ".join(sentences) or "Each dimension ran on one number of devices."


def by_stage(table: pd.DataFrame) -> str:
    if table.empty:
        return "No stage has run."
    share = table.groupby("stage")["share_percent"].sum().sort_values(ascending=False)
    phases = table.groupby("phase")["share_percent"].sum()
    text = (
        f"{stage_name(share.index[0]).capitalize()} takes the most, {two_digits(share.iloc[0])} % of the "
        f"energy. Training is {two_digits(phases.get('training', 0.0))} % in all, generation "
        f"{two_digits(phases.get('generation', 0.0))} %."
    )
    wasted = float(table["wasted_kwh"].sum())
    return f"{text} {energy_text(wasted)} of it was wasted on attempts that ended early." if wasted > 0 else text


def world_map(by_zone: pd.DataFrame, study_zone: str) -> str:
    ordered = by_zone.dropna(subset=["emissions_g"]).sort_values("emissions_g")
    low, high = ordered.iloc[0], ordered.iloc[-1]
    text = (
        f"The same energy would emit {mass_text(low['emissions_g'])} in {low['zone_name']} and "
        f"{mass_text(high['emissions_g'])} in {high['zone_name']}: "
        f"{ratio_text(high['emissions_g'] / low['emissions_g'])} as much, on annual means."
    )
    own = ordered[ordered["zone"] == study_zone]
    if own.empty:
        return text
    cleaner = int((ordered["emissions_g"] < own["emissions_g"].iloc[0]).sum())
    dirtier = len(ordered) - 1 - cleaner
    return f"{text} {own['zone_name'].iloc[0]} is cleaner than {dirtier} of {len(ordered)} zones."


def season(by_season: pd.DataFrame, study_zone: str) -> str:
    months = by_season.dropna(subset=["month"])
    zones = months["zone"].nunique()
    own = months[months["zone"] == study_zone]
    if own.empty:
        return (
            "The study's zone has an annual value only and no months. "
            f"{zones} zones have a typical year; these are some of them."
        )
    ordered = own.sort_values("carbon_intensity_g_per_kwh")
    cleanest, dirtiest = ordered.iloc[0], ordered.iloc[-1]
    extra = 100 * (dirtiest["carbon_intensity_g_per_kwh"] / cleanest["carbon_intensity_g_per_kwh"] - 1)
    return (
        f"In {own['zone_name'].iloc[0]}, {month_name[int(dirtiest['month'])]} is {extra:.0f} % dirtier than "
        f"{month_name[int(cleanest['month'])]}. It stands first; below it are countries from "
        "the largest swing to the smallest."
    )


def hour(by_hour: pd.DataFrame, study_zone: str) -> str:
    own = by_hour[by_hour["zone"] == study_zone].sort_values("carbon_intensity_g_per_kwh")
    if own.empty:
        return "The study's zone has an annual value only and no hours."
    cleanest, dirtiest = own.iloc[0], own.iloc[-1]
    extra = 100 * (dirtiest["carbon_intensity_g_per_kwh"] / cleanest["carbon_intensity_g_per_kwh"] - 1)
    return (
        f"In {cleanest['zone_name']}, {int(dirtiest['hour'])}:00 is {extra:.0f} % dirtier than "
        f"{int(cleanest['hour'])}:00 over the year, in the zone's own time ({cleanest['timezone']})."
    )


def fidelity(table: pd.DataFrame) -> str:
    known = table.dropna(subset=[_FID, "generation_g_per_sample"])
    if known.empty:
        return f"No run has an {FID_NAME}: there were too few samples."
    best = frontier(known)
    closest, cheapest = best.iloc[-1], best.iloc[0]
    price = f"{mass_text(closest['generation_g_per_sample'])} {a_unit(closest['sample_kind'])}"
    text = f"Closest to the held-out images: {_run_name(closest)}, at {price}"
    if len(best) == 1:
        return f"{text}, which is also the cheapest."
    cost = closest["generation_g_per_sample"] / cheapest["generation_g_per_sample"]
    farther = cheapest[_FID] / closest[_FID]
    return (
        f"{text}. The cheapest, {_run_name(cheapest)}, emits {ratio_text(cost)} less, "
        f"at {ratio_text(farther)} the distance."
    )


def _run_name(row: pd.Series) -> str:
    return f"{family_name(row['family'])} {row['size']} with {sampler_label(row['sampler'], row['steps'])}"


def components(by_method: pd.DataFrame) -> str:
    present = by_method[by_method["present"] & (by_method["energy_kwh"] > 0)]
    if present.empty:
        return "No energy is known by component."
    share = 100 * present.loc[present["measured"], "energy_kwh"].sum() / present["energy_kwh"].sum()
    if share == 0:
        return "No energy counter could be read, so all of the energy is estimated: read it with its interval."
    if share > 99.95:
        return "All of the energy was read from sensors."
    return f"{share:.0f} % of the energy was read from sensors; models estimated the rest."


def interval(ledger: pd.DataFrame) -> str:
    parts = {row.part: row for row in rows_of(energy_parts(ledger))}
    whole, unseen = parts.pop("whole", None), parts.pop("unseen", None)
    if whole is None or not whole.energy_kwh > 0:
        return "No energy is known by component."
    text = (
        f"The energy is {energy_text(whole.energy_kwh)}, and may be as little as {energy_text(whole.low_kwh)} or as "
        f"much as {energy_text(whole.high_kwh)}."
    )
    widths = {part: row.high_kwh - row.low_kwh for part, row in parts.items() if has_value(row.high_kwh - row.low_kwh)}
    if widths:
        widest = max(widths, key=widths.__getitem__)
        name = "the start-up" if widest == "startup" else f"the {widest.upper()}"
        text += f" Of its components, {name} is the least certain."
    if unseen is not None:
        text += f" Up to {energy_text(unseen.high_kwh)} of that is where no sensor in the machine sees it."
    return text


def waste(stages: pd.DataFrame, attempts: pd.DataFrame) -> str:
    """stages: `waste.waste_by_stage`; attempts: `ledger.collect_attempts`."""
    if stages.empty:
        return "No stage has run."
    count, early = int(stages["early"].sum()), ended_early(attempts)
    if not count:
        return "No attempt ended early: nothing was wasted."
    wasted_kwh, whole_kwh = float(stages["wasted_kwh"].sum()), float(stages["energy_kwh"].sum())
    which, how = f"{plural(count, 'attempt')} that ended early", outcomes_text(early["outcome"], count)
    if wasted_kwh > 0:
        percent = two_digits(100 * wasted_kwh / whole_kwh)
        text = f"{percent} % of the energy ({energy_text(wasted_kwh)}) went into {which} and was lost: {how}."
    else:
        text = f"Nothing was lost in {which}: {how}."
    resumed_kwh = float(early["energy_kwh"].sum()) - wasted_kwh
    if resumed_kwh > 1e-6 * whole_kwh:  # more than rounding leaves
        text += f" Another {energy_text(resumed_kwh)} of theirs was kept, as later attempts went on from a checkpoint."
    return text


def overheads(table: pd.DataFrame, rest_percent: float) -> str:
    """table: `breakdown.overheads`."""
    share = table.set_index("part")["share_percent"]
    sentences = []
    if has_value(share["idle"]):
        sentences.append(f"{two_digits(share['idle'])} % of the jobs' energy is what idle machines would use.")
    if has_value(share["metering"]):
        sentences.append(f"Metering took {two_digits(share['metering'])} % of the jobs' energy, beside it.")
    if has_value(rest_percent):
        sentences.append(
            f"Of what the machines used while jobs ran, {two_digits(rest_percent)} % belongs to neither jobs nor "
            "metering."
        )
    return " ".join(sentences) or "No overhead is known."


def codecarbon(stages: pd.DataFrame) -> str:
    """stages: `figures.methods.stage_energy`."""
    if stages.empty:
        return "CodeCarbon has no figure that ours can be compared with."
    ours, theirs = stages["codecarbon_node_kwh"].sum(), stages["codecarbon_kwh"].sum()
    low, high = ((stages[bound] * stages["codecarbon_node_kwh"]).sum() for bound in ("low", "high"))
    return (
        f"Of the same machines at the same times, CodeCarbon counts {energy_text(theirs)} where our meters read "
        f"{energy_text(ours)}: {significant(theirs / ours)} times ours, "
        f"{'inside' if low <= theirs <= high else 'outside'} our interval."
    )
