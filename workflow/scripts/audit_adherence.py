"""Whether a run's controlled samples follow their masks."""

from emissions.stage import stage
from models.audit.adherence import audit_adherence

with stage(snakemake) as metered:
    work = audit_adherence(
        run=snakemake.wildcards.run,
        samples_path=snakemake.input.samples,
        masks_path=snakemake.input.masks,
        info_path=snakemake.input.info,
        cohort_dir=snakemake.params.cohort_dir,
        autoencoder_path=snakemake.input.autoencoder,
        settings=snakemake.params.settings,
        adherence_path=snakemake.output.adherence,
        picture_path=snakemake.output.picture,
    )
    metered.work(**work)
