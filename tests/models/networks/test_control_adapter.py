import math

import pytest
import torch
import torch.nn.functional as F

from models.networks.control import drop_labels, label_channels
from models.networks.control_adapter import ControlAdapter
from models.networks.dit import DiT
from models.networks.sizes import DiTSize
from tests.models.networks.test_dit import awake

SMALL = DiTSize(depth=2, width=32, heads=4)
LATENT, IMAGE, LABELS = (4, 4, 4), (16, 16, 16), 2
EARLY, LATE = torch.tensor([5]), torch.tensor([290])


def adapter(labels=LABELS, dropout=0.0, checkpointing=False):
    """A new adapter beside a transformer that does something."""
    torch.manual_seed(0)
    return ControlAdapter(awake(DiT(LATENT, 2, SMALL, 2, dropout, checkpointing)), labels, IMAGE)


def steering(**options):
    """An adapter whose control is no longer zero; its gate is still what it starts as."""
    network = adapter(**options)
    torch.nn.init.normal_(network.project.weight, std=0.1)
    return network


def example(n=1):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, *LATENT, generator=generator)
    return x, (torch.rand(n, LABELS, *IMAGE, generator=generator) > 0.5).float()


def effect(network, t):
    """How far the mask moves the prediction."""
    x, mask = (part.to(network.scales.dtype) for part in example())
    with torch.no_grad():
        return float((network(x, t, mask) - network.base(x, t)).norm())


def test_a_new_adapter_changes_nothing():
    network, (x, mask) = adapter(), example()
    assert torch.equal(network(x, EARLY, mask), network.base(x, EARLY))


def test_a_new_gate_is_a_half_and_every_scale_a_tenth():
    assert torch.allclose(adapter().strength(torch.tensor([0, 150, 299])), torch.full((3, SMALL.depth), 0.05))


def test_the_gate_is_the_published_one():
    network = steering()
    torch.nn.init.normal_(network.gate.weight)
    torch.nn.init.constant_(network.gate.bias, 0.3)
    with torch.no_grad():
        network.scales.copy_(torch.tensor([0.1, 0.7]))
        embedded = network.base.embed_level(EARLY)[0]  # (D,)
        gate = 1 / (1 + math.exp(-float(network.gate.weight[0] @ embedded) - 0.3))
    assert network.strength(EARLY)[0].tolist() == pytest.approx([0.1 * gate, 0.7 * gate])


def test_the_gate_has_a_gradient():
    network, (x, mask) = steering(), example()
    network(x, EARLY, mask).square().sum().backward()
    assert network.gate.weight.grad.abs().max() > 1e-4
    assert network.gate.bias.grad.abs().max() > 1e-4
    assert (network.scales.grad.abs() > 1e-4).all()


@pytest.mark.parametrize("factor", [0.5, 2.0, 10.0])
def test_the_strength_is_what_it_says(factor):
    """Half the scale is half the effect, and so for a closed gate: a norm behind them would cancel both."""
    network = steering().double()
    with torch.no_grad():
        network.scales.fill_(1e-3)  # where the effect is linear
    before = effect(network, EARLY)
    with torch.no_grad():
        network.scales.mul_(factor)
    assert effect(network, EARLY) / before == pytest.approx(factor, rel=0.02)


def test_the_gate_changes_the_strength_with_time():
    network = steering()
    with torch.no_grad():
        early, late = (network.base.embed_level(t)[0] for t in (EARLY, LATE))
        network.gate.weight[0] = 20 * (early - late) / (early - late).square().sum()
        network.gate.bias[0] = -(network.gate.weight[0] @ (early + late) / 2)
    assert effect(network, LATE) < 0.01 * effect(steering(), LATE)  # whose gate is a half at all times
    assert effect(network, EARLY) > 1.5 * effect(steering(), EARLY)


def test_training_learns_where_in_time_to_listen():
    """The mask tells of the target early and misleads late: the gate opens early and closes late."""
    torch.manual_seed(3)
    network = steering().train()
    optimiser = torch.optim.Adam([network.gate.weight, network.gate.bias], lr=0.1)
    x, mask = example()
    with torch.no_grad():
        network.scales.fill_(1.0)
        control = network.encode(mask)
        wanted = torch.cat([network.base(x, LATE), network(x, EARLY, mask)])  # none of it late, half a gate early
    times = torch.cat([LATE, EARLY])
    before = network.strength(times)[:, 0].tolist()
    for _ in range(15):
        optimiser.zero_grad()
        F.mse_loss(network.predict(x.expand(2, -1, -1, -1, -1), times, control.expand(2, -1, -1)), wanted).backward()
        optimiser.step()
    late, early = network.strength(times)[:, 0].tolist()
    assert before == pytest.approx([0.5, 0.5])
    assert late < 0.3 and early > late + 0.1


def train(network, steps):
    """Teach that where the mask is, the target is one."""
    optimiser = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=1e-2)
    network.train()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(2, 2, *LATENT, generator=generator)
        coarse = (torch.rand(2, LABELS, 2, 2, 2, generator=generator) > 0.5).float()
        mask, target = F.interpolate(coarse, size=IMAGE), F.interpolate(coarse, size=LATENT)
        optimiser.zero_grad()
        F.mse_loss(network(x, torch.full((2,), 100), mask), target).backward()
        optimiser.step()
    return network


def test_a_few_steps_from_zero_give_the_control_an_effect():
    assert effect(adapter(), EARLY) == 0
    assert effect(train(adapter(), 5), EARLY) > 0.1


def test_every_part_of_the_adapter_learns():
    network = adapter()
    before = {name: value.clone() for name, value in network.named_parameters()}
    train(network, 5)
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("base."), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_base_is_frozen(checkpointing):
    network, (x, mask) = steering(dropout=0.5, checkpointing=checkpointing).train(), example()
    network(x, EARLY, mask).sum().backward()
    assert all(parameter.grad is None for parameter in network.base.parameters())
    assert all(parameter.grad is not None for name, parameter in network.named_parameters() if "base." not in name)
    assert not network.base.training
    assert torch.equal(network.base(x, EARLY), network.base(x, EARLY))  # its dropout is off


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        network, (x, mask) = steering(checkpointing=checkpointing), example()
        network(x, EARLY, mask).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_a_mask_steers_the_place_where_it_is():
    """A control token stands where its part of the mask is: the order of axes is that of the latent's tokens."""
    torch.manual_seed(0)
    network = ControlAdapter(DiT((4, 6, 8), 2, SMALL, 2), 1, (32, 48, 64))
    torch.nn.init.normal_(network.project.weight)
    mask = F.interpolate((torch.rand(1, 1, 4, 6, 8) > 0.5).float(), scale_factor=8)
    changed = mask.clone()
    changed[:, :, :16, 32:, 16:32] = 1 - changed[:, :, :16, 32:, 16:32]  # token (0, 2, 1) of the grid of 2 x 3 x 4
    moved = (network.encode(changed) - network.encode(mask)).norm(dim=2)[0]  # (T,)
    assert moved.argmax() == 0 * 12 + 2 * 4 + 1


def test_features_are_of_the_mask_and_not_of_what_every_mask_has():
    network = adapter()
    features = example(8)[1]
    for level in network.levels:
        features = level(features)
    features = F.layer_norm(features.movedim(1, -1), (features.shape[1],)).flatten(0, -2)  # (places, c)
    assert features.std(0).mean() > 0.5


def test_encoding_once_is_as_good_as_at_every_step():
    network, (x, mask) = steering(), example()
    control = network.encode(mask)
    assert torch.equal(network.predict(x, LATE, control), network(x, LATE, mask))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 16, 16), "mask: has 3 labels, and this model was trained on 2"),
        ((1, 2, 16, 16, 8), r"mask: has size \(16, 16, 8\); this model was trained on \(16, 16, 16\)"),
        ((2, 16, 16, 16), "mask: has 4 axes"),
    ],
)
def test_masks_of_another_model_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        adapter()(torch.randn(1, 2, *LATENT), EARLY, torch.zeros(shape))


@pytest.mark.parametrize(("image", "message"), [((16, 16), "2 axes"), ((16, 16, 15), "no multiple of the tokens")])
def test_images_that_do_not_go_with_the_base_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        ControlAdapter(DiT(LATENT, 2, SMALL, 2), LABELS, image)


def test_volumes_over_time_have_no_adapter():
    with pytest.raises(ValueError, match="cannot steer a transformer of 4"):
        ControlAdapter(DiT((2, 4, 4, 2), 2, SMALL, (1, 4, 4, 2)), 1, (2, 16, 16, 8))


def test_slices_have_one():
    network = ControlAdapter(awake(DiT((4, 6), 2, SMALL, 2)), 3, (16, 24))
    assert network(torch.randn(2, 2, 4, 6), torch.tensor([1, 2]), torch.ones(2, 3, 16, 24)).shape == (2, 2, 4, 6)


@pytest.mark.parametrize(("patch", "levels"), [(2, 5), (4, 5)])
def test_the_published_encoder_halves_four_times(patch, levels):
    with torch.device("meta"):
        base = DiT((64, 64, 32), 8, SMALL, patch)
        network = ControlAdapter(base, 1, (512, 512, 256))
        control = network.encode(torch.empty(1, 1, 512, 512, 256))
    assert len(network.levels) == levels
    assert control.shape == (1, 64 * 64 * 32 // patch**3, 32)


def test_labels_become_channels():
    label_map = torch.tensor([[[[0, 1], [2, 2]]]])  # (1, 1, 2, 2)
    assert label_channels(label_map, 2).tolist() == [[[[0, 1], [0, 0]], [[0, 0], [1, 1]]]]


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (-1, "-1"), (0.5, "0.5")])
def test_a_label_that_the_model_does_not_know_is_named(value, shown):
    with pytest.raises(ValueError, match=f"mask: has label {shown}, and this model was trained on 0 to 2"):
        label_channels(torch.tensor([0.0, 1.0, value]).view(1, 1, 3), 2)


def test_conditions_are_dropped_as_often_as_asked():
    generator = torch.Generator().manual_seed(0)
    kept = drop_labels(torch.ones(20_000, 4, 1), generator, whole=0.1, each=0.1)[..., 0]  # (N, 4)
    empty = (kept.sum(1) == 0).float().mean()
    assert float(empty) == pytest.approx(0.1 + 0.9 * 0.1**4, abs=0.01)
    assert float(kept[kept.sum(1) > 0].mean()) == pytest.approx(0.9, abs=0.01)
    assert set(kept.unique().tolist()) == {0.0, 1.0}


def test_dropping_is_repeatable_and_never_changes_what_is_kept():
    mask = torch.rand(8, 3, 2, 2)
    first, second = (drop_labels(mask, torch.Generator().manual_seed(4), 0.3, 0.3) for _ in range(2))
    assert torch.equal(first, second)
    assert ((first == mask) | (first == 0)).all()
    assert torch.equal(drop_labels(mask, torch.Generator(), 0, 0), mask)
