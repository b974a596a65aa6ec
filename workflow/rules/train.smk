"""Training. Needs prepared cohorts; makes autoencoders, latents cached once, and diffusion models."""


rule train_autoencoder:
    """Train the autoencoder of a cohort; every model of that resolution shares it."""
    input:
        lambda wildcards: [
            f"{cohort_of_autoencoder(wildcards)}/{name}"
            for name in ("train.npy", "heldout.npy", "cohort.json")
        ],
    output:
        autoencoder="results/autoencoders/{autoencoder}/autoencoder.pt",
        info="results/autoencoders/{autoencoder}/autoencoder.json",
        record="results/autoencoders/{autoencoder}/emissions/train_autoencoder.json",
        trace="results/autoencoders/{autoencoder}/emissions/train_autoencoder.power.parquet",
        codecarbon="results/autoencoders/{autoencoder}/emissions/train_autoencoder.codecarbon.csv",
    log:
        "results/autoencoders/{autoencoder}/logs/train_autoencoder.log",
    threads: JOB_THREADS
    resources:
        gpu=1,
        slurm_extra=begin_of_study,
    params:
        plan=autoencoder_row,
        settings=config["autoencoder"],
        training=config["training"],
        cohort_dir=cohort_of_autoencoder,
        source=source_of(
            "models/autoencode.py",
            "models/loop.py",
            "models/adversarial.py",
            "models/losses.py",
            "models/networks/autoencoder.py",
            "models/networks/vqgan.py",
            "models/networks/quantiser.py",
            "models/networks/discriminator.py",
        ),
    script:
        "../scripts/train_autoencoder.py"


rule encode_latents:
    """Encode the training images of a cohort once, for every model that trains on them."""
    input:
        train=lambda wildcards: f"{cohort_of_autoencoder(wildcards)}/train.npy",
        autoencoder=rules.train_autoencoder.output.autoencoder,
    output:
        latents="results/autoencoders/{autoencoder}/latents.pt",
        record="results/autoencoders/{autoencoder}/emissions/encode_latents.json",
        trace="results/autoencoders/{autoencoder}/emissions/encode_latents.power.parquet",
        codecarbon="results/autoencoders/{autoencoder}/emissions/encode_latents.codecarbon.csv",
    log:
        "results/autoencoders/{autoencoder}/logs/encode_latents.log",
    threads: JOB_THREADS
    resources:
        gpu=1,
        slurm_extra=begin_of_study,
    params:
        plan=autoencoder_row,
        cohort_dir=cohort_of_autoencoder,
        source=source_of("models/coding.py", "models/streaming.py"),
    script:
        "../scripts/encode_latents.py"


rule train_diffusion:
    """Train a denoiser on cached latents; every sampler of a model shares it."""
    input:
        latents=latents_of_model,
    output:
        model="results/models/{model}/model.pt",
        info="results/models/{model}/model.json",
        record="results/models/{model}/emissions/train_diffusion.json",
        trace="results/models/{model}/emissions/train_diffusion.power.parquet",
        codecarbon="results/models/{model}/emissions/train_diffusion.codecarbon.csv",
    log:
        "results/models/{model}/logs/train_diffusion.log",
    threads: JOB_THREADS
    resources:
        gpu=devices_of_model,
        slurm_extra=begin_of_study,
    params:
        plan=model_row,
        settings=config["diffusion"],
        training=config["training"],
        source=source_of(
            "models/train.py",
            "models/loop.py",
            "models/networks",
            "models/diffusion/process.py",
        ),
    script:
        "../scripts/train_diffusion.py"


rule train_control:
    """Train the branch that makes a model follow masks; the model stays as it is."""
    input:
        cohort=lambda wildcards: [
            f"{cohort_of_model(wildcards)}/{name}"
            for name in ("train.npy", "heldout.npy", "cohort.json")
        ],
        latents=latents_of_model,
        autoencoder=autoencoder_of_model,
        model=rules.train_diffusion.output.model,
    output:
        branch="results/models/{model}/control.pt",
        info="results/models/{model}/control_training.json",
        record="results/models/{model}/emissions/train_control.json",
        trace="results/models/{model}/emissions/train_control.power.parquet",
        codecarbon="results/models/{model}/emissions/train_control.codecarbon.csv",
    log:
        "results/models/{model}/logs/train_control.log",
    threads: JOB_THREADS
    resources:
        gpu=1,
        slurm_extra=begin_of_study,
    params:
        plan=model_row,
        settings={
            key: value
            for key, value in config["control"].items()
            if key not in NOT_TRAINED
        },
        training=config["training"],
        cohort_dir=cohort_of_model,
        source=source_of(
            "models/conditional/train.py",
            "models/conditional/branch.py",
            "models/conditional/choice.py",
            "models/loop.py",
            "models/data/masks.py",
            "models/networks/control.py",
            "models/networks/control_adapter.py",
            "models/networks/controlnet.py",
            "models/diffusion/process.py",
        ),
    script:
        "../scripts/train_control.py"
