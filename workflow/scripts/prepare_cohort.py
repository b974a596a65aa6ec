"""Make the training and held-out arrays of one cohort."""

from emissions.stage import stage
from models.data.cohort import prepare_cohort

with stage(snakemake) as metered:
    metered.work(
        **prepare_cohort(
            manifest_path=snakemake.input.manifest,
            images_config=snakemake.params.settings,
            spatial_dims=snakemake.params.plan["spatial_dims"],
            resolution=snakemake.params.plan["resolution"],
            cohort=snakemake.params.plan["cohort"],
            train_path=snakemake.output.train,
            heldout_path=snakemake.output.heldout,
            cohort_path=snakemake.output.cohort,
        )
    )
