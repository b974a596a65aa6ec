import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import checkpoint
from models.adversarial import TERMS, Adversarial, Objective
from models.control import Control, StoppedError
from models.loop import Training, make_accelerator, train
from models.losses import CRITERIA, PerceptualLoss
from models.networks.discriminator import Discriminator, DiscriminatorSize
from models.networks.vqgan import VQGAN, VQGANSize

SIZE = VQGANSize((16, 32), ((2, 2), (2, 2)), codes=32, code_channels=4, residual_units=1, decay=0.9)
PERCEPTUAL = PerceptualLoss()
ALL_LOSSES = Objective(
    perceptual_weight=0.1,
    spectral_weight=0.1,
    adversarial_weight=0.05,
    warmup_images=64,
    discriminator_rate=0.5,
    betas=(0.5, 0.9),
)


class KilledError(Exception):
    """Stands for a job that ends in the middle of a step."""


def blobs(count):
    """Smooth random images (count, 1, 32, 32) in [-1, 1]."""
    coarse = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (32, 32), mode="bicubic", align_corners=True).clamp(-1, 1)


IMAGES = blobs(20)


def pair(objective=ALL_LOSSES, seed=0):
    """A small VQ-GAN of 2D images and its discriminator."""
    torch.manual_seed(seed)
    return Adversarial(VQGAN(SIZE), Discriminator(2, DiscriminatorSize(8, 2), (16, 16)), objective, PERCEPTUAL)


def run(path, network=None, images=48, die_after=None, control=None, on_batch=lambda: None, **settings):
    """Train on random crops, or die after some batches; gives the training and the number of its batches."""
    network, batches = network or pair(), []

    def loss(network, batch, noise):
        if len(batches) == die_after:
            raise KilledError
        batches.append(batch.tolist())
        on_batch()
        corner = [int(torch.randint(17, (), generator=noise)) for _ in range(2)]
        return network(IMAGES[batch][..., corner[0] : corner[0] + 16, corner[1] : corner[1] + 16], noise)

    options = {"learning_rate": 2e-3, "ema_decay": 0.9, "precision": "fp32", "checkpoint_every_s": 0, **settings}
    length = Training(images=images, batch_size=8, **options)
    return train(network, loss, 20, length, make_accelerator("fp32"), path, "same", "vqgan", control), len(batches)


def same(ours, theirs):
    """Whether two networks are equal bit by bit, codebook and counts included."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path, ema_decay):
    whole, _ = run(tmp_path / "whole.pt", ema_decay=ema_decay)
    with pytest.raises(KilledError):
        run(tmp_path / "c.pt", die_after=2, ema_decay=ema_decay)
    with pytest.raises(KilledError):
        run(tmp_path / "c.pt", die_after=3, network=pair(seed=5), ema_decay=ema_decay)
    resumed, batches = run(tmp_path / "c.pt", network=pair(seed=6), ema_decay=ema_decay)
    assert (resumed.images_resumed, batches, len(resumed.resumed_from)) == (40, 1, 2)
    assert same(resumed.network, whole.network)
    states = [checkpoint.load(tmp_path / name) for name in ("whole.pt", "c.pt")]
    for part in ("network", "averaged"):
        assert all(torch.equal(states[0][part][name], states[1][part][name]) for name in states[0][part])


def test_a_stopped_training_resumes_to_the_same_end(tmp_path):
    told = tmp_path / "control.json"
    whole, _ = run(tmp_path / "whole.pt")

    def stop():
        told.write_text(json.dumps({"state": "stop", "reason": "dirty hour"}))

    with pytest.raises(StoppedError, match="dirty hour"):
        run(tmp_path / "c.pt", control=Control(told), on_batch=stop, checkpoint_every_s=1e9)
    told.unlink()
    resumed, batches = run(tmp_path / "c.pt", control=Control(told))
    assert batches == 5
    assert same(resumed.network, whole.network)


def test_it_learns_to_reconstruct_with_many_codes(tmp_path):
    before = F.l1_loss(pair().autoencoder(IMAGES)[0], IMAGES)
    network = pair()
    trained, _ = run(tmp_path / "c.pt", network=network, images=8 * 120, ema_decay=0.0, checkpoint_every_s=1e9)
    autoencoder = trained.network.autoencoder
    with torch.inference_mode():
        after = F.l1_loss(autoencoder(IMAGES)[0], IMAGES)
        codes = autoencoder.quantise(autoencoder.encode(IMAGES)).codes
    assert after < 0.5 * before
    assert len(codes.unique()) > 12
    assert autoencoder.quantiser.perplexity() > 8
    terms = trained.network.terms()
    assert terms["l1"] == pytest.approx(float(after), rel=1)
    assert all(terms[name] > 0 for name in TERMS)


def test_neither_loss_reaches_the_other_s_weights():
    """Gradients of the sum are those of each loss alone, for the weights that it trains."""
    network, x, noise = pair(), IMAGES[:4], torch.Generator()
    for _ in range(2):  # past the start, where the adversarial weight is zero
        network(x, noise)
    alone = copy.deepcopy(network)
    network(x, noise.manual_seed(1)).backward()

    reconstruction, commitment = alone.autoencoder(x)
    criterion, share = CRITERIA["least_squares"], 8 / 64
    generator_loss = F.l1_loss(reconstruction, x) + commitment
    generator_loss = generator_loss + 0.1 * PERCEPTUAL(reconstruction, x, noise.manual_seed(1))
    amplitudes = [torch.fft.fft2(image, norm="ortho").abs() for image in (reconstruction, x)]
    generator_loss = generator_loss + 0.1 * F.mse_loss(*amplitudes)
    generator_loss = generator_loss + 0.05 * share * criterion.generator(alone.discriminator(reconstruction))
    expected = torch.autograd.grad(generator_loss, list(alone.autoencoder.parameters()), retain_graph=True)
    for parameter, gradient in zip(network.autoencoder.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)

    verdicts = alone.discriminator(x), alone.discriminator(reconstruction.detach())
    expected = torch.autograd.grad(criterion.discriminator(*verdicts), list(alone.discriminator.parameters()))
    for parameter, gradient in zip(network.discriminator.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_a_batch_is_the_usual_two_steps_with_two_optimisers(tmp_path):
    """Autoencoder first, then the discriminator on the same reconstruction, each clipped, at its own rate."""
    steps, rate, x = 3, 2e-3, IMAGES[:8]
    objective = Objective(adversarial_weight=0.5, discriminator_rate=0.25, betas=(0.5, 0.9), criterion="hinge")
    ours, theirs = pair(objective), pair(objective)

    length = Training(images=8 * steps, batch_size=8, learning_rate=rate, precision="fp32")
    train(
        ours, lambda network, _, noise: network(x, noise), 8, length, make_accelerator("fp32"), tmp_path / "c", "", ""
    )

    networks = (theirs.autoencoder, theirs.discriminator)
    optimizers = [torch.optim.AdamW(n.parameters(), rate, betas=(0.5, 0.9), weight_decay=0) for n in networks]
    for step in range(steps):
        falling = 0.1 + 0.9 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item()) / 2
        reconstruction, commitment = theirs.autoencoder(x)
        generator_loss = F.l1_loss(reconstruction, x) + commitment
        generator_loss = generator_loss - 0.5 * theirs.discriminator(reconstruction).mean()
        for index, share in ((0, 1.0), (1, 0.25)):
            if index == 1:
                verdicts = theirs.discriminator(x), theirs.discriminator(reconstruction.detach())
                generator_loss = 0.5 * (F.relu(1 - verdicts[0]).mean() + F.relu(1 + verdicts[1]).mean())
            optimizers[index].zero_grad()
            optimizers[index].param_groups[0]["lr"] = rate * share * falling
            generator_loss.backward()
            nn.utils.clip_grad_norm_(networks[index].parameters(), 1.0)
            optimizers[index].step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    start = pair(objective)
    for part in ("autoencoder", "discriminator"):
        before, after = (next(getattr(network, part).parameters()) for network in (start, ours))
        assert not torch.allclose(before, after, atol=1e-4)


def test_averaged_weights_come_with_the_codebook_of_the_last_batch(tmp_path):
    network = pair()
    trained, _ = run(tmp_path / "c.pt", network=network)
    assert torch.equal(trained.network.autoencoder.quantiser.codebook, network.autoencoder.quantiser.codebook)
    weights = [next(n.autoencoder.encoder.parameters()) for n in (trained.network, network)]
    assert not torch.equal(*weights)


def test_the_adversarial_loss_starts_with_no_weight_and_images_are_counted(tmp_path):
    objective = Objective(adversarial_weight=1.0, warmup_images=16)
    network, noise = pair(objective), torch.Generator()
    weights = []
    for seen in (0, 8, 16, 24):
        assert int(network.seen) == seen
        before = copy.deepcopy(network)
        total = network(IMAGES[:8], noise)
        terms = dict(zip(TERMS, single_terms(before), strict=True))
        rest = terms["l1"] + terms["regularisation"] + terms["discriminator"]
        weights.append(float(total.detach() - rest) / terms["adversarial"])
    assert weights == pytest.approx([0, 0.5, 1, 1], abs=1e-3)
    network.eval()(IMAGES[:8], noise)
    assert int(network.seen) == 32


def single_terms(network):
    """The losses of the first eight images, for a network as it stands."""
    network.seen.zero_()
    network(IMAGES[:8], torch.Generator())
    return network.means.tolist()


def test_without_an_adversarial_weight_there_is_no_discriminator(tmp_path):
    network = pair(Objective(spectral_weight=0.1))
    trained, _ = run(tmp_path / "c.pt", network=network, images=16)
    assert trained.network.discriminator is None
    assert not any("discriminator" in name for name in checkpoint.load(tmp_path / "c.pt")["network"])
    assert trained.network.terms()["adversarial"] == trained.network.terms()["perceptual"] == 0


def test_the_perceptual_network_is_in_no_checkpoint(tmp_path):
    run(tmp_path / "c.pt", images=8)
    state = checkpoint.load(tmp_path / "c.pt")
    assert {name.split(".")[0] for name in state["network"]} == {"autoencoder", "discriminator", "seen", "means"}


@pytest.mark.parametrize(
    ("strides", "shape", "axes"), [((2, 2, 2), (16, 16, 16), None), ((2, 2, 1), (16, 16, 5), (2,))]
)
def test_volumes_and_slices_over_time_are_trained_as_images_are(strides, shape, axes):
    torch.manual_seed(0)
    autoencoder = VQGAN(VQGANSize((4, 6), (strides,) * 2, codes=8, code_channels=3, residual_units=1))
    discriminator = Discriminator(3, DiscriminatorSize(4, 1, kernel=3), shape)
    network = Adversarial(autoencoder, discriminator, ALL_LOSSES, PerceptualLoss(slices=2, axes=axes))
    network(torch.rand(2, 1, *shape) * 2 - 1, torch.Generator()).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in gradients)
    assert all(value > 0 for value in network.terms().values())


def test_what_is_missing_or_unknown_is_named():
    with pytest.raises(ValueError, match=r"autoencoder\.criterion: wasserstein is not one of least_squares, hinge"):
        pair(Objective(criterion="wasserstein"))
    with pytest.raises(ValueError, match=r"autoencoder\.perceptual_weight"):
        Adversarial(nn.Identity(), nn.Identity(), Objective(perceptual_weight=1.0))
