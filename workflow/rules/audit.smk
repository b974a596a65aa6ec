"""Audit. Needs cohorts and samples; makes figures of fidelity and motion, and pictures of real and generated images."""


rule extract_reference_features:
    """Features and a picture of the real images of a cohort; every run on it is measured against them."""
    input:
        train="results/cohorts/{cohort}/train.npy",
        heldout="results/cohorts/{cohort}/heldout.npy",
        cohort="results/cohorts/{cohort}/cohort.json",
    output:
        features="results/cohorts/{cohort}/reference_features.npz",
        picture="results/cohorts/{cohort}/real.png",
        record="results/cohorts/{cohort}/emissions/extract_reference_features.json",
        trace="results/cohorts/{cohort}/emissions/extract_reference_features.power.parquet",
        codecarbon="results/cohorts/{cohort}/emissions/extract_reference_features.codecarbon.csv",
    log:
        "results/cohorts/{cohort}/logs/extract_reference_features.log",
    threads: JOB_THREADS
    resources:
        gpu=1,
        slurm_extra=begin_of_study,
    params:
        plan=cohort_row,
        settings=config["audit"],
        source=source_of("models/audit"),
    script:
        "../scripts/extract_reference_features.py"


rule audit_fidelity:
    """Distances of a run's samples to held-out patients, their diversity, and a picture of them."""
    input:
        samples="results/runs/{run}/samples.npy",
        reference=lambda wildcards: f"{cohort_of_run(wildcards)}/reference_features.npz",
        cohort=lambda wildcards: f"{cohort_of_run(wildcards)}/cohort.json",
    output:
        fidelity="results/runs/{run}/fidelity.json",
        picture="results/runs/{run}/samples.png",
        record="results/runs/{run}/emissions/audit_fidelity.json",
        trace="results/runs/{run}/emissions/audit_fidelity.power.parquet",
        codecarbon="results/runs/{run}/emissions/audit_fidelity.codecarbon.csv",
    log:
        "results/runs/{run}/logs/audit_fidelity.log",
    threads: JOB_THREADS
    resources:
        gpu=1,
        slurm_extra=begin_of_study,
    params:
        plan=run_row,
        settings=config["audit"],
        source=source_of("models/audit"),
    script:
        "../scripts/audit_fidelity.py"


rule audit_motion:
    """How the sequences of a run move and hold together, beside held-out and training ones."""
    input:
        samples="results/runs/{run}/samples.npy",
        reference=lambda wildcards: f"{cohort_of_run(wildcards)}/reference_features.npz",
        cohort=lambda wildcards: f"{cohort_of_run(wildcards)}/cohort.json",
    output:
        motion="results/runs/{run}/motion.json",
        record="results/runs/{run}/emissions/audit_motion.json",
        trace="results/runs/{run}/emissions/audit_motion.power.parquet",
        codecarbon="results/runs/{run}/emissions/audit_motion.codecarbon.csv",
    log:
        "results/runs/{run}/logs/audit_motion.log",
    threads: JOB_THREADS
    resources:
        gpu=0,
        slurm_extra=begin_of_study,
    params:
        plan=run_row,
        source=source_of("models/audit"),
    script:
        "../scripts/audit_motion.py"


rule audit_adherence:
    """Whether a run's controlled samples follow their masks, and a picture of both."""
    input:
        samples="results/runs/{run}/controlled.npy",
        masks="results/runs/{run}/masks.npy",
        info="results/runs/{run}/controlled.json",
        cohort=lambda wildcards: [
            f"{cohort_of_run(wildcards)}/{name}"
            for name in ("train.npy", "heldout.npy", "cohort.json")
        ],
        autoencoder=autoencoder_of_run,
    output:
        adherence="results/runs/{run}/adherence.json",
        picture="results/runs/{run}/controlled.png",
        record="results/runs/{run}/emissions/audit_adherence.json",
        trace="results/runs/{run}/emissions/audit_adherence.power.parquet",
        codecarbon="results/runs/{run}/emissions/audit_adherence.codecarbon.csv",
    log:
        "results/runs/{run}/logs/audit_adherence.log",
    threads: JOB_THREADS
    resources:
        gpu=1,
        slurm_extra=begin_of_study,
    params:
        plan=run_row,
        settings=config["audit"],
        cohort_dir=cohort_of_run,
        source=source_of("models/audit", "models/data/masks.py"),
    script:
        "../scripts/audit_adherence.py"
