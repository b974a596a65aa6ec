"""Train a denoiser on cached latents."""

from emissions.stage import stage
from models.train import train_diffusion

with stage(snakemake) as metered:
    work = train_diffusion(
        plan=snakemake.params.plan,
        settings=snakemake.params.settings,
        training=snakemake.params.training,
        latents_path=snakemake.input.latents,
        model_path=snakemake.output.model,
        info_path=snakemake.output.info,
        control_path=metered.control_file(),
    )
    metered.work(**work)
