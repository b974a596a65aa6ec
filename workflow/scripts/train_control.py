"""Train the branch that makes a model follow masks."""

from emissions.stage import stage
from models.conditional.train import train_control

with stage(snakemake) as metered:
    work = train_control(
        plan=snakemake.params.plan,
        settings=snakemake.params.settings,
        training=snakemake.params.training,
        cohort_dir=snakemake.params.cohort_dir,
        latents_path=snakemake.input.latents,
        autoencoder_path=snakemake.input.autoencoder,
        model_path=snakemake.input.model,
        branch_path=snakemake.output.branch,
        info_path=snakemake.output.info,
        control_path=metered.control_file(),
    )
    metered.work(**work)
