"""Generate images or volumes that follow masks."""

from emissions.stage import stage
from models.conditional.generate import generate_controlled

with stage(snakemake) as metered:
    work = generate_controlled(
        plan=snakemake.params.plan,
        samples=snakemake.params.samples,
        masks_dir=snakemake.params.masks_dir,
        batch_size=snakemake.params.batch_size,
        slab_gb=snakemake.params.slab_gb,
        precision=snakemake.params.precision,
        cohort_dir=snakemake.params.cohort_dir,
        model_path=snakemake.input.model,
        autoencoder_path=snakemake.input.autoencoder,
        branch_path=snakemake.input.branch,
        samples_path=snakemake.output.samples,
        masks_path=snakemake.output.masks,
        info_path=snakemake.output.info,
    )
    metered.work(**work)
