"""What the chapters share: the checked config, the plan, and small functions from wildcards to rows of it."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from snakemake.exceptions import WorkflowError

from emissions.acting.starts import begin_option, finish, wait_for_start
from emissions.grid.choice import check_carbon
from models.conditional.choice import NOT_TRAINED, check_control
from models.config import check_config
from models.plan import COLUMNS, make_plan

try:
    check_config(config, workflow.source_path("../schemas/config.schema.yaml"))
    check_carbon(config["carbon"])
    plan = make_plan(config)
    check_control(config, plan.models.values())
except (ValueError, FileNotFoundError) as error:
    raise WorkflowError(str(error)) from None


# glibc gives large blocks back to the kernel after each use and asks for them again, which on CPUs costs training more
# than half of its time. Every job, local or on a cluster, is started with this before it.
shell.prefix(
    "export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456; "
)


# Jobs run side by side and share the node's energy by CPU time. Two at a time, so that what one does on a single core
# (imports, reading, writing) overlaps the other's work.
JOB_THREADS = max(1, workflow.cores // 2)


wildcard_constraints:
    images="|".join(plan.images),
    cohort="|".join(plan.cohorts),
    autoencoder="|".join(plan.autoencoders),
    model="|".join(plan.models),
    run="|".join(plan.runs),


# Which stages each kind of artefact goes through, in order.
STAGES = {
    "images": ["fetch_images"],
    "cohorts": ["prepare_cohort", "extract_reference_features"],
    "autoencoders": ["train_autoencoder", "encode_latents"],
    "models": ["train_diffusion"],
    "runs": ["generate_samples", "audit_fidelity"],
}
if config["images"]["frames"]:
    STAGES["runs"].append("audit_motion")
CONTROLLED = bool(config["control"]["labels"])
if CONTROLLED:
    STAGES["models"] += ["train_control"]
    STAGES["runs"] += ["generate_controlled", "audit_adherence"]


def images_row(wildcards):
    return plan.images[wildcards.images]


def cohort_row(wildcards):
    return plan.cohorts[wildcards.cohort]


def autoencoder_row(wildcards):
    return plan.autoencoders[wildcards.autoencoder]


def model_row(wildcards):
    return plan.models[wildcards.model]


def devices_of_model(wildcards):
    return model_row(wildcards)["devices"]


def run_row(wildcards):
    return plan.runs[wildcards.run]


def images_of_cohort(wildcards):
    return f"results/images/{cohort_row(wildcards)['images']}/manifest.json"


def cohort_of_autoencoder(wildcards):
    return f"results/cohorts/{autoencoder_row(wildcards)['cohort']}"


def latents_of_model(wildcards):
    return f"results/autoencoders/{model_row(wildcards)['autoencoder']}/latents.pt"


def autoencoder_of_model(wildcards):
    return f"results/autoencoders/{model_row(wildcards)['autoencoder']}/autoencoder.pt"


def cohort_of_model(wildcards):
    return f"results/cohorts/{model_row(wildcards)['cohort']}"


def branch_of_run(wildcards):
    return f"results/models/{run_row(wildcards)['model']}/control.pt"


def model_of_run(wildcards):
    return f"results/models/{run_row(wildcards)['model']}/model.pt"


def autoencoder_of_run(wildcards):
    return f"results/autoencoders/{run_row(wildcards)['autoencoder']}/autoencoder.pt"


def cohort_of_run(wildcards):
    return f"results/cohorts/{run_row(wildcards)['cohort']}"


def artefacts(kind, name):
    """The file of that name of every artefact of a kind."""
    return [f"results/{kind}/{key}/{name}" for key in getattr(plan, kind)]


def all_records(suffix=".json"):
    """The record of every stage and item of the plan, or another file beside it."""
    return [
        f"results/{kind}/{key}/emissions/{stage}{suffix}"
        for kind, key in plan.items()
        for stage in STAGES[kind]
    ]


def intensity_of_study(wildcards):
    """The file that the study's intensity is in; the tables ship with the project and are none."""
    chosen = config["carbon"]["intensity"]
    if chosen == "tables":
        return {}
    if chosen == "file":
        return {"intensity": config["carbon"]["file"]["path"]}
    return {"intensity": "results/emissions/intensity.csv"}


def begin_of_study(wildcards):
    """What SLURM is told of a metered job: when the study may begin, once that is planned; "" where it already may."""
    return begin_option(Path("results"), datetime.now(UTC))


def study_starts():
    """Plan when the study begins, as `schedule` asks, and wait for it where jobs run on this machine.

    Tables and the dashboard wait for nothing: only what is metered does.
    """
    if not any("record" in job.output.keys() for job in workflow.dag.needrun_jobs()):
        return
    try:
        wait_for_start(config, Path("results"), holds=workflow.local_exec)
    except (ValueError, OSError) as error:
        raise WorkflowError(str(error)) from None


def study_ends():
    """Once everything of the plan is measured, the next request is planned anew."""
    if all(Path(record).exists() for record in all_records()):
        finish(Path("results"), datetime.now(UTC))


def source_of(*places):
    """Digest of the modules behind a script; as a parameter, it makes the work run again when they change."""
    root = Path(workflow.basedir)
    files = sorted(
        file
        for place in places
        for file in (
            (root / place).rglob("*.py") if (root / place).is_dir() else [root / place]
        )
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
