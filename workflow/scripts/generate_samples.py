"""Generate the images or volumes of a run."""

from emissions.stage import stage
from models.sample import generate_samples

with stage(snakemake) as metered:
    work = generate_samples(
        plan=snakemake.params.plan,
        batch_size=snakemake.params.batch_size,
        slab_gb=snakemake.params.slab_gb,
        precision=snakemake.params.precision,
        model_path=snakemake.input.model,
        autoencoder_path=snakemake.input.autoencoder,
        samples_path=snakemake.output.samples,
        info_path=snakemake.output.info,
    )
    metered.work(**work)
