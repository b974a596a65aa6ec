import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.networks.denoiser import build_denoiser, count_parameters
from models.networks.dit import DiT, attention, patchify, sincos_positions, unpatchify
from models.networks.sizes import DIT_SIZES, SIZES, UNET_SIZES, DiTSize

SHAPES = [((4, 6), 2), ((4, 6, 8), 2), ((2, 4, 6, 2), 2), ((3, 9), 3)]
SMALL = DiTSize(depth=1, width=32, heads=4)
GRIDS = [((4, 4, 6), 2), ((4, 4, 4), 4), ((3, 4, 4, 4), (1, 4, 4, 2)), ((2, 4, 8, 2), (1, 4, 4, 2))]


def awake(network, seed=0):
    """With random weights everywhere: gates start at zero, which would hide what is behind them."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.05 if "weight" in name else 0.5)
    return network


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_patches_put_together_again_are_the_latent(shape, patch):
    x = torch.randn(2, 3, *shape)
    tokens = patchify(x, patch)
    assert tokens.shape[1] == x[0, 0].numel() // patch ** len(shape)
    assert torch.equal(unpatchify(tokens, patch, tuple(side // patch for side in shape)), x)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_patches_of_any_sides_are_put_together_again(data):
    dims = data.draw(st.integers(1, 5))
    grid, patch = (tuple(data.draw(st.integers(1, 3)) for _ in range(dims)) for _ in range(2))
    x = torch.randn(2, 3, *(side * part for side, part in zip(grid, patch, strict=True)))
    tokens = patchify(x, patch)
    assert tokens.shape == (2, math.prod(grid), 3 * math.prod(patch))
    assert torch.equal(unpatchify(tokens, patch, grid), x)


def test_a_token_of_a_volume_over_time_is_its_patch():
    x = torch.arange(2 * 4 * 4 * 4.0).view(1, 1, 2, 4, 4, 4)
    tokens = patchify(x, (1, 4, 4, 2))
    assert tokens.shape == (1, 2 * 1 * 1 * 2, 32)
    assert torch.equal(tokens[0, 1], x[0, 0, 0, :, :, 2:].flatten())  # time is the last axis, and the fastest
    assert torch.equal(tokens[0, 2], x[0, 0, 1, :, :, :2].flatten())


def test_a_token_is_a_patch():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(x, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize(("shape", "patch"), [((8, 8), 2), *GRIDS])
def test_every_token_reaches_every_output(shape, patch, kernel, checkpointing):
    """Each is changed in a sample of its own; each has the gradient of each output with respect to it."""
    network = awake(DiT(shape, 2, SMALL, patch, checkpointing=checkpointing)).double().eval()
    count, size = math.prod(network.grid), 2 * math.prod(network.latent_shape) // math.prod(network.grid)
    ones = torch.eye(count, dtype=torch.double)[:, :, None].expand(count, count, size)
    masks = unpatchify(ones, patch, network.grid)  # (T, C, *latent): the first is one in the first token, and so on
    x = torch.randn(1, 2, *shape, dtype=torch.double).repeat(count, *(1,) * (1 + len(shape))).requires_grad_()
    t = torch.full((count,), 7)
    with sdpa_kernel(kernel):
        output = network(x, t)
        changed = network(x + masks, t)
        (gradient,) = torch.autograd.grad((output * masks).sum(), x)
    assert (patchify((changed - output).abs(), patch).amax(2) > 1e-9).all()  # (T changed, T seen)
    assert (patchify(gradient.abs(), patch).amax(2) > 1e-9).all()  # (T seen, T changed)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_is_that_of_its_formula(kernel):
    """Vaswani et al. 2017, equation 1, head by head and token by token."""
    network = awake(DiT((2, 4, 4, 4), 2, DIT_SIZES["nano"], (1, 4, 4, 2))).double().eval()
    block, x = network.blocks[0], torch.randn(2, 4, 128, dtype=torch.double)
    q, k, v = (part.view(2, 4, 4, 32) for part in block.qkv(x).chunk(3, dim=2))  # (N, T, heads, d)
    expected = torch.zeros(2, 4, 4, 32, dtype=torch.double)
    for head in range(4):
        for token in range(4):
            scores = (q[:, token, head, None] * k[:, :, head]).sum(2) / math.sqrt(32)  # (N, T)
            expected[:, token, head] = (scores.softmax(1)[..., None] * v[:, :, head]).sum(1)
    with sdpa_kernel(kernel):
        assert torch.allclose(block.attend(x), block.out(expected.flatten(2)), atol=1e-12)


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        self.numbers = max(self.numbers, *sizes, 0)
        return made


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dropout", "largest"), [(0.0, 2048 * 4 * 32), (0.1, 2048 * 256 * 4)])
def test_no_tensor_holds_all_pairs_of_tokens(dropout, largest, checkpointing):
    """At most what the MLP makes, or what some queries attend to, forwards and backwards; and less is kept between."""
    network = awake(DiT((2048, 2), 1, SMALL, (1, 2), dropout, checkpointing)).train()
    held = []
    with Largest() as seen:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (held.append(x.numel()), x)[1], lambda x: x):
            loss = network(torch.randn(1, 1, 2048, 2), torch.tensor([7])).sum()
        loss.backward()
    assert seen.numbers <= largest < 2048 * 2048
    assert sum(held) < 2048 * 2048


def test_attention_in_portions_drops_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 300, 8)
    plain, dropped = attention(q, k, v), torch.stack([attention(q, k, v, 0.2) for _ in range(200)])
    assert dropped.std(0).min() > 0
    errors = (dropped.mean(0) - plain) / (dropped.std(0) / 200**0.5)  # in standard errors, (1, 2, 300, 8)
    assert float(errors.std()) == pytest.approx(1, abs=0.1) and float(errors.mean().abs()) < 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_changes_no_gradient_and_keeps_less(dropout):
    kept, gradients = [], []
    for checkpointing in (False, True):
        network = awake(DiT((4, 8, 8), 2, DIT_SIZES["nano"], 2, dropout, checkpointing)).train()
        x, held = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), []
        torch.manual_seed(2)  # of the dropout
        with torch.autograd.graph.saved_tensors_hooks(lambda x, held=held: (held.append(x.numel()), x)[1], lambda x: x):
            loss = network(x, torch.tensor([3, 200])).square().mean()
        loss.backward()
        kept.append(sum(held) - sum(parameter.numel() for parameter in network.parameters()))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert kept[1] < kept[0] / 5


def test_dropout_is_of_training_alone():
    network = awake(DiT((4, 4, 4), 2, DIT_SIZES["nano"], 2, dropout=0.5))
    x, t = torch.randn(1, 2, 4, 4, 4), torch.tensor([7])
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


def test_weights_of_a_transformer_without_dropout_load_into_one_with():
    plain, other = (DiT((4, 4), 2, DIT_SIZES["nano"], 2, dropout) for dropout in (0.0, 0.1))
    other.load_state_dict(plain.state_dict())


def test_it_starts_as_zero_and_learns_from_time():
    network = DiT((8, 8), 4, DIT_SIZES["nano"], 2)
    assert not network(torch.randn(2, 4, 8, 8), torch.tensor([1, 200])).any()
    torch.nn.init.normal_(network.project.weight)
    torch.nn.init.normal_(network.modulate[1].weight, std=0.1)
    x = torch.randn(1, 4, 8, 8)
    assert not torch.allclose(network(x, torch.tensor([1])), network(x, torch.tensor([200])))


def test_positions_tell_all_tokens_apart():
    positions = sincos_positions((4, 5, 6), 128)
    assert positions.shape == (120, 128)
    distances = torch.cdist(positions, positions) + 1e9 * torch.eye(120)
    assert distances.min() > 0.1


def test_positions_over_four_axes_give_each_a_quarter():
    positions = sincos_positions((2, 3, 2, 4), 768).view(2, 3, 2, 4, 768)
    for axis in range(4):
        quarter = positions[..., 192 * axis : 192 * (axis + 1)]
        along = quarter.movedim(axis, 0).flatten(1, 3)  # (side, others, 192)
        assert torch.equal(along, along[:, :1].expand_as(along))  # tells this axis, and no other
        assert (torch.pdist(along[:, 0]) > 0.1).all()
        place = torch.tensor([math.cos(1), math.sin(1)])  # of the fastest wave at 1
        assert torch.allclose(along[1, 0, [0, 96]], place)


@pytest.mark.parametrize(("size", "millions"), [("XS", 17.2), ("S", 33.2), ("B", 131.0), ("L", 580.0)])
def test_published_sizes_have_the_published_parameters(size, millions):
    """VolDiT's README counts the fixed positions of its 24^3 latents with 8 channels and patch 2."""
    with torch.device("meta"):
        network = build_denoiser({"family": "dit", "size": size}, (24, 24, 24), 8, patch=2)
    counted = (count_parameters(network) + network.positions.numel()) / 1e6
    assert counted == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("size", SIZES[2:])
def test_unet_sizes_are_about_those_of_the_transformer(size):
    with torch.device("meta"):
        unet, dit = (build_denoiser({"family": f, "size": size}, (24, 24, 24), 8, patch=2) for f in ("unet", "dit"))
    assert count_parameters(unet) == pytest.approx(count_parameters(dit), rel=0.2)


def test_both_families_know_the_same_sizes():
    assert tuple(UNET_SIZES) == tuple(DIT_SIZES)


@pytest.mark.parametrize("family", ["unet", "dit"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 8), (12, 8, 4)])
def test_a_prediction_has_the_shape_of_its_latent(family, shape):
    network = build_denoiser({"family": family, "size": "nano"}, shape, 4, patch=2)
    assert network(torch.randn(2, 4, *shape), torch.tensor([0, 299])).shape == (2, 4, *shape)


def test_a_patch_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"diffusion\.patch: 2 does not divide"):
        DiT((5, 4), 4, DIT_SIZES["nano"], 2)


@pytest.mark.parametrize("patch", [(2, 2, 2), (2,), (0, 2)])
def test_a_patch_of_other_axes_or_no_side_is_named(patch):
    with pytest.raises(ValueError, match=r"^diffusion\.patch: .*side"):
        DiT((4, 4), 4, DIT_SIZES["nano"], patch)


def test_a_latent_of_another_shape_is_refused():
    network = DiT((4, 8), 4, DIT_SIZES["nano"], 2)
    with pytest.raises(ValueError, match=r"latent: has shape \(8, 4\), and this transformer is for \(4, 8\)"):
        network(torch.randn(1, 4, 8, 4), torch.tensor([1]))
