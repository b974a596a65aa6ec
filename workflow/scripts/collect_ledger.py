"""Collect the records of all stages, and the attempts that failed before them, in one ledger."""

from emissions.ledger import write_ledger
from emissions.stage import unmetered

with unmetered(snakemake):
    write_ledger(
        plan_path=snakemake.input.plan,
        record_paths=snakemake.input.records,
        journal_path=snakemake.params.journal,
        ledger_path=snakemake.output.ledger,
        attempts_path=snakemake.output.attempts,
    )
