"""Train the autoencoder of a cohort."""

from emissions.stage import stage
from models.autoencode import train_autoencoder

with stage(snakemake) as metered:
    work = train_autoencoder(
        plan=snakemake.params.plan,
        settings=snakemake.params.settings,
        training=snakemake.params.training,
        cohort_dir=snakemake.params.cohort_dir,
        autoencoder_path=snakemake.output.autoencoder,
        info_path=snakemake.output.info,
        control_path=metered.control_file(),
    )
    metered.work(**work)
