import pytest
import torch
import torch.nn.functional as F

from models.networks.controlnet import LightControlNet, skips
from models.networks.denoiser import count_parameters
from models.networks.sizes import MEDLORD_SIZE, UNET_SIZES, UNetSize
from models.networks.unet import UNet

SMALL = UNetSize((32, 64), (False, True), 1, 32)
LATENT, IMAGE, LABELS = (4, 4, 8), (16, 16, 32), 2
T = torch.tensor([7])


def controlled(size=SMALL, **options):
    """A new ControlNet beside a U-Net that does something; MONAI's starts as zero."""
    torch.manual_seed(0)
    base = UNet(3, 2, size)
    torch.nn.init.normal_(base.unet.out[2].conv.weight, std=0.1)
    return LightControlNet(base, size, LABELS, IMAGE, **options)


def example():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 2, *LATENT, generator=generator)
    return x, (torch.rand(1, LABELS, *IMAGE, generator=generator) > 0.5).float()


def test_a_new_branch_is_the_identity():
    network, (x, mask) = controlled(), example()
    expected = network.base(x, T)
    assert expected.abs().max() > 0.1
    assert torch.equal(network(x, T, mask), expected)


def test_half_the_channels_of_the_published_unet():
    with torch.device("meta"):
        base = UNet(3, 8, MEDLORD_SIZE)
        network = LightControlNet(base, MEDLORD_SIZE, 6, (512, 512, 256))
        x, mask = torch.empty(1, 8, 128, 128, 64), torch.empty(1, 6, 512, 512, 256)
        control = network.encode(mask)
        added, middle = network.branch(x, torch.empty(1), control)
        assert network.predict(x, torch.empty(1), control).shape == x.shape
    assert network.branch.conv_in.conv.out_channels == 32
    assert [block.resnets[-1].out_channels for block in network.branch.down_blocks] == [32, 64, 128, 256]
    assert network.branch.middle_block.resnet_1.out_channels == 256
    assert [part.shape[1] for part in added] == [64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512]
    assert middle.shape == (1, 512, 16, 16, 8)
    assert control.shape == (1, 32, 128, 128, 64)
    assert network.embedding.conv_in.conv.stride == (2, 2, 2)
    assert [block.conv.out_channels for block in network.embedding.blocks] == [32, 64]


def test_half_the_channels_are_a_quarter_of_the_encoder():
    with torch.device("meta"):
        networks = [
            LightControlNet(UNet(3, 8, MEDLORD_SIZE), MEDLORD_SIZE, 6, (512, 512, 256), ratio=ratio)
            for ratio in (0.5, 1.0)
        ]
    half, whole = (count_parameters(network.branch.down_blocks) for network in networks)
    assert half == pytest.approx(whole / 4, rel=0.02)
    assert all(count_parameters(network.base) == 0 for network in networks)  # none that trains


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("size", UNET_SIZES)
def test_every_size_of_unet_has_a_branch(size, ratio):
    with torch.device("meta"):
        base = UNet(2, 4, UNET_SIZES[size])
        network = LightControlNet(base, UNET_SIZES[size], 3, (64, 64), ratio)
        assert network(torch.empty(2, 4, 16, 16), torch.empty(2), torch.empty(2, 3, 64, 64)).shape == (2, 4, 16, 16)


def test_skips_are_those_that_the_unet_makes():
    network, (x, mask) = controlled(), example()
    made, _ = network.branch(x, T.float(), network.encode(mask))
    assert [part.shape[1] for part in made] == skips(SMALL.channels, SMALL.blocks)


def train(network, steps):
    """Teach that where the mask is, the target is one."""
    optimiser = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=1e-2)
    network.train()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        coarse = (torch.rand(2, LABELS, 2, 2, 4, generator=generator) > 0.5).float()
        mask, target = F.interpolate(coarse, size=IMAGE), F.interpolate(coarse, size=LATENT)
        x = torch.randn(2, 2, *LATENT, generator=generator)
        optimiser.zero_grad()
        F.mse_loss(network(x, torch.tensor([7, 7]), mask), target).backward()
        optimiser.step()
    return network


def test_a_few_steps_from_zero_give_the_mask_an_effect():
    network, (x, mask) = train(controlled(), 6), example()
    with torch.no_grad():
        assert (network(x, T, mask) - network.base(x, T)).abs().max() > 0.01
        assert (network(x, T, mask) - network(x, T, 1 - mask)).abs().max() > 0.001


def test_the_branch_learns_and_the_base_stays():
    network = controlled()
    before = {name: value.clone() for name, value in network.named_parameters()}
    train(network, 4)
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("base."), name
    assert all(parameter.grad is None for parameter in network.base.parameters())


def test_attention_of_the_unet_reaches_every_place():
    """MONAI's attention at the level marked: every voxel of it sees every other."""
    network = controlled().base.unet.down_blocks[1].attentions[0].double()
    x = torch.randn(1, 64, 2, 2, 4, dtype=torch.double, requires_grad=True)
    for place in range(16):
        (gradient,) = torch.autograd.grad(network(x).flatten(2)[0, :, place].square().sum(), x)
        assert (gradient.flatten(2).abs().amax(1) > 1e-9).all()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 16, 16, 32), "mask: has 1 labels, and this model was trained on 2"),
        ((1, 2, 32, 16, 16), r"mask: has size \(32, 16, 16\); this model was trained on \(16, 16, 32\)"),
        ((2, 16, 16, 32), "mask: has 4 axes"),
    ],
)
def test_masks_of_another_model_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        controlled()(example()[0], T, torch.zeros(shape))


def test_an_embedding_that_does_not_lead_to_the_latent_is_refused():
    x, mask = example()
    with pytest.raises(ValueError, match=r"takes masks to \(8, 8, 16\), and the latent is \(4, 4, 8\)"):
        controlled(initial_stride=1)(x, T, mask)
    with pytest.raises(ValueError, match="no multiple of the embedding's 4"):
        LightControlNet(UNet(3, 2, SMALL), SMALL, LABELS, (16, 18, 32))
