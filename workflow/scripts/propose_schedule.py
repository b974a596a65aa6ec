"""Propose when to run the study next: each policy's starts, against starting at once."""

from emissions.schedule.propose import write_schedule
from emissions.stage import unmetered

with unmetered(snakemake):
    write_schedule(
        ledger_path=snakemake.input.ledger,
        plan_path=snakemake.input.plan,
        schedule_path=snakemake.output.schedule,
        carbon=snakemake.params.carbon,
        slack_h=snakemake.params.slack_h,
    )
