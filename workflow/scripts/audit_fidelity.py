"""Measure the samples of a run against held-out patients."""

from emissions.stage import stage
from models.audit.stages import audit_fidelity

with stage(snakemake) as metered:
    work = audit_fidelity(
        run=snakemake.wildcards.run,
        settings=snakemake.params.settings,
        samples_path=snakemake.input.samples,
        reference_path=snakemake.input.reference,
        cohort_path=snakemake.input.cohort,
        fidelity_path=snakemake.output.fidelity,
        picture_path=snakemake.output.picture,
    )
    metered.work(**work)
