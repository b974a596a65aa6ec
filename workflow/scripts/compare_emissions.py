"""Compare sizes, resolutions, stages, samplers, devices, zones and seasons, and energy with fidelity."""

from emissions.compare import write_comparisons
from emissions.stage import unmetered

carbon = snakemake.params.carbon
with unmetered(snakemake):
    write_comparisons(
        priced_path=snakemake.input.priced,
        plan_path=snakemake.input.plan,
        fidelity_paths=snakemake.input.scores,
        motion_paths=snakemake.input.motion,
        adherence_paths=snakemake.input.adherence,
        outputs=dict(snakemake.output.items()),
        year=carbon["year"],
        pue=carbon["pue"],
    )
