import pytest
import torch

from models.networks.denoiser import build_denoiser, count_parameters
from models.networks.dit import DiT, patchify, sincos_positions, unpatchify
from models.networks.sizes import DIT_SIZES, SIZES, UNET_SIZES

SHAPES = [((4, 6), 2), ((4, 6, 8), 2), ((2, 4, 6, 2), 2), ((3, 9), 3)]


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_patches_put_together_again_are_the_latent(shape, patch):
    x = torch.randn(2, 3, *shape)
    tokens = patchify(x, patch)
    assert tokens.shape[1] == x[0, 0].numel() // patch ** len(shape)
    assert torch.equal(unpatchify(tokens, patch, tuple(side // patch for side in shape)), x)


def test_a_token_is_a_patch():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(x, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize("shape", [(8, 8), (4, 4, 6)])
def test_every_token_attends_to_every_token(shape):
    torch.manual_seed(0)
    network = DiT(shape, 2, DIT_SIZES["nano"], 2).eval()
    for name, parameter in network.named_parameters():  # gates start at zero, which would hide attention
        torch.nn.init.normal_(parameter, std=0.05 if "weight" in name else 0.5)
    x, t = torch.randn(1, 2, *shape), torch.tensor([7])
    changed = x.clone()
    changed[(0, 0, *(0,) * len(shape))] += 1
    difference = patchify((network(x, t) - network(changed, t)).abs(), 2).amax(2)  # (1, T)
    assert (difference > 1e-7).all()


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
