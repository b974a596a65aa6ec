"""Fetch the carbon intensity of the study's zone at the hours that the jobs ran."""

from emissions.pricing import write_live_intensity
from emissions.stage import unmetered

with unmetered(snakemake):
    write_live_intensity(
        ledger_path=snakemake.input.ledger,
        attempts_path=snakemake.input.attempts,
        starts_path=snakemake.params.starts,
        carbon=snakemake.params.carbon,
        intensity_path=snakemake.output.intensity,
    )
