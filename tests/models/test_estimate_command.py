import argparse
import json

import pytest

from models.estimate_command import register

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
        (["--memory", "--family", "dit", "--size", "XXL", *STUDY[4:]], "--size: XXL is not one of nano"),
        (["--memory", *STUDY[:-1], "config/studies/gpu.yaml"], "gpu.yaml: no key 'patch'; give a whole config"),
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
