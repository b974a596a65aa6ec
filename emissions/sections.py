"""The dashboard's sections: which figures there are, the finding above each, and the numbers behind it."""

from __future__ import annotations

import pandas as pd

from emissions import figures, findings
from emissions.adherence_section import adherence_section
from emissions.allocation import dims_name
from emissions.charts import Chart, Columns, Section, text_table
from emissions.figures.quality import FID_NAME
from emissions.figures.theme import (
    count_text,
    energy_text,
    family_name,
    groups_of,
    mass_text,
    rows_of,
    sampler_name,
    shape_name,
    significant,
    stage_name,
)
from emissions.methods_section import methods_section
from emissions.motion_section import motion_tables
from emissions.places_section import place_section

_PER_SAMPLE: Columns = {
    "generation_g_per_sample": ("CO₂e to generate one", mass_text),
    "generation_low_g_per_sample": ("low", mass_text),
    "generation_high_g_per_sample": ("high", mass_text),
    "emissions_g_per_sample": ("all stages, one", mass_text),
    "energy_kwh": ("Energy in all", energy_text),
    "samples": ("Samples", count_text),
    "ratio_to_smallest": ("Ratio", significant),
}
_DIMS: Columns = {"dims": ("Dimensions", str)}


def all_sections(tables: dict[str, pd.DataFrame], study_zone: str) -> list[Section]:
    """Sections in the order of the page, of the tables that `dashboard.build_dashboard` reads."""
    seen = "sequences" if "motion" in tables else "images"
    return [
        training_section(tables["by_model"]),
        choices_section(tables),
        place_section(tables, study_zone),
        quality_section(tables["fidelity"], tables.get("motion")),
        *([adherence_section(tables["adherence"])] if "adherence" in tables else []),
        Section(
            "images",
            f"Real and generated {seen}",
            f"What the grams bought: generated {seen} beside real ones of the same cohort.",
        ),
        methods_section(tables),
    ]


def training_section(by_model: pd.DataFrame) -> Section:
    named = by_model.assign(
        name=[f"{family_name(row.family)} {row.size}" for row in rows_of(by_model)],
        shape=[shape_name(row.spatial_dims, row.resolution, row.sample_kind) for row in rows_of(by_model)],
        way=[f"{sampler_name(row.sampler)}, {row.steps}" for row in rows_of(by_model)],
    )
    table = text_table(
        named,
        {
            "name": ("Model", None),
            "shape": ("Shape", None),
            "way": ("Sampler, steps", None),
            "training_g": ("Training", mass_text),
            "generation_g": ("Generation as run", mass_text),
            "samples": ("Samples", count_text),
            "generation_g_per_sample": ("One sample", mass_text),
            "break_even_samples": ("Break-even samples", count_text),
        },
    )
    charts = [
        Chart(
            "training",
            "Training against generation",
            findings.training_against_generation(by_model),
            figures.training_against_generation(by_model),
            table,
            "Filled marks are what this study ran. Hollow marks are extrapolated: the cost of one sample "
            "times 10,000, the number the Latent Pollution Model study generated.",
        ),
        Chart(
            "break-even",
            "When generating overtakes training",
            findings.break_even(by_model),
            figures.break_even(by_model),
            None,
            "Left of the dotted line, generating 10,000 samples costs more than training did. Training "
            "includes the model's share of its autoencoder.",
        ),
    ]
    return Section("cost", "Training is paid once, generating every time", "", charts)


def choices_section(tables: dict[str, pd.DataFrame]) -> Section:
    size, resolution, sampler, stage, devices = (
        tables[name].assign(dims=[dims_name(row.spatial_dims, row.sample_kind) for row in rows_of(tables[name])])
        for name in ("by_size", "by_resolution", "by_sampler", "by_stage", "by_devices")
    )
    named = size.assign(name=[f"{family_name(row.family)} {row.size}" for row in rows_of(size)])
    of_size: Columns = {
        **_DIMS,
        "name": ("Model", None),
        "parameters": ("Parameters", count_text),
        **_PER_SAMPLE,
    }
    of_resolution: Columns = {**_DIMS, "resolution": ("Resolution", significant), **_PER_SAMPLE}
    of_sampler: Columns = {
        **_DIMS,
        "sampler": ("Sampler", None),
        "steps": ("Steps", significant),
        **_PER_SAMPLE,
    }
    of_stage: Columns = {
        "stage": ("Stage", None),
        "phase": ("Phase", None),
        **_DIMS,
        "energy_kwh": ("Energy", energy_text),
        "emissions_g": ("CO₂e", mass_text),
        "emissions_low_g": ("low", mass_text),
        "emissions_high_g": ("high", mass_text),
        "share_percent": ("Share, %", significant),
    }
    note = "Whiskers: the interval of the energy. " + _matched_note(size, resolution, sampler)
    charts = [
        Chart(
            "size",
            "Model size",
            findings.by_size(size),
            figures.by_size(size),
            text_table(named, of_size),
            note,
            "tall",
        ),
        Chart(
            "sampler",
            "Sampler and steps",
            findings.by_sampler(sampler),
            figures.by_sampler(sampler),
            text_table(sampler, of_sampler),
        ),
        Chart(
            "resolution",
            "Resolution",
            findings.by_resolution(resolution),
            figures.by_resolution(resolution),
            text_table(resolution, of_resolution),
        ),
        Chart(
            "stage",
            "Stage by stage",
            findings.by_stage(stage),
            figures.by_stage(stage),
            text_table(stage.assign(stage=stage["stage"].map(stage_name)), of_stage),
            shape="wide",
        ),
    ]
    if devices["devices"].nunique() > 1:
        charts.insert(-1, _devices_chart(devices))
    each = "sequence" if "motion" in tables else "image and per volume"
    intro = (
        f"Grams of CO₂e per {each}, at the study's own grid and hours. To generate one: without starting "
        "up, which a run pays once."
    )
    return Section("choices", "What each choice costs", intro, charts)


def _devices_chart(by_devices: pd.DataFrame) -> Chart:
    columns: Columns = {**_DIMS, "devices": ("Devices", count_text), **_PER_SAMPLE}
    table = text_table(by_devices, columns)
    return Chart(
        "devices",
        "Devices",
        findings.by_devices(by_devices),
        figures.by_devices(by_devices),
        table,
        shape="wide",
    )


def _matched_note(*comparisons: pd.DataFrame) -> str:
    if all(comparison["matched"].astype(bool).all() for comparison in comparisons):
        return "Rows compare runs that are alike in everything else."
    return "Where a study has no runs alike in everything else, rows compare all of its runs."


def quality_section(fidelity: pd.DataFrame, motion: pd.DataFrame | None) -> Section:
    """motion: of a study of sequences."""
    columns: Columns = {
        "run": ("Run", None),
        "generation_g_per_sample": ("CO₂e, one sample", mass_text),
        "fid_efficientnet_lite0": (FID_NAME, significant),
        "kid_efficientnet_lite0": ("KID (EfficientNet-Lite0)", lambda value: f"{value:.3f}"),
        "ms_ssim": ("MS-SSIM", lambda value: f"{value:.3f}"),
        "samples": ("Samples", count_text),
        "real_patients": ("Held-out patients", count_text),
        "not_computed": ("Not computed", None),
    }
    charts = []
    groups = list(groups_of(fidelity, ["spatial_dims", "resolution"]))
    for (dims, resolution), group in groups:
        chart = Chart(
            f"fidelity-{dims}d-{resolution}",
            f"{shape_name(dims, resolution, group['sample_kind'].iloc[0])}, held out: {_patients(group)}",
            findings.fidelity(group),
            figures.fidelity(group),
            text_table(group.sort_values("generation_g_per_sample"), columns),
            shape="wide" if len(groups) % 2 == 1 and (dims, resolution) == groups[-1][0] else "",
        )
        charts.append(chart)
    intro = (
        f"{FID_NAME}: lower is closer to real images of patients the models never saw. With few patients it "
        "ranks models of one study, and compares with no other study."
    )
    tables = [] if motion is None else motion_tables(motion)
    return Section("quality", "Fidelity against grams", intro, charts, tables)


def _patients(group: pd.DataFrame) -> str:
    held_out = group["real_patients"].dropna() if "real_patients" in group else pd.Series(dtype=float)
    return findings.plural(int(held_out.max()), "patient") if len(held_out) else "number of patients unknown"
