import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses import JukeboxLoss

from models.audit.features import load_feature_network
from models.losses import CRITERIA, FEATURE_LAYERS, PerceptualLoss, slices_across, spectral_loss, warm_up


@pytest.fixture(scope="module")
def feature_network():
    return load_feature_network()


def blobs(*shape, seed=0):
    """Smooth images (N, 1, *shape) in about [-1, 1]."""
    coarse = torch.randn(2, 1, *(max(2, side // 8) for side in shape), generator=stream(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return F.interpolate(coarse, shape, mode=mode).clamp(-1, 1)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def test_images_are_no_distance_from_themselves_and_more_the_more_they_differ(feature_network):
    perceptual, x = PerceptualLoss(network=feature_network), blobs(64, 64)
    noise = torch.randn(x.shape, generator=stream(1))
    distances = [float(perceptual(x + share * noise, x, stream())) for share in (0, 0.02, 0.1, 0.3)]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def test_the_distance_is_that_of_the_audit_s_features_layer_by_layer(feature_network):
    """Zhang et al. 2018, equation 1, position by position, from the audit's own network and input."""
    x, y = blobs(48, 32), blobs(48, 32, seed=1)
    expected = 0.0
    for layer in FEATURE_LAYERS:
        features = [
            feature_network[: layer + 1]((127.5 * (z + 1) - 127).div(128).expand(-1, 3, -1, -1)) for z in (x, y)
        ]
        n, _, h, w = features[0].shape
        units = [
            [f[i, :, j, k] / f[i, :, j, k].norm() for i in range(n) for j in range(h) for k in range(w)]
            for f in features
        ]
        expected += sum(float((a - b).square().sum()) for a, b in zip(*units, strict=True)) / (n * h * w)
    assert float(PerceptualLoss(network=feature_network)(x, y, stream())) == pytest.approx(expected, rel=1e-4)


def test_layers_are_the_last_ones_of_each_resolution(feature_network):
    x, sides = torch.zeros(1, 3, 64, 64), []
    for layer in list(feature_network.children())[:-2]:
        x = layer(x)
        sides.append(x.shape[-1])
    assert [sides[layer] for layer in FEATURE_LAYERS] == [32, 16, 8, 4]
    assert [sides[layer + 1] for layer in FEATURE_LAYERS] == [16, 8, 4, 2]


def test_a_gradient_reaches_every_pixel_and_no_weight(feature_network):
    perceptual, x, y = PerceptualLoss(network=feature_network), blobs(32, 32).requires_grad_(), blobs(32, 32, seed=1)
    perceptual(x, y, stream()).backward()
    assert (x.grad != 0).all()
    assert all(weight.grad is None for weight in feature_network.parameters())


def test_following_the_gradient_restores_an_image(feature_network):
    perceptual, y = PerceptualLoss(network=feature_network), blobs(32, 32)
    noise = 0.3 * torch.randn(y.shape, generator=stream(1))
    x = (y + noise).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.02)
    for _ in range(25):
        optimizer.zero_grad()
        perceptual(x, y, stream()).backward()
        optimizer.step()
    assert (x - y).abs().mean() < 0.8 * noise.abs().mean()


def test_frames_of_slices_over_time_are_compared_as_images_are(feature_network):
    x, y = blobs(32, 40, 6), blobs(32, 40, 6, seed=1)
    frames = PerceptualLoss(slices=6, axes=(2,), network=feature_network)(x, y, stream())
    each = [PerceptualLoss(network=feature_network)(x[..., t], y[..., t], stream()) for t in range(6)]
    assert float(frames) == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)


def test_volumes_are_compared_in_slices_across_all_axes(feature_network):
    x = blobs(32, 32, 32)
    for axis in range(3):
        y = x.clone().requires_grad_()
        PerceptualLoss(slices=3, axes=(axis,), network=feature_network)(y, x + 0.1, stream()).backward()
        touched = y.grad[0, 0].abs().amax(dim=[a for a in range(3) if a != axis])
        assert int((touched > 0).sum()) == 3
    y = x.clone().requires_grad_()
    PerceptualLoss(slices=3, network=feature_network)(y, x + 0.1, stream()).backward()
    touched = (y.grad[0, 0] != 0).sum()
    assert 2 * 3 * 32 * 32 < touched <= 9 * 32 * 32


def test_slices_are_drawn_anew_and_the_same_of_both(feature_network):
    perceptual, x, y = PerceptualLoss(slices=2, network=feature_network), blobs(32, 32, 32), blobs(32, 32, 32, seed=1)
    assert float(perceptual(x, x.clone(), stream(1))) == 0
    first, again, other = (float(perceptual(x, y, stream(seed))) for seed in (1, 1, 2))
    assert first == again != other


def test_a_slice_across_an_axis_is_that_of_each_volume():
    volume = torch.arange(2 * 3 * 4 * 5.0).view(2, 1, 3, 4, 5)
    slices = slices_across(volume, 1, torch.tensor([3, 0]))
    assert slices.shape == (4, 1, 3, 5)
    assert torch.equal(slices[0, 0], volume[0, 0, :, 3])
    assert torch.equal(slices[3, 0], volume[1, 0, :, 0])


def test_a_perceptual_loss_is_no_part_of_a_network(feature_network):
    module = torch.nn.Module()
    module.perceptual = PerceptualLoss(network=feature_network)
    assert not list(module.parameters())
    assert not module.state_dict()


def test_hinge_losses_have_their_closed_form():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(CRITERIA["hinge"].discriminator(real, fake)) == pytest.approx(0.5 * ((0 + 0.5 + 2) + (0 + 1 + 2)) / 3)
    assert float(CRITERIA["hinge"].generator(fake)) == pytest.approx(2 / 3)


def test_least_squares_losses_have_their_closed_form():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    expected = 0.5 * ((1 + 0.25 + 4) / 3 + (9 + 0 + 1) / 3)
    assert float(CRITERIA["least_squares"].discriminator(real, fake)) == pytest.approx(expected)
    assert float(CRITERIA["least_squares"].generator(fake)) == pytest.approx((16 + 1 + 0) / 3)


@pytest.mark.parametrize("name", list(CRITERIA))
def test_a_discriminator_parts_real_from_fake_and_a_generator_raises_fake(name):
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    CRITERIA[name].discriminator(real, fake + 0.1).backward()
    assert (real.grad < 0).all()  # descending raises it
    assert (fake.grad > 0).all()
    fake.grad = None
    CRITERIA[name].generator(fake).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize(("seen", "images", "share"), [(0, 10, 0), (5, 10, 0.5), (10, 10, 1), (99, 10, 1), (0, 0, 1)])
def test_the_adversarial_weight_rises_linearly(seen, images, share):
    assert warm_up(seen, images) == share


@pytest.mark.parametrize("shape", [(16, 12), (8, 6, 10)])
def test_the_spectral_loss_is_monai_s(shape):
    x, y = torch.randn(2, 1, *shape), torch.randn(2, 1, *shape)
    assert torch.allclose(spectral_loss(x, y), JukeboxLoss(len(shape))(x, y))


def test_the_spectral_loss_sees_amplitudes_and_not_where_things_are():
    x = torch.randn(1, 1, 16, 16)
    assert float(spectral_loss(x, x.roll((3, 5), (2, 3)))) < 1e-10
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)  # two frequencies of amplitude 8
    assert float(spectral_loss(wave, torch.zeros(1, 1, 16, 16))) == pytest.approx(2 * 8**2 / 256, rel=1e-5)


def test_missing_frequencies_leave_the_gradient_finite():
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    spectral_loss(x, torch.randn(1, 1, 8, 8)).backward()
    assert torch.isfinite(x.grad).all()
