"""Generation. Needs trained models; makes the images or volumes of each run."""

from models.data.folder import source_state


rule generate_samples:
    """Generate the images or volumes of a run."""
    input:
        model=model_of_run,
        autoencoder=autoencoder_of_run,
    output:
        samples="results/runs/{run}/samples.npy",
        info="results/runs/{run}/samples.json",
        record="results/runs/{run}/emissions/generate_samples.json",
        trace="results/runs/{run}/emissions/generate_samples.power.parquet",
        codecarbon="results/runs/{run}/emissions/generate_samples.codecarbon.csv",
    log:
        "results/runs/{run}/logs/generate_samples.log",
    threads: JOB_THREADS
    resources:
        gpu=1,
        slurm_extra=begin_of_study,
    params:
        plan=run_row,
        batch_size=lambda wildcards: config["sampling"]["batch_size"][
            f"{run_row(wildcards)['spatial_dims']}d"
        ],
        slab_gb=config["sampling"]["slab_gb"],
        precision=config["training"]["precision"],
        source=source_of(
            "models/sample.py", "models/coding.py", "models/diffusion/sampling.py"
        ),
    script:
        "../scripts/generate_samples.py"


rule generate_controlled:
    """Generate images or volumes that follow masks, with the sampler and steps of a run."""
    input:
        cohort=lambda wildcards: [
            f"{cohort_of_run(wildcards)}/{name}"
            for name in ("train.npy", "heldout.npy", "cohort.json")
        ],
        model=model_of_run,
        branch=branch_of_run,
        autoencoder=autoencoder_of_run,
    output:
        samples="results/runs/{run}/controlled.npy",
        masks="results/runs/{run}/masks.npy",
        info="results/runs/{run}/controlled.json",
        record="results/runs/{run}/emissions/generate_controlled.json",
        trace="results/runs/{run}/emissions/generate_controlled.power.parquet",
        codecarbon="results/runs/{run}/emissions/generate_controlled.codecarbon.csv",
    log:
        "results/runs/{run}/logs/generate_controlled.log",
    threads: JOB_THREADS
    resources:
        gpu=1,
        slurm_extra=begin_of_study,
    params:
        plan=run_row,
        samples=lambda wildcards: config["control"]["samples"][
            f"{run_row(wildcards)['spatial_dims']}d"
        ],
        masks_dir=config["control"]["masks"],
        files=source_state({"source": "folder", "path": config["control"]["masks"]}),
        batch_size=lambda wildcards: config["sampling"]["batch_size"][
            f"{run_row(wildcards)['spatial_dims']}d"
        ],
        slab_gb=config["sampling"]["slab_gb"],
        precision=config["training"]["precision"],
        cohort_dir=cohort_of_run,
        source=source_of(
            "models/conditional/generate.py",
            "models/data/masks.py",
            "models/data/mask_files.py",
            "models/sample.py",
            "models/coding.py",
            "models/diffusion/sampling.py",
        ),
    script:
        "../scripts/generate_controlled.py"
