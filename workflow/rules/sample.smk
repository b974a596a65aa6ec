"""Generation. Needs trained models; makes the images or volumes of each run."""


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
        precision=config["training"]["precision"],
        source=source_of("models/sample.py", "models/diffusion/sampling.py"),
    script:
        "../scripts/generate_samples.py"
