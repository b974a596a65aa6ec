"""Price the ledger at the study's zone and at the hours that the jobs ran."""

from emissions.pricing import write_prices
from emissions.stage import unmetered

with unmetered(snakemake):
    write_prices(
        ledger_path=snakemake.input.ledger,
        attempts_path=snakemake.input.attempts,
        trace_paths=snakemake.input.traces,
        priced_path=snakemake.output.priced,
        carbon=snakemake.params.carbon,
        intensity_path=snakemake.input.get("intensity"),
    )
