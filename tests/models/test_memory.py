import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.memory import (
    RUNTIME_GB,
    Machine,
    denoising_loss,
    generation_memory,
    reconstruction_loss,
    streaming_plan,
    training_memory,
)
from models.networks.denoiser import build_denoiser
from models.networks.dit import DiT
from models.networks.sizes import DIT_SIZES
from models.recompute import recompute_blocks
from tests.models.test_streaming import variational

GB = 1e9
CPU, GPU = Machine("cpu", "fp32"), Machine("cuda", "fp32")


class Square(nn.Module):
    """One layer of a square matrix, so that everything can be told by hand."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return self.linear(x)


def test_peaks_are_those_of_resident_memory():
    """Within 15 % or 25 MB, of which the interpreter's own growth is the most. glibc is told to give memory back."""
    given = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.models.peaks"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert len(peaks) == 6
    for name, (measured, predicted) in peaks.items():
        assert predicted == pytest.approx(measured, rel=0.15, abs=25e6), name
    assert peaks["train a U-Net, checkpointed"][0] < 0.8 * peaks["train a U-Net"][0]


def test_parts_of_a_training_step_by_hand():
    """Weights w, moments 2 w, average w; before the update the gradient w, and on a CPU two roots of w."""
    w = 4 * 1000**2 / GB

    def loss(network):
        return network(torch.ones(1, 1000)).sum()

    memory = training_memory(partial(Square, 1000), loss, CPU, data_gb=0.25)
    assert memory.moment == "optimiser step"
    assert memory.parameters_gb == memory.averaged_gb == memory.gradients_gb == pytest.approx(w)
    assert memory.optimizer_gb == memory.workspace_gb == pytest.approx(2 * w)
    assert memory.total_gb == pytest.approx(7 * w + 0.25 + RUNTIME_GB["cpu"])
    on_gpu = training_memory(partial(Square, 1000), loss, GPU, averaged=False)
    assert on_gpu.total_gb == pytest.approx(5 * w + RUNTIME_GB["cuda"])


def test_activations_of_a_chain_by_hand():
    """Each GELU keeps its input: n of them and what the last gives; the backward pass has two gradients besides."""
    layers, numbers = 10, 10**6

    def loss(network):
        x = torch.ones(numbers)
        for _ in range(layers):
            x = F.gelu(x * network.linear.weight[0, 0])
        return x.sum()

    memory = training_memory(partial(Square, 2), loss, CPU)
    held = memory.activations_gb * GB / 4 / numbers
    assert 2 * layers + 1 <= held <= 2 * layers + 4  # x, and x times the weight, of each


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_is_without_a_matrix_of_tokens(dropout):
    """4096 tokens, four heads: one matrix is 268 MB, and each of the four blocks would keep some."""
    size = DIT_SIZES["nano"]
    shape = (1, 2, 16, 16, 16)
    build = partial(DiT, shape[2:], 2, size, 1, dropout)
    activations_gb = training_memory(build, denoising_loss(shape), CPU).activations_gb
    assert activations_gb < 1.2 * 4 * size.heads * 4096**2 / GB


def test_activations_grow_with_the_batch_and_shrink_with_precision_and_checkpointing():
    def activations(batch, precision="fp32", checkpointing=False):
        def build():
            network = build_denoiser({"family": "unet", "size": "nano"}, (16,) * 3, 4, 2)
            return recompute_blocks(network) if checkpointing else network

        machine = Machine("cpu", precision)
        return training_memory(build, denoising_loss((batch, 4, 16, 16, 16)), machine).activations_gb

    one = activations(2)
    assert activations(4) == pytest.approx(2 * one, rel=0.05)
    assert activations(2, "bf16") < 0.7 * one
    assert activations(2, checkpointing=True) < 0.6 * one


@pytest.mark.parametrize(
    "build", [variational, lambda: build_denoiser({"family": "unet", "size": "nano"}, (8,) * 3, 4, 2)]
)
def test_checkpointed_blocks_compute_the_same_under_the_same_names(build):
    torch.manual_seed(0)
    network = build()
    x = torch.randn(1, 1 if hasattr(network, "decoder") else 4, 8, 8, 8)
    times = () if hasattr(network, "decoder") else (torch.tensor([3]),)

    def gradients():
        network.zero_grad()
        torch.manual_seed(1)
        output = network(x, *times)
        (output[0] if isinstance(output, tuple) else output).square().sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    names, expected = list(network.state_dict()), gradients()
    recompute_blocks(network)
    assert list(network.state_dict()) == names
    for name, gradient in gradients().items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name
    with pytest.raises(ValueError, match="Square has no blocks of MONAI's"):
        recompute_blocks(Square(2))


def test_slabs_bound_the_memory_of_decoding():
    def peak(depth, working_gb, machine=GPU):
        decoder = partial(decoder_only, (8, 8))
        shape = (1, 4, depth, 24, 24)
        return generation_memory(partial(denoiser_of, 4), shape, decoder, shape, machine, working_gb)

    whole, streamed = peak(64, None), peak(64, 0.02)
    assert whole.moment == "decoding"
    assert streamed.moment == "decoding in slabs"
    assert streamed.total_gb - RUNTIME_GB["cuda"] < (whole.total_gb - RUNTIME_GB["cuda"]) / 2
    assert peak(128, 0.02).activations_gb == pytest.approx(streamed.activations_gb, rel=0.2)
    plan = streaming_plan(partial(decoder_only, (8, 8)), (1, 4, 64, 24, 24), 0.02)
    on_cpu = peak(64, 0.02, CPU)
    assert on_cpu.kept_gb == plan.kept_gb
    assert on_cpu.total_gb == pytest.approx(streamed.total_gb + plan.kept_gb + plan.output_gb)


def decoder_only(channels):
    from models.streaming import decoder_of

    return decoder_of(variational(channels))


def denoiser_of(channels):
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolve = nn.Conv3d(channels, channels, 1)

        def forward(self, x, t):
            return self.convolve(x)

    return Still()


def test_an_autoencoder_has_the_memory_of_its_crop():
    def activations(side):
        build = partial(variational, (8, 8))
        return training_memory(build, reconstruction_loss((1, 1, side, side, side)), CPU).activations_gb

    assert activations(32) == pytest.approx(8 * activations(16), rel=0.05)
