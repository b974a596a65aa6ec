"""Write the plan down: one row a run, with all its settings."""

import pandas as pd

from emissions.stage import unmetered
from emissions.tables import write_table

with unmetered(snakemake):
    table = pd.DataFrame(snakemake.params.rows, columns=snakemake.params.columns)
    write_table(table, snakemake.output.plan)
