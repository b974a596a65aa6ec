import math
from dataclasses import replace

import pytest
import torch
from monai.networks.nets import VQVAE

from models.networks.denoiser import count_parameters
from models.networks.discriminator import DISCRIMINATOR_SIZES, Discriminator, DiscriminatorSize
from models.networks.vqgan import VQGAN, VQGAN_SIZES, VQGANSize
from models.work import count_flops

PLANE = VQGANSize((8, 12), ((2, 2), (2, 2)), codes=16, code_channels=3)
VOLUME = VQGANSize((4, 6), ((2, 2, 2), (2, 2, 2)), codes=16, code_channels=3, residual_units=1)
SPACE_ONLY = replace(VOLUME, strides=((2, 2, 1), (2, 2, 1)))  # of (H, W, T)
MIXED = replace(VOLUME, strides=((2, 2, 2), (2, 2, 1)))


def network_of(size, seed=0, **options):
    torch.manual_seed(seed)
    return VQGAN(size, **options)


@pytest.mark.parametrize(
    ("size", "image", "latent"),
    [
        (PLANE, (12, 20), (3, 5)),
        (VOLUME, (8, 12, 4), (2, 3, 1)),
        (SPACE_ONLY, (8, 12, 5), (2, 3, 5)),
        (MIXED, (8, 12, 6), (2, 3, 3)),
    ],
)
def test_each_dimension_is_downsampled_as_told(size, image, latent):
    network = network_of(size).eval()
    x = torch.randn(2, 1, *image)
    assert network.encode(x).shape == network.latents_of(x).shape == (2, 3, *latent)
    assert network(x)[0].shape == x.shape
    assert network.downsampling == tuple(i // k for i, k in zip(image, latent, strict=True))


@pytest.mark.parametrize(
    ("name", "image", "latent"),
    [
        ("voldit", (512, 512, 256), (8, 64, 64, 32)),
        ("voldit", (192, 192, 192), (8, 24, 24, 24)),
        ("medlord", (512, 512, 256), (8, 128, 128, 64)),
        ("medlord-8x", (512, 512, 256), (8, 64, 64, 32)),
        ("cardiodit", (256, 256, 32), (8, 64, 64, 8)),
        ("cardiodit-8x", (224, 224, 32), (8, 28, 28, 8)),
    ],
)
def test_published_sizes_have_the_published_latents(name, image, latent):
    with torch.device("meta"):
        network = VQGAN(VQGAN_SIZES[name]).eval()
        assert network.latents_of(torch.empty(1, 1, *image)).shape == (1, *latent)


def test_it_is_monai_s_autoencoder():
    """As the released codes build it; given the same weights and codes, it gives the same images."""
    halving = {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}
    sizes = {"channels": (8, 12), "num_res_channels": (8, 12), "num_res_layers": 2}
    torch.manual_seed(0)
    theirs = VQVAE(2, 1, 1, **halving, **sizes, num_embeddings=16, embedding_dim=3).eval()
    ours = VQGAN(PLANE).eval()
    ours.encoder.load_state_dict(theirs.encoder.state_dict())
    ours.decoder.load_state_dict(theirs.decoder.state_dict())
    ours.quantiser.codebook.copy_(theirs.quantizer.quantizer.embedding.weight)
    x = torch.randn(2, 1, 16, 24)
    (reconstruction, loss), (their_reconstruction, their_loss) = ours(x), theirs(x)
    assert torch.allclose(reconstruction, their_reconstruction, atol=1e-6)
    assert torch.allclose(loss, their_loss)
    assert count_parameters(ours) == count_parameters(theirs)


@pytest.mark.parametrize("size", [PLANE, VOLUME, MIXED])
def test_inside_a_volume_a_crop_encodes_and_decodes_as_the_whole_does(size):
    network = network_of(size).eval()
    dims, factors = len(network.downsampling), network.downsampling
    whole = torch.randn(1, 1, *(28 * factor for factor in factors))
    crop = whole[(..., *(slice(4 * factor, 24 * factor) for factor in factors))]  # 20 latents a side
    of_crop, of_whole = (
        (..., *(slice(9, 11),) * dims),
        (..., *(slice(13, 15),) * dims),
    )  # 9 latents from the crop's edge
    for method in (network.encode, network.latents_of):
        assert torch.allclose(method(crop)[of_crop], method(whole)[of_whole], atol=1e-5)
    latents = network.latents_of(whole)
    image, part = network.decode(latents), network.decode(latents[(..., *(slice(4, 24),) * dims)])
    of_part, of_image = (
        (..., *(slice(start * factor, (start + 2) * factor) for factor in factors)) for start in (9, 13)
    )
    assert torch.allclose(part[of_part], image[of_image], atol=1e-5)


@pytest.mark.parametrize("image", [(10, 12), (12, 6), (12, 12, 12)])
def test_sides_that_do_not_divide_are_named(image):
    with pytest.raises(ValueError, match=r"an image of \(.*\) does not divide by .* downsampling \(4, 4\)"):
        network_of(PLANE).encode(torch.randn(1, 1, *image))


def test_a_gradient_passes_the_codebook_to_the_encoder():
    network = network_of(PLANE)
    reconstruction, _ = network(torch.randn(1, 1, 16, 16))
    reconstruction.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.encoder.parameters())


@pytest.mark.parametrize("size", [PLANE, MIXED])
def test_activations_that_are_computed_anew_give_the_same_gradients_and_codes(size):
    kept, anew = network_of(size), network_of(size, checkpointing=True)
    x = torch.randn(2, 1, *(8,) * len(kept.downsampling))
    for network in (kept, anew):
        reconstruction, loss = network(x)
        (reconstruction.square().mean() + loss).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(kept.parameters(), anew.parameters(), strict=True))
    assert torch.equal(kept.quantiser.codebook, anew.quantiser.codebook)
    assert anew.quantiser.updates == 1


def test_activations_that_are_computed_anew_are_not_kept():
    def kept_bytes(checkpointing):
        network, found = network_of(VOLUME, checkpointing=checkpointing), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.numel()) or t, lambda t: t):
            network(torch.randn(1, 1, 32, 32, 32))
        return sum(found)

    assert kept_bytes(True) < 0.6 * kept_bytes(False)


def test_generated_latents_are_quantised_before_they_are_decoded():
    network = network_of(PLANE).eval()
    latents = network.latents_of(torch.randn(1, 1, 16, 16))
    gaps = torch.pdist(network.quantiser.codebook).min()
    beside = latents + 0.4 * gaps / math.sqrt(3) * torch.rand_like(latents)
    assert torch.equal(network.images_of(beside), network.images_of(latents))
    assert not torch.equal(network.decode(beside), network.decode(latents))


def test_operations_of_a_volume_are_counted_without_one():
    network = network_of(VOLUME).eval()
    small, large = (count_flops(network, (1, 1, side, 8, 8)) for side in (8, 16))
    assert large == 2 * small > 0
    parts = [
        count_flops(network, (1, 1, 8, 8, 8), method="encode"),
        count_flops(network, (1, 3, 2, 2, 2), method="decode"),
    ]
    assert sum(parts) + 2 * 8 * 16 * 3 == small  # the rest are the distances of 8 latents to 16 codes of 3 channels


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strides": ((2, 2),)}, r"autoencoder\.strides: 1 levels, but autoencoder\.channels 2"),
        ({"strides": ((2, 2), (2, 2, 2))}, r"autoencoder\.strides: each level has"),
        ({"strides": ((2, 2), (2, 4))}, r"autoencoder\.strides: each level has"),
        ({"residual_channels": (8,)}, r"autoencoder\.residual_channels"),
        ({"codes": 0}, r"autoencoder\.codes"),
    ],
)
def test_levels_that_disagree_are_named(changes, told):
    with pytest.raises(ValueError, match=told):
        VQGAN(replace(PLANE, **changes))


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_crop_a_discriminator_takes_works_and_a_smaller_one_is_refused(layers, kernel):
    size = DiscriminatorSize(4, layers, kernel)
    allowed = []
    for side in range(2, 34):
        try:
            network = Discriminator(2, size, (side, 40))
        except ValueError as error:
            assert "autoencoder.discriminator.layers" in str(error)
            continue
        allowed.append(side)
        assert network(torch.randn(2, 1, side, 40)).shape[2] >= 1
    smallest = allowed[0]
    assert allowed == list(range(smallest, 34))
    with pytest.raises((RuntimeError, ValueError)):
        Discriminator(2, size, (smallest, smallest))(torch.randn(1, 1, smallest - 1, smallest - 1))


@pytest.mark.parametrize(("dims", "crop"), [(2, (64, 64)), (3, (32, 32, 24))])
def test_a_discriminator_judges_patches_of_limited_size(dims, crop):
    torch.manual_seed(0)
    network = Discriminator(dims, DiscriminatorSize(4, 2), crop)
    verdicts = network(torch.randn(1, 1, *crop))
    assert verdicts.shape[:2] == (1, 1)
    assert verdicts[0, 0].numel() > 2**dims


def test_the_published_discriminator_has_the_parameters_that_its_layers_say():
    """Weights k ** 3 in out: 1 to 64 to 128 to 256 to 512 to 1; biases in the first and the last layer."""
    for name, kernel in (("voldit", 4), ("medlord", 4), ("cardiodit", 3)):
        with torch.device("meta"):
            network = Discriminator(3, DISCRIMINATOR_SIZES[name], (128, 128, 32))
        pairs = [(1, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
        assert count_parameters(network) == kernel**3 * sum(a * b for a, b in pairs) + 64 + 1
