import re
import time
from datetime import datetime

import pytest
import torch
from torch import nn

from models import checkpoint
from models.loop import Training, batch_indices, generator_of, make_accelerator, random_order, rate, train

TARGET = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


class KilledError(Exception):
    """Stands for a job that ends in the middle of a step."""


def run(path, images=160, die_after=None, identity="same", on_batch=lambda: None, **settings):
    """Fit a line to noisy data, or die after some batches; gives the training and the images that each batch saw."""
    torch.manual_seed(0)
    network, batches = nn.Linear(3, 1), []

    def loss(network, batch, noise):
        if die_after is not None and len(batches) == die_after:
            raise KilledError
        batches.append(batch.tolist())
        on_batch()
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
    assert resumed.images_seen == whole.images_seen == 160
    for ours, theirs in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def killed(path, die_after, **settings):
    """The checkpoint that a killed attempt leaves."""
    with pytest.raises(KilledError):
        run(path, die_after=die_after, **settings)
    return checkpoint.load(path)


def test_a_chain_of_attempts_tells_the_checkpoints_that_it_went_through(tmp_path):
    whole, all_batches = run(tmp_path / "whole.pt")
    first = killed(tmp_path / "c.pt", 3)
    lost = killed(tmp_path / "c.pt", 2, checkpoint_every_s=60)  # writes nothing: not in the lineage
    second = killed(tmp_path / "c.pt", 4)
    last, batches = run(tmp_path / "c.pt")
    assert (whole.resumed_from, first["resumed_from"]) == ([], [])
    assert lost["saved_at"] == first["saved_at"] < second["saved_at"]
    assert second["resumed_from"] == [first["saved_at"]]
    assert last.resumed_from == [first["saved_at"], second["saved_at"]]
    assert checkpoint.load(tmp_path / "c.pt")["resumed_from"] == last.resumed_from
    assert (last.images_resumed, last.images_seen) == (8 * 7, 160)
    assert batches == all_batches[7:]


def test_a_checkpoint_tells_when_its_images_had_been_seen(tmp_path, monkeypatch):
    passed, saves, save = [], [], checkpoint.save

    def slow_batch():
        time.sleep(0.02)
        passed.append(time.time())

    def slow_save(state, path):
        saves.append((state["images_seen"], state["saved_at"], time.time()))
        time.sleep(0.02)
        save(state, path)

    monkeypatch.setattr(checkpoint, "save", slow_save)
    run(tmp_path / "c.pt", images=24, on_batch=slow_batch)
    assert [seen for seen, _, _ in saves] == [8, 16, 24]
    for batch, (_, saved_at, write) in zip(passed, saves, strict=True):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", saved_at)
        assert batch - 0.001 <= datetime.fromisoformat(saved_at).timestamp() <= write  # cut to a millisecond


def test_a_checkpoint_without_times_resumes(tmp_path):
    old = killed(tmp_path / "c.pt", 3)
    del old["saved_at"], old["resumed_from"]
    checkpoint.save(old, tmp_path / "c.pt")
    newer = killed(tmp_path / "c.pt", 2)
    assert (newer["images_seen"], newer["resumed_from"]) == (8 * 5, [])
    assert run(tmp_path / "c.pt")[0].resumed_from == [newer["saved_at"]]


@pytest.mark.parametrize("reason", ["other settings", "unreadable"])
def test_a_training_that_starts_afresh_has_no_lineage(tmp_path, reason):
    killed(tmp_path / "c.pt", 3)
    assert killed(tmp_path / "c.pt", 3)["resumed_from"] != []
    if reason == "unreadable":
        (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:500])
    result, batches = run(tmp_path / "c.pt", identity="other" if reason == "other settings" else "same")
    assert (result.images_resumed, result.images_seen, len(batches)) == (0, 160, 20)
    assert result.resumed_from == checkpoint.load(tmp_path / "c.pt")["resumed_from"] == []


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
