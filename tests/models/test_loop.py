import pytest
import torch
from torch import nn

from models import checkpoint
from models.loop import Training, batch_indices, generator_of, make_accelerator, random_order, rate, train

TARGET = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


class KilledError(Exception):
    """Stands for a job that ends in the middle of a step."""


def run(path, images=160, die_after=None, identity="same", **settings):
    """Fit a line to noisy data, or die after some batches; gives the training and the images that each batch saw."""
    torch.manual_seed(0)
    network, batches = nn.Linear(3, 1), []

    def loss(network, batch, noise):
        if die_after is not None and len(batches) == die_after:
            raise KilledError
        batches.append(batch.tolist())
        x = TARGET[batch] + 0.1 * torch.randn(len(batch), 3, generator=noise)
        return (network(x) - TARGET[batch].sum(1, keepdim=True)).square().mean()

    options = {"learning_rate": 0.05, "ema_decay": 0.9, "precision": "fp32", "checkpoint_every_s": 0, **settings}
    length = Training(images=images, batch_size=8, **options)
    return train(network, loss, 20, length, make_accelerator("fp32"), path, identity, "line"), batches


def test_it_learns(tmp_path):
    result, _ = run(tmp_path / "c.pt", images=8000)
    assert torch.allclose(result.network.weight, torch.ones(1, 3), atol=0.05)
    assert result.images_seen == 8000


@pytest.mark.parametrize("killed_after", [1, 7, 19])
def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path, killed_after):
    whole, all_batches = run(tmp_path / "whole.pt")
    with pytest.raises(KilledError):
        run(tmp_path / "c.pt", die_after=killed_after)
    resumed, batches = run(tmp_path / "c.pt")
    assert resumed.images_resumed == 8 * killed_after
    assert batches == all_batches[killed_after:]  # no image is seen twice
    assert resumed.images_seen == whole.images_seen
    for ours, theirs in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_other_settings_start_afresh(tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path / "c.pt", die_after=3)
    assert run(tmp_path / "c.pt", identity="other")[0].images_resumed == 0


def test_every_item_is_seen_once_an_epoch():
    seen = torch.cat([batch_indices(20, 8, 3, start) for start in range(0, 40, 8)])
    assert sorted(seen[:20].tolist()) == sorted(seen[20:].tolist()) == list(range(20))
    assert not torch.equal(random_order(20, 3, 0), random_order(20, 3, 1))


def test_streams_of_random_numbers_differ():
    draws = {float(torch.rand((), generator=generator_of(a, b))) for a in range(10) for b in range(10)}
    assert len(draws) == 100


def test_the_learning_rate_rises_and_falls():
    settings = Training(images=1000, batch_size=10, learning_rate=1.0, warmup_images=100)
    rates = [rate(seen, settings) for seen in range(0, 1000, 10)]
    assert max(rates) == rates[10] == 1
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_averaged_weights_follow_slowly(tmp_path):
    fast, _ = run(tmp_path / "a.pt", ema_decay=0.0)
    slow, _ = run(tmp_path / "b.pt", ema_decay=0.999)
    assert not torch.allclose(fast.network.weight, slow.network.weight)


def test_a_loss_that_is_not_a_number_is_told_and_not_kept(tmp_path):
    with pytest.raises(ValueError, match=r"line: the loss is (nan|inf) after .* lower its learning_rate"):
        run(tmp_path / "c.pt", learning_rate=1e30)
    kept = checkpoint.load(tmp_path / "c.pt")
    assert all(torch.isfinite(values).all() for values in kept["network"].values())
