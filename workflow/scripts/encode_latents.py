"""Encode the training images of a cohort once, for every model that trains on them."""

from emissions.stage import stage
from models.autoencode import encode_latents

with stage(snakemake) as metered:
    work = encode_latents(
        cohort_dir=snakemake.params.cohort_dir,
        autoencoder_path=snakemake.input.autoencoder,
        latents_path=snakemake.output.latents,
    )
    metered.work(**work)
