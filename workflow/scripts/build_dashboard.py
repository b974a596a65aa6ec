"""Draw the tables and pictures on one self-contained page."""

from pathlib import Path

from emissions.dashboard import build_dashboard
from emissions.stage import unmetered

with unmetered(snakemake):
    build_dashboard(
        tables_dir=Path(snakemake.input.priced).parent,
        plan=snakemake.input.plan,
        cohorts=snakemake.input.cohorts,
        pictures=snakemake.input.pictures,
        real_pictures=snakemake.input.real_pictures,
        controlled_pictures=snakemake.input.controlled_pictures,
        title=snakemake.params.title,
        out_path=snakemake.output.page,
    )
