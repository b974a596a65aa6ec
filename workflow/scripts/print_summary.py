"""Sum the study up on one screen of plain text."""

from pathlib import Path

from emissions.files import atomic_path
from emissions.stage import unmetered
from emissions.summary import summary_text

with unmetered(snakemake), atomic_path(snakemake.output.summary) as temporary:
    temporary.write_text(summary_text(Path(snakemake.input.plan).parent), encoding="utf-8")
