"""Measure how the sequences of a run move and hold together."""

from emissions.stage import stage
from models.audit.stages import audit_motion

with stage(snakemake) as metered:
    work = audit_motion(
        run=snakemake.wildcards.run,
        samples_path=snakemake.input.samples,
        reference_path=snakemake.input.reference,
        cohort_path=snakemake.input.cohort,
        motion_path=snakemake.output.motion,
    )
    metered.work(**work)
