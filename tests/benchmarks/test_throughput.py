import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.diffusion.process import ForwardProcess
from models.diffusion.sampling import make_scheduler

ROOT = Path(__file__).parents[2]


def run(*options):
    """The benchmark as a user runs it."""
    command = [sys.executable, str(ROOT / "benchmarks/throughput.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def report():
    finished = run("--quick", "--json", "--threads", "1")  # two would wait for each other beside other tests
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture
def throughput(monkeypatch):
    """The script as a module, found as Python finds it when it is run: beside `timing`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import throughput

    return throughput


def test_every_phase_has_its_variants(report):
    compared = ["plain MONAI", "ours, float32", "ours"]
    variants = {"training": compared, "encoding": ["ours, once per image"], "sampling": compared}
    expected = [(dims, phase, name) for dims in (2, 3) for phase in variants for name in variants[phase]]
    assert [(row["spatial_dims"], row["phase"], row["variant"]) for row in report["rows"]] == expected
    assert report["threads"] == 1
    for row in report["rows"]:
        assert 0 < row["images_per_s_min"] <= row["images_per_s_median"]
        assert row["rounds"] == 2
        assert row["variant"] == "ours" or row["precision"] == "fp32"


def test_ratios_are_those_of_the_figures_beside_them(report):
    above = {"phase": None}
    for row in report["rows"]:
        median = row["images_per_s_median"]
        if row["variant"] == "plain MONAI":
            monai = median
        if row["phase"] == "encoding":
            assert row["ratio_to_monai"] is None
        else:
            assert row["ratio_to_monai"] == pytest.approx(median / monai)
        if row["phase"] == above["phase"]:
            assert row["ratio_to_row_above"] == pytest.approx(median / above["images_per_s_median"])
        else:
            assert row["ratio_to_row_above"] is None
        above = row


def test_the_table_shows_the_same_ratios(report, throughput):
    text = throughput.table(report)
    for row in report["rows"]:
        if row["ratio_to_monai"] is not None:
            assert f"{row['ratio_to_monai']:.2f} x" in text
    assert "mean nothing" in text  # nobody should quote a quick run


def test_both_sides_have_the_same_noise_levels(throughput):
    x, noise = torch.randn(2, 4, 4, 3, 3).unbind()
    t = torch.tensor([0, 10, 500, 999])
    scheduler = throughput.DDPMScheduler(**throughput.MONAI_DIFFUSION)
    theirs = scheduler.add_noise(x, noise, t)
    assert torch.allclose(ForwardProcess(throughput.DIFFUSION).add_noise(x, noise, t), theirs, atol=1e-5)


def test_both_sides_pass_the_network_equally_often(throughput):
    ours = make_scheduler("ddim", throughput.DIFFUSION)
    theirs = throughput.DDIMScheduler(**throughput.MONAI_DIFFUSION)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    assert len(ours.timesteps) == len(theirs.timesteps) == 10


def test_a_bad_option_is_one_line_and_status_2():
    finished = run("--threads", "0")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].endswith("argument --threads: 0 is below 1")
