"""Look at the real images of a cohort, which its runs are measured against."""

from emissions.stage import stage
from models.audit.stages import extract_reference_features

with stage(snakemake) as metered:
    work = extract_reference_features(
        settings=snakemake.params.settings,
        train_path=snakemake.input.train,
        heldout_path=snakemake.input.heldout,
        cohort_path=snakemake.input.cohort,
        features_path=snakemake.output.features,
        picture_path=snakemake.output.picture,
    )
    metered.work(**work)
