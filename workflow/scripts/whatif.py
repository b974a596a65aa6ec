"""Price the study's total in every zone and month."""

from emissions.stage import unmetered
from emissions.whatif import write_whatif

with unmetered(snakemake):
    write_whatif(
        ledger_path=snakemake.input.ledger,
        trace_paths=snakemake.input.traces,
        carbon=snakemake.params.carbon,
        whatif_path=snakemake.output.whatif,
    )
