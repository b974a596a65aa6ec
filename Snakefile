# Latent Footprint, the story on one page: images become cohorts, cohorts train models, models generate samples, samples
# are audited; every one of these stages is metered, and the records become prices, comparisons and a dashboard.
# `snakemake --list-target-rules` prints the targets; README.md says how to begin.


configfile: "config/config.yaml"


# One environment serves every rule: `make study` installs it from pyproject.toml. With `--sdm apptainer` this image does.
container: "docker://python:3.11-slim"


include: "workflow/rules/common.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/cohort.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/audit.smk"
include: "workflow/rules/emissions.smk"
include: "workflow/rules/carbon.smk"
include: "workflow/rules/dashboard.smk"


onstart:
    study_starts()


onsuccess:
    study_ends()


rule all:
    """The whole study: tables, dashboard and summary."""
    default_target: True
    input:
        "results/dashboard/index.html",
        "results/summary.txt",
        "results/emissions/whatif.csv",
        "results/emissions/savings.csv",
    localrule: True


rule cohorts:
    """Only the images, prepared and split by patient."""
    input:
        artefacts("cohorts", "cohort.json"),
    localrule: True


rule models:
    """Only the trained models."""
    input:
        artefacts("models", "model.pt"),
    localrule: True


rule samples:
    """Only the generated images and volumes."""
    input:
        artefacts("runs", "samples.npy"),
    localrule: True


rule ledger:
    """Everything measured, before any price."""
    input:
        "results/emissions/ledger.csv",
    localrule: True
