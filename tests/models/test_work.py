import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.networks.dit import Block
from models.work import TRAINING_PASSES, count_flops


def test_a_matrix_product_counts_two_per_weight_and_row():
    assert count_flops(nn.Linear(30, 50), (7, 30)) == 2 * 7 * 30 * 50


def test_a_training_step_costs_three_forward_passes():
    """Of a network whose first layer is a small part: its inputs need no gradient."""
    network = nn.Sequential(nn.Linear(4, 256), nn.Linear(256, 256), nn.Linear(256, 256))
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(8, 4)).sum().backward()
    counted = TRAINING_PASSES * count_flops(network, (8, 4))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_attention_is_counted():
    """Projections 4 N T D^2, scores and sums 2 N T^2 D, twice; PyTorch's counter gives 0 on CPUs."""

    class Attention(Block):
        forward = Block.attend

    n, t, d = 2, 64, 32
    counted = count_flops(Attention(d, heads=4), (n, t, d))
    assert counted == 2 * (4 * n * t * d**2 + 2 * n * t**2 * d)


def test_counting_leaves_the_network_as_it_is():
    network = nn.Conv3d(1, 2, 3)
    weights = network.weight.clone()
    count_flops(network, (1, 1, 5, 5, 5))
    assert torch.equal(network.weight, weights)
    assert network.weight.grad is None
