"""List the study's images, fetching the bundled ones."""

from emissions.stage import stage
from models.data.images import fetch_images

with stage(snakemake) as metered:
    metered.work(**fetch_images(snakemake.params.settings, manifest_path=snakemake.output.manifest))
