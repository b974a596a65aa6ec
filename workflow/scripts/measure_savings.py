"""Measure what waiting and pausing saved, against the same work at once."""

from emissions.acting.savings import write_savings
from emissions.stage import unmetered

with unmetered(snakemake):
    write_savings(
        ledger_path=snakemake.input.ledger,
        attempts_path=snakemake.input.attempts,
        trace_paths=snakemake.input.traces,
        starts_path=snakemake.params.starts,
        pauses_path=snakemake.params.pauses,
        savings_path=snakemake.output.savings,
        carbon=snakemake.params.carbon,
        intensity_path=snakemake.input.get("intensity"),
    )
