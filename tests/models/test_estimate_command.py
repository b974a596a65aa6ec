import argparse
import json
from pathlib import Path

import pytest
import torch
import yaml

from models.autoencode import of_plan
from models.estimate import of_study
from models.estimate_command import register
from models.estimate_stages import Settings
from models.memory import Machine
from models.networks.denoiser import build_preset, count_parameters

CONFIG = "config/config.yaml"
STUDY = ["--family", "unet", "--size", "nano", "--shape", "32x32x32", "--config", CONFIG]


def run(*arguments):
    parser = argparse.ArgumentParser(prog="footprint")
    register(parser.add_subparsers(required=True))
    given = parser.parse_args(["estimate", *arguments])
    return given.run(given)


def rows(capsys, *arguments):
    assert run("--memory", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_have_parts_that_add_up(capsys):
    found = rows(capsys, *STUDY, "--device", "cpu", "--precision", "fp32")
    assert [row["stage"] for row in found] == ["autoencoder", "diffusion", "generation"]
    for row in found:
        parts = sum(value for key, value in row.items() if key.endswith("_gb") and key != "total_gb")
        assert row["total_gb"] == pytest.approx(parts)
    assert "fits" not in found[0]


def test_what_does_not_fit_is_told_with_what_would(capsys):
    """CardioDiT-S on six slices of 64 x 64 x 16: with checkpointing its activations all but vanish."""
    stage = ["--preset", "cardiodit-S", "--shape", "6x64x64x16", "--stage", "diffusion", "--batch", "16"]
    (row,) = rows(capsys, *stage)
    (lean,) = rows(capsys, *stage, "--checkpointing")
    assert lean["total_gb"] < row["total_gb"]
    limit = str((lean["total_gb"] + row["total_gb"]) / 2)
    assert run("--memory", *stage, "--limit-gb", limit) == 0
    assert "does not fit" in (text := capsys.readouterr().out)
    assert f"would fit: activation checkpointing ({lean['total_gb']:.1f} GB)" in text
    (row,) = rows(capsys, *stage, "--limit-gb", "0.7")
    assert not row["fits"]
    assert row["would_fit"] is None
    assert row["least_gb"] <= lean["total_gb"]


def test_a_generation_that_does_not_fit_is_decoded_in_slabs(capsys):
    stage = ["--preset", "medlord", "--shape", "192x192x96", "--stage", "generation"]
    (whole,) = rows(capsys, *stage, "--limit-gb", "1.8")
    assert not whole["fits"]
    assert whole["would_fit"]["change"].startswith("slabs of")
    assert whole["would_fit"]["total_gb"] < 1.8 < whole["total_gb"]


def test_latents_on_the_device_count(capsys):
    stage = [*STUDY, "--stage", "diffusion"]
    (none,), (many,) = rows(capsys, *stage), rows(capsys, *stage, "--items", "1000")
    assert many["data_gb"] - none["data_gb"] == pytest.approx(1000 * 4 * 8**3 * 4 / 1e9)


def test_a_published_size_and_sides_that_do_not_divide_are_those_of_a_study(capsys):
    """36 x 30 x 30 is padded to 36 x 32 x 32, its latent of 9 x 8 x 8 to 10 x 8 x 8 for patches of 2."""
    study = ["--family", "dit", "--size", "voldit-S/2", "--shape", "36x30x30", "--config", CONFIG]
    (row,) = rows(capsys, *study, "--stage", "diffusion", "--items", "1000")
    network = build_preset("voldit-S/2", (10, 8, 8), 4)
    positions = sum(buffer.numel() for buffer in network.buffers())
    assert row["parameters_gb"] == pytest.approx((count_parameters(network) + positions) * 4 / 1e9)
    assert row["data_gb"] == pytest.approx(1000 * 4 * 10 * 8 * 8 * 4 / 1e9)


def test_stacks_over_time_are_decoded_whole_or_slice_by_slice():
    """Of six slices, whole decoding holds what six times as many numbers take."""
    config = yaml.safe_load(Path(CONFIG).read_text())
    config["images"] |= {"source": "phantom", "frames": 8, "slices": 6}
    config["diffusion"]["patch"] = [1, 2, 2, 2]
    generation = [
        of_study(config, "dit", "nano", (slices, 64, 64, 8)).stages["generation"].memory(Settings(Machine()))
        for slices in (6, 12)
    ]
    assert [memory.moment for memory in generation] == ["decoding", "decoding"]
    six, twelve = (memory.activations_gb + memory.workspace_gb for memory in generation)
    assert twelve == pytest.approx(2 * six, rel=0.01)
    stages = of_study(config, "unet-slices", "nano", (6, 64, 64, 8)).stages
    assert stages["autoencoder"].crop == (16, 16, 8)
    assert stages["autoencoder"].slices == stages["generation"].slices == 6
    autoencoder = of_plan({"spatial_dims": 3, "frames": 8}, config["autoencoder"])
    with torch.inference_mode():
        latents = autoencoder.latents_of(torch.zeros(1, 1, 6, 64, 64, 8))
    assert stages["diffusion"].latent == latents.shape[1:]


def test_encoding_whole_images_counts_for_autoencoders_of_studies(capsys):
    """Crops of 16 are what is trained on: from some size of the volume on, that is no longer what takes most."""
    stage = ["--family", "unet", "--size", "nano", "--config", CONFIG, "--stage", "autoencoder"]
    (small,), (large,) = (rows(capsys, *stage, "--shape", shape) for shape in ("16x16x16", "96x96x96"))
    assert small["moment"] == "forward and backward pass"
    assert large["moment"] in ("encoding whole images", "errors of whole images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to estimate: --memory"),
        (["--memory"], "give either --preset, or --family"),
        (["--memory", "--preset", "medlor"], "there is no medlor; did you mean medlord"),
        (
            ["--memory", "--preset", "medlord", "--shape", "510x512x256"],
            "510x512x256 does not divide by the downsampling",
        ),
        (["--memory", "--preset", "medlord", "--shape", "512x512"], "512x512 has 2 axes, the generator has 3"),
        (["--memory", *STUDY[:2]], "--family needs --size too"),
        (["--memory", "--family", "vit", *STUDY[2:]], "--family: vit is not one of unet, unet-slices, dit"),
        (
            ["--memory", *STUDY[:4], "--shape", "6x32x32x8", *STUDY[6:]],
            "6x32x32x8 has 4 axes, the study's images have 2 or 3 axes",
        ),
        (["--memory", "--family", "dit", "--size", "XXL", *STUDY[4:]], "matrix.size: XXL is not one of nano"),
        (["--memory", *STUDY[:-1], "config/studies/gpu.yaml"], "gpu.yaml: no key 'images'; give a whole config"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        run(*arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", [["--limit-gb", "0"], ["--batch", "0"], ["--shape", "axb"], ["--slab-gb", "much"]])
def test_numbers_that_are_none_are_refused(option, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("--memory", *option)
    assert exit_.value.code == 2
    assert option[0] in capsys.readouterr().err
