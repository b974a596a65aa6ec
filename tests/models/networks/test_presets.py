import math

import pytest
import torch

from models.diffusion.process import ForwardProcess
from models.diffusion.samplers import SAMPLERS, samplers_for
from models.networks.control_adapter import ControlAdapter
from models.networks.controlnet import LightControlNet
from models.networks.denoiser import DepthFolded, build_control, build_preset, count_parameters
from models.networks.presets import CONTROLS, PRESETS, RECIPES, STAGE_ONES, SYSTEMS, preset_named
from models.networks.sizes import CARDIODIT_SIZES
from models.networks.vqgan import VQGAN_SIZES

TRANSFORMERS = [name for name, preset in PRESETS.items() if preset.family == "dit"]


def on_meta(name, latent_shape=None):
    with torch.device("meta"):
        return build_preset(name, latent_shape)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.published_parameters])
def test_parameters_are_the_published(name):
    """VolDiT's README counts them for 24^3 latents, with the fixed positions."""
    network = on_meta(name, (24, 24, 24))
    counted = count_parameters(network) + network.positions.numel()
    assert counted == pytest.approx(PRESETS[name].published_parameters, rel=0.01)


@pytest.mark.parametrize(("size", "million"), [("S", 87), ("B", 130), ("L", 172)])
def test_parameters_of_cardiodit_are_those_of_its_layers(size, million):
    """No count was published: it is summed up here from the layers that were, and is about what their names lead to."""
    depth, d, token = CARDIODIT_SIZES[size].depth, 768, 8 * 4 * 4 * 2
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + (6 * d * d + 6 * d)
    level = (256 * d + d) + (d * d + d)
    final = (2 * d * d + 2 * d) + (d * token + token)
    counted = count_parameters(on_meta(f"cardiodit-{size}"))
    assert counted == (token * d + d) + level + depth * block + final
    assert counted == pytest.approx(million * 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [(f"voldit-{size}/{patch}", {2: 16_384, 4: 2_048}[patch]) for size in ("XS", "S", "B", "L") for patch in (2, 4)]
    + [(f"cardiodit-{size}", 6_144) for size in "SBL"],
)
def test_tokens_are_the_published(name, tokens):
    network = on_meta(name)
    assert PRESETS[name].tokens == tokens == math.prod(network.grid) == len(network.positions)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_predicts_latents_of_its_published_shape(name):
    system = SYSTEMS[PRESETS[name].system]
    x = torch.empty(1, system.latent_channels, *system.latent, device="meta")
    with torch.no_grad():
        assert on_meta(name)(x, torch.empty(1, device="meta")).shape == x.shape


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_latent_is_what_stage_one_makes_of_the_image(name):
    system, size = SYSTEMS[name], VQGAN_SIZES[name]
    factors = [math.prod(strides[axis] for strides in size.strides) for axis in range(3)]
    if len(system.image) == 4:  # slice by slice
        factors = [1, *factors]
    assert tuple(side // factor for side, factor in zip(system.image, factors, strict=True)) == system.latent
    assert size.code_channels == system.latent_channels


def test_tables_know_the_same_systems():
    assert set(SYSTEMS) == set(RECIPES) == set(STAGE_ONES) == {preset.system for preset in PRESETS.values()}
    assert set(CONTROLS) <= set(SYSTEMS)
    assert set(STAGE_ONES) <= set(VQGAN_SIZES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_core_carries_out_a_recipe(name):
    recipe = RECIPES[name]
    assert recipe.sampler in samplers_for(recipe.prediction) and recipe.sampler in SAMPLERS
    process = ForwardProcess(recipe.settings())
    assert process.timesteps == 300
    times = torch.arange(301, dtype=torch.double) / 300
    kept = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2  # Nichol and Dhariwal 2021, equation 17
    betas = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
    expected = torch.cumprod(1 - betas, 0)
    assert torch.allclose(process.scheduler.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_dropout_is_the_published(name):
    assert {block.drop.p for block in on_meta(name).blocks} == {0.1 if name.startswith("voldit") else 0.0}


def test_the_merged_baseline_has_48_channels():
    network = on_meta("cardiodit-3d+t")
    assert network.unet.unet.conv_in.conv.in_channels == 48
    assert network.unet.unet.out[2].conv.out_channels == 48


class Told(torch.nn.Module):
    """In place of a U-Net: twice its input, and remembers what it was given."""

    def forward(self, x, t):
        self.x, self.t = x, t
        return 2 * x


@pytest.mark.parametrize(("depth", "shape"), [("samples", (6, 4, 5, 6, 7)), ("channels", (2, 12, 5, 6, 7))])
def test_folding_the_depth_is_undone(depth, shape):
    network = DepthFolded(Told(), depth)
    x, t = torch.randn(2, 4, 3, 5, 6, 7), torch.tensor([1, 2])
    assert torch.equal(network(x, t), 2 * x)
    assert network.unet.x.shape == shape
    if depth == "samples":
        assert network.unet.t.tolist() == [1, 1, 1, 2, 2, 2]
        assert torch.equal(network.unet.x[4], x[1, :, 1])


@pytest.mark.parametrize(("depth", "others"), [("samples", False), ("channels", True)])
def test_slices_know_of_each_other_only_where_they_are_channels(depth, others):
    x = torch.randn(1, 2, 3, 4, 4, 2, requires_grad=True)
    torch.manual_seed(0)
    inputs = 2 if depth == "samples" else 6
    network = DepthFolded(lambda x, t: torch.nn.functional.conv3d(x, torch.ones(inputs, inputs, 1, 1, 1)), depth)
    (gradient,) = torch.autograd.grad(network(x, torch.tensor([1]))[:, :, 0].sum(), x)
    assert bool(gradient[:, :, 1:].any()) == others
    assert gradient[:, :, 0].all()


def test_controls_are_built_by_name():
    with torch.device("meta"):
        adapter = build_control("voldit-S/4", build_preset("voldit-S/4"), 3, (512, 512, 256))
        controlnet = build_control("medlord", build_preset("medlord"), 6, (512, 512, 256))
    assert isinstance(adapter, ControlAdapter) and len(adapter.scales) == 12
    assert isinstance(controlnet, LightControlNet)


@pytest.mark.parametrize(
    ("name", "base", "message"),
    [
        ("cardiodit-B", "cardiodit-B", "follows no masks"),
        ("medlord", "voldit-S/4", "the trained network is no medlord"),
    ],
)
def test_a_control_that_does_not_go_with_the_network_is_refused(name, base, message):
    network = on_meta(base)
    with pytest.raises(ValueError, match=message):
        build_control(name, network, 1, SYSTEMS[PRESETS[base].system].image)


def test_an_unknown_preset_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="there is no voldit-S4; did you mean voldit-S/4"):
        preset_named("voldit-S4")


def test_latents_of_other_axes_are_refused():
    with pytest.raises(ValueError, match="cardiodit-B takes latents of 4 axes"):
        on_meta("cardiodit-B", (64, 64, 8))
