"""A branch that learns to follow masks beside a trained model, from its training to the audit, on scenes made here."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from models import checkpoint
from models.audit.adherence import audit_adherence
from models.autoencode import encode_latents, load_autoencoder, train_autoencoder
from models.conditional.branch import branch_flops, build_branch, load_branch
from models.conditional.choice import check_control, embedding_channels
from models.conditional.generate import generate_controlled
from models.conditional.train import train_control
from models.control import StoppedError
from models.data.masks import label_map, thresholds
from models.networks.dit import DiT
from models.networks.sizes import DiTSize
from models.sample import generate_samples
from models.train import load_denoiser, train_diffusion
from models.work import TRAINING_PASSES, count_flops
from tests.models.config_files import default_config

CONFIG = default_config()
LABELS = {"soft": [0, 150], "bone": [150, None]}
TRAINING = {**CONFIG["training"], "precision": "fp32"}
ROW = {"autoencoder": "ae", "model": "m", "size": "nano", "resolution": 16, "frames": 0, "devices": 1, "seed": 0}
ROW |= {"run": "r", "sampler": "ddim", "steps": 10, "samples": 12}
SIZES = {2: (16, 16), 3: (6, 8, 10)}  # those of volumes are no multiples of the autoencoder's 2 times the network's 2


def both(value):
    return {"2d": value, "3d": value}


def settings(section, **changes):
    return {**CONFIG[section], **changes}


def control(images, **changes):
    short = {"learning_rate": 8e-3, "warmup_images": 80, "ema_decay": 0.95, "channels": [8, 16], "batch_size": both(8)}
    return settings("control", images=both(images), **{"labels": LABELS} | short | changes)


def scenes(number, seed, shape):
    """A block of each label somewhere in each image, on a ground that has none."""
    rng = np.random.default_rng(seed)
    images = rng.normal(-0.6, 0.02, (number, 1, *shape)).astype(np.float32)
    for image in images:
        for value in (0.0, 0.6):
            starts = [rng.integers(0, side // 2 + 1) for side in shape]
            image[(0, *(slice(start, start + side // 2) for start, side in zip(starts, shape, strict=True)))] += (
                value + 0.6
            )
    return images.clip(-1, 1)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps one state per process, and in the study every stage is a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def fresh(stage, *arguments, **named):
    AcceleratorState._reset_state(reset_partial_state=True)
    return stage(*arguments, **named)


def cohort(folder, dims, images):
    """A cohort with its autoencoder and latents in a folder."""
    for split, number, seed in (("train", 64, 0), ("heldout", 12, 1)):
        np.save(folder / f"{split}.npy", scenes(number, seed, SIZES[dims]))
    info = {"cohort": "c", "window": [-200, 300], "unit": "HU", "spacing_mm": [2.0] * dims, "images_train": 10}
    (folder / "cohort.json").write_text(json.dumps(info))
    levels = {"channels": both([16, 16]), "latent_channels": both(2), "crop": both(None), "learning_rate": both(4e-3)}
    autoencoder = settings("autoencoder", images=both(images), batch_size=both(8), **levels)
    plan = {**ROW, "spatial_dims": dims}
    torch.manual_seed(0)
    fresh(train_autoencoder, plan, autoencoder, TRAINING, folder, folder / "ae.pt", folder / "ae.json")
    encode_latents(folder, folder / "ae.pt", folder / "latents.pt")
    return folder


def model(folder, plan, images):
    """A trained denoiser of the cohort in a folder of its own; where it is, with the cohort's files."""
    diffusion = settings("diffusion", timesteps=100, images=both(images), batch_size=both(8), learning_rate=2e-3)
    fresh(train_diffusion, plan, diffusion, TRAINING, folder / "latents.pt", folder / "m.pt", folder / "m.json")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("2d"), 2, 1600)


LENGTHS = {"dit": (1600, 1000), "unet": (800, 800)}  # images that a model and its branch see until masks are followed


@pytest.fixture(scope="module", params=LENGTHS)
def trained(request, pictures, tmp_path_factory):
    """A model of 2D scenes: its folder and plan row."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(pictures, folder, dirs_exist_ok=True)
    plan = {**ROW, "family": request.param, "spatial_dims": 2}
    return model(folder, plan, LENGTHS[request.param][0]), plan


@pytest.fixture(scope="module")
def begun(pictures, tmp_path_factory):
    """A model that has seen eight images, and its branch as well: enough for what is no matter of quality."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(pictures, folder, dirs_exist_ok=True)
    plan = {**ROW, "family": "dit", "spatial_dims": 2}
    train_branch(model(folder, plan, 8), plan, folder, images=8)
    return folder, plan


def train_branch(folder, plan, into, told=None, **changes):
    into.mkdir(exist_ok=True)
    named = {"images": LENGTHS[plan["family"]][1]} | changes
    paths = (
        folder,
        folder / "latents.pt",
        folder / "ae.pt",
        folder / "m.pt",
        into / "control.pt",
        into / "control.json",
    )
    return fresh(train_control, plan, control(**named), TRAINING, *paths, told)


def generate(folder, plan, into, samples=12, masks_dir=None):
    paths = (folder, folder / "m.pt", folder / "ae.pt", into / "control.pt")
    outputs = (into / "controlled.npy", into / "masks.npy", into / "controlled.json")
    return generate_controlled(plan, samples, masks_dir, 5, None, "fp32", *paths, *outputs)


def audit(folder, into):
    work = audit_adherence(
        run="r",
        samples_path=into / "controlled.npy",
        masks_path=into / "masks.npy",
        info_path=into / "controlled.json",
        cohort_dir=folder,
        autoencoder_path=folder / "ae.pt",
        settings={"picture_samples": 8},
        adherence_path=into / "adherence.json",
        picture_path=into / "controlled.png",
    )
    return work, json.loads((into / "adherence.json").read_text())


def test_a_trained_branch_follows_its_masks_and_a_new_one_does_not(trained, tmp_path):
    folder, plan = trained
    reports, length = {}, LENGTHS[plan["family"]][1]
    for name, images in (("new", 8), ("taught", length)):
        work = train_branch(folder, plan, tmp_path / name, images=images)
        made = generate(folder, plan, tmp_path / name)
        reports[name] = audit(folder, tmp_path / name)[1]
    taught, new = reports["taught"], reports["new"]
    assert taught["dice_own"] > taught["dice_other"] + 0.1
    assert taught["followed"] >= 0.75
    assert new["dice_own"] < new["dice_other"] + 0.1
    assert taught["dice_reconstruction"] > taught["dice_own"]
    assert set(taught["labels"]) == set(LABELS)
    assert all(label["dice_own"] > label["dice_other"] for label in taught["labels"].values())
    assert (taught["masks_heldout"], taught["masks_train"], taught["masks_given"]) == (12, 0, 0)

    state = checkpoint.load(tmp_path / "taught/control.pt")
    assert not any(key.startswith("base.") for key in state["weights"])
    assert work["images_seen"] == length
    assert work["flops"] == length * state["flops"]["training"]
    decode = load_autoencoder(folder / "ae.pt")[1]["decode"]
    assert made["flops"] == 12 * (state["flops"]["encode"] + 10 * state["flops"]["predict"] + decode)
    assert made["parameters"] > work["parameters"] > 0


def test_an_untaught_branch_draws_what_the_model_draws(trained, tmp_path):
    """It starts from nothing, and from the noise of the run's own samples."""
    folder, plan = trained
    train_branch(folder, plan, tmp_path, images=8, learning_rate=1e-12)
    generate(folder, plan, tmp_path)
    generate_samples(plan, 5, None, "fp32", folder / "m.pt", folder / "ae.pt", tmp_path / "s.npy", tmp_path / "s.json")
    assert np.allclose(np.load(tmp_path / "controlled.npy"), np.load(tmp_path / "s.npy"), atol=1e-3)


def test_masks_are_of_held_out_images_then_of_training_images(begun, tmp_path):
    folder, plan = begun
    shutil.copy(folder / "control.pt", tmp_path)
    generate(folder, plan, tmp_path, samples=27)
    info = json.loads((tmp_path / "controlled.json").read_text())
    assert [source["split"] for source in info["masks"]] == ["heldout"] * 12 + ["train"] * 15
    assert [source["index"] for source in info["masks"][:22]] == [*range(12), *range(10)]
    assert all(source["index"] >= 10 for source in info["masks"][22:])  # of copies
    assert len({(source["split"], source["index"]) for source in info["masks"]}) == 27
    images = {split: np.load(folder / f"{split}.npy") for split in ("heldout", "train")}
    expected = [label_map(images[s["split"]][s["index"]], thresholds(LABELS, (-200, 300))) for s in info["masks"]]
    assert (np.load(tmp_path / "masks.npy") == np.stack(expected)).all()
    with pytest.raises(
        ValueError, match=r"control\.samples: 77 need a mask each, and c has 12 held-out and 64 training images, copies"
    ):
        generate(folder, plan, tmp_path, samples=77)


def test_masks_of_ones_own_are_followed_in_the_order_of_their_names(begun, tmp_path):
    folder, plan = begun
    (tmp_path / "own").mkdir()
    shutil.copy(folder / "control.pt", tmp_path)
    rng = np.random.default_rng(3)
    maps = rng.integers(0, 3, (2, 16, 16), np.uint8)  # (H, W): towards back and left
    for name, labels in zip("ab", maps, strict=True):
        image = nibabel.Nifti1Image(labels.T[..., None], np.diag([-2.0, -2.0, 5.0, 1.0]))
        nibabel.save(image, tmp_path / f"own/{name}.nii.gz")
    generate(folder, plan, tmp_path, samples=2, masks_dir=tmp_path / "own")
    assert (np.load(tmp_path / "masks.npy")[:, 0] == maps).all()
    _, report = audit(folder, tmp_path)
    assert report["masks_given"] == 2
    assert report["dice_reconstruction"] is None and "no images" in report["not_computed"]
    with pytest.raises(ValueError, match="has 2 NIfTI files"):
        generate(folder, plan, tmp_path, samples=3, masks_dir=tmp_path / "own")


def test_a_branch_of_another_model_or_of_one_trained_anew_is_refused(begun, tmp_path):
    folder, plan = begun
    shutil.copy(folder / "control.pt", tmp_path)
    base, state = load_denoiser(folder / "m.pt")
    with pytest.raises(ValueError, match=r"control\.pt: is of model m, not of other"):
        load_branch(tmp_path / "control.pt", base, {**state, "plan": {**plan, "model": "other"}})
    anew = {name: value + 1 for name, value in state["weights"].items()}
    with pytest.raises(ValueError, match=r"control\.pt: m was trained anew since"):
        load_branch(tmp_path / "control.pt", base, {**state, "weights": anew})
    (tmp_path / "control.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"control\.pt: not a readable checkpoint"):
        generate(folder, plan, tmp_path)


def test_samples_that_are_not_finite_have_no_figures(begun, tmp_path):
    folder, plan = begun
    shutil.copy(folder / "control.pt", tmp_path)
    generate(folder, plan, tmp_path, samples=3)
    samples = np.load(tmp_path / "controlled.npy")
    samples[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "controlled.npy", samples)
    _, report = audit(folder, tmp_path)
    assert report["dice_own"] is None and report["followed"] is None
    assert "not finite" in report["not_computed"]


def test_a_training_stops_when_told_and_resumes(begun, tmp_path):
    """From a checkpoint of its own: that of the model's training lies in the same folder."""
    folder, plan = begun
    told = tmp_path / "told.json"
    told.write_text(json.dumps({"state": "stop", "reason": "budget"}))
    with pytest.raises(StoppedError, match=r"m control: stopped \(budget\)"):
        train_branch(folder, plan, tmp_path, told, images=40)
    assert checkpoint.load(tmp_path / "control_checkpoint.pt")["images_seen"] == 8
    work = train_branch(folder, plan, tmp_path, images=40)
    assert (work["images_seen"], work["images_resumed"]) == (40, 8)
    assert not (tmp_path / "control_checkpoint.pt").exists()
    whole = train_branch(folder, plan, tmp_path / "whole", images=40)
    assert (whole["flops"], whole["images_resumed"]) == (work["flops"], 0)
    weights = [checkpoint.load(path / "control.pt")["weights"] for path in (tmp_path, tmp_path / "whole")]
    assert all(torch.allclose(value, weights[1][key], atol=1e-6) for key, value in weights[0].items())


@pytest.mark.parametrize("family", ["dit", "unet"])
def test_volumes_of_sides_that_no_network_divides_go_through(family, tmp_path):
    plan = {**ROW, "family": family, "spatial_dims": 3, "steps": 2}
    folder = model(cohort(tmp_path, 3, 8), plan, 8)
    train_branch(folder, plan, tmp_path, images=8)
    assert checkpoint.load(tmp_path / "control.pt")["mask_shape"] == [8, 8, 12]
    generate(folder, plan, tmp_path, samples=2)
    assert np.load(tmp_path / "controlled.npy").shape == np.load(tmp_path / "masks.npy").shape == (2, 1, 6, 8, 10)
    work, report = audit(folder, tmp_path)
    assert work == {"images_seen": 2} and report["dice_own"] is not None


@pytest.mark.parametrize("family", ["dit", "unet"])
def test_activations_that_are_computed_anew_cost_work_and_change_nothing(family, begun, tmp_path, monkeypatch):
    plan = {**ROW, "family": family, "spatial_dims": 2}
    shutil.copytree(begun[0], tmp_path, dirs_exist_ok=True)
    folder, states = model(tmp_path, plan, 8), []
    for checkpointing in (False, True):
        monkeypatch.setitem(TRAINING, "activation_checkpointing", checkpointing)
        train_branch(folder, plan, tmp_path / str(checkpointing), images=8)
        states.append(checkpoint.load(tmp_path / str(checkpointing) / "control.pt"))
    kept, anew = states
    assert all(torch.allclose(value, anew["weights"][name], atol=1e-6) for name, value in kept["weights"].items())
    assert anew["flops"]["training"] > 1.1 * kept["flops"]["training"]
    assert anew["flops"]["predict"] == kept["flops"]["predict"]


def test_labels_that_the_cohort_cannot_show_are_refused(begun, tmp_path):
    folder, plan = begun
    with pytest.raises(ValueError, match=r"control\.labels\.metal: .* bound 400"):
        train_branch(folder, plan, tmp_path, images=8, labels={"metal": [400, None]})


def products_of(network, loss):
    """Operations of forward and backward pass by the layers' own shapes: what needs no gradient has no product."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        forward = 2 * output.numel() * layer.weight[0].numel()
        total += forward * (1 + inputs[0].requires_grad + layer.weight.requires_grad)

    hooks = [
        layer.register_forward_hook(count)
        for layer in network.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
    ]
    loss()
    for hook in hooks:
        hook.remove()
    return total


def test_operations_of_a_training_are_those_of_its_layers():
    """The backward pass goes through the frozen base, but forms no gradient of its weights."""
    latent, size = (8, 8), DiTSize(depth=3, width=32, heads=4)
    base = DiT(latent, 2, size, 2)
    network = build_branch(base, {}, control(8), 2, (16, 16))
    found = branch_flops(network, (2, *latent))
    x, t, mask = torch.randn(1, 2, *latent), torch.tensor([3]), torch.rand(1, 2, 16, 16)
    layers = products_of(network.train(), lambda: network(x, t, mask))
    tokens = 16
    attention = (
        size.depth * 2 * (2 * tokens * tokens * size.width)
    )  # of two products, both with a gradient for each side
    assert found["training"] == layers + 3 * attention
    whole = count_flops(network, (1, 2, *latent), (1,), (1, 2, 16, 16))
    assert found["encode"] + found["predict"] == whole
    assert whole < found["training"] < TRAINING_PASSES * whole


def config_with(**changes):
    config = default_config()
    config["control"]["labels"] = {"fat": [-150, -30]}
    for path, value in changes.items():
        section, key = path.split("__")
        config[section][key] = value
    return config


ROWS = [{"family": "unet", "spatial_dims": 2}, {"family": "dit", "spatial_dims": 3}]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images__frames": 8}, r"control: .* images\.frames is 8"),
        ({"images__window": None}, r"control\.labels\.fat: .*images\.window"),
        ({"images__window": [-100, 100]}, r"control\.labels\.fat: .* bound -150"),
        ({"control__initial_stride": 3}, r"control\.initial_stride: 3"),
        ({"control__initial_stride": 8}, r"control\.initial_stride: 8"),
        ({"control__channels": [8, 16]}, r"control\.channels: has 2 levels, .* needs 3"),
    ],
)
def test_a_control_that_could_not_run_is_refused_before_anything_does(changes, told):
    with pytest.raises(ValueError, match=told):
        check_control(config_with(**changes), ROWS)


def test_what_does_not_concern_a_study_is_no_reason_to_refuse_it():
    check_control(config_with(), ROWS)
    check_control(config_with(control__labels={}, images__frames=8), ROWS)
    check_control(config_with(control__channels=[8]), ROWS[1:])  # a transformer takes masks of any size
    check_control(config_with(images__source="medmnist", images__window=None), ROWS)


def test_an_embedding_has_as_many_levels_as_it_takes():
    def taken(stride, factor):
        return embedding_channels({"channels": [8, 16, 32, 64], "initial_stride": stride}, (factor, factor))

    assert taken(1, 1) == [8]
    assert taken(1, 4) == [8, 16, 32]
    assert taken(2, 4) == [8, 16]
    with pytest.raises(ValueError, match="downsampling, 2 and 4"):
        embedding_channels({"channels": [8, 16, 32], "initial_stride": 1}, (2, 4))


def test_too_little_memory_for_a_branch_is_told_before_it_is_trained(begun, tmp_path):
    folder, plan = begun
    told = r"training .* control: predicted to take .*; would fit: .*control\.batch_size\.2d: \d+"
    with pytest.raises(ValueError, match=told):
        train_branch(folder, plan, tmp_path, batch_size=both(2**19))
    assert not (tmp_path / "control.pt").exists()
