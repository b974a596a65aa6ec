"""Price the ledger at the study's zone and at the hours that the jobs ran."""

from emissions.pricing import write_prices
from emissions.stage import unmetered

carbon = snakemake.params.carbon
with unmetered(snakemake):
    write_prices(
        ledger_path=snakemake.input.ledger,
        attempts_path=snakemake.input.attempts,
        trace_paths=snakemake.input.traces,
        priced_path=snakemake.output.priced,
        zone=carbon["zone"],
        year=carbon["year"],
        pue=carbon["pue"],
    )
