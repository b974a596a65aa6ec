import copy

import pytest
import torch
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from models.networks import quantiser as module
from models.networks.quantiser import Quantiser, nearest, perplexity


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = operation(*args, **(kwargs or {}))
        if isinstance(given, torch.Tensor):
            self.numbers = max(self.numbers, given.numel())
        return given


def test_the_nearest_code_is_that_of_all_distances(monkeypatch):
    monkeypatch.setattr(module, "DISTANCES_AT_ONCE", 40 * 7)  # chunks of 7 rows, the last one of 2
    vectors, codebook = seeded(100, 5), seeded(40, 5, seed=1)
    brute = [min(range(40), key=lambda k: float((vector - codebook[k]).double().norm())) for vector in vectors]
    assert nearest(vectors, codebook).tolist() == brute


def test_memory_does_not_grow_with_latents_times_codes(monkeypatch):
    monkeypatch.setattr(module, "DISTANCES_AT_ONCE", 4096)
    quantiser = Quantiser(64, 4)
    with Largest() as largest:
        quantiser(seeded(1, 4, 50, 50, 2))  # 5000 latents: 320,000 distances
    assert largest.numbers == 5000 * 4


@pytest.mark.parametrize("shape", [(7,), (3, 4), (3, 4, 2), (2, 3, 2, 2)])
def test_latents_of_any_dimensions_become_codes(shape):
    quantiser = Quantiser(10, 3).eval()
    latents = seeded(2, 3, *shape)
    quantised = quantiser(latents)
    assert quantised.codes.shape == (2, *shape)
    assert torch.equal(quantised.latents, quantiser.embed(quantised.codes))
    position = (1, *(side - 1 for side in shape))
    distances = (quantiser.codebook - latents.movedim(1, -1)[position]).norm(dim=1)
    assert quantised.codes[position] == distances.argmin()
    assert torch.equal(quantiser(quantised.latents).latents, quantised.latents)


def test_gradients_pass_straight_through_and_none_reaches_the_codebook():
    quantiser = Quantiser(10, 3)
    latents, weights = seeded(2, 3, 4, 4).requires_grad_(), seeded(2, 3, 4, 4, seed=1)
    quantised = quantiser(latents)
    (weights * quantised.latents).sum().backward()
    assert torch.equal(latents.grad, weights)
    assert list(quantiser.parameters()) == []


def test_the_commitment_pulls_latents_to_their_codes():
    quantiser = Quantiser(10, 3, commitment=0.4).eval()
    latents = seeded(2, 3, 4, 4).requires_grad_()
    quantised = quantiser(latents)
    quantised.loss.backward()
    away = latents.detach() - quantiser.embed(quantised.codes)
    assert torch.allclose(quantised.loss, 0.4 * away.square().mean())
    assert torch.allclose(latents.grad, 0.4 * 2 * away / away.numel())


def test_codes_are_the_moving_averages_of_their_latents():
    """Van den Oord et al. 2017, appendix A.1, latent by latent."""
    quantiser = Quantiser(6, 2, decay=0.8, restart_below=0)
    quantiser(seeded(1, 2, 30))
    counts, sums = quantiser.counts.tolist(), quantiser.sums.tolist()
    for seed in (1, 2, 3):
        batch = seeded(1, 2, 30, seed=seed)
        codes = nearest(batch[0].T, quantiser.codebook).tolist()
        quantiser(batch)
        for k in range(6):
            mine = [batch[0, :, i].tolist() for i in range(30) if codes[i] == k]
            counts[k] = 0.8 * counts[k] + 0.2 * len(mine)
            sums[k] = [0.8 * s + 0.2 * sum(z[c] for z in mine) for c, s in enumerate(sums[k])]
            assert quantiser.codebook[k].tolist() == pytest.approx([s / counts[k] for s in sums[k]], abs=1e-5)


def test_codes_start_at_latents_of_the_first_batch():
    quantiser, batch = Quantiser(16, 3), 5 + seeded(1, 3, 40)
    quantiser.eval()(batch)
    assert not quantiser.updates
    quantiser.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantiser, "update", lambda *_: None)
        quantiser(batch)
    found = (quantiser.codebook[:, None] == batch[0].T[None]).all(2)  # (K, V)
    assert found.any(1).all()
    assert len(quantiser.codebook.unique(dim=0)) == 16
    assert quantiser.counts.tolist() == [40 / 16] * 16


def test_more_codes_than_latents_are_all_different():
    quantiser, batch = Quantiser(50, 3), seeded(1, 3, 8)
    quantiser.start(batch[0].T)
    assert len(quantiser.codebook.unique(dim=0)) == 50
    assert torch.cdist(quantiser.codebook, batch[0].T).min(1).values.max() < 0.2


def test_a_code_that_is_not_used_starts_anew_at_a_latent_and_the_others_stay():
    kept, restarted = (Quantiser(4, 2, decay=0.5, restart_below=share) for share in (0, 0.1))
    corners = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    batch = (corners.repeat_interleave(20, 0) + 0.1 * seeded(60, 2)).T[None]  # (1, 2, 60)
    for quantiser in (kept, restarted):
        quantiser(batch)
        quantiser.codebook.copy_(torch.cat([corners, torch.tensor([[500.0, 500.0]])]))
        quantiser.counts.fill_(15.0)
        quantiser.sums.copy_(15 * quantiser.codebook)
        for _ in range(6):  # 15 / 2 ** 4 is below a tenth of 15
            quantiser(batch)
    assert kept.codebook[3].tolist() == pytest.approx([500, 500], rel=1e-5)
    assert torch.cdist(restarted.codebook[3:], batch[0].T).min() < 0.5
    assert torch.allclose(restarted.codebook[:3], corners, atol=0.5)


def test_a_code_that_nobody_uses_for_long_stays_finite():
    quantiser = Quantiser(8, 2, decay=0.1, restart_below=0)
    for seed in range(60):
        quantiser(torch.full((1, 2, 5), 3.0) + 0.01 * seeded(1, 2, 5, seed=seed))
    assert torch.isfinite(quantiser.codebook).all()
    assert quantiser.codebook.abs().max() < 4


def test_restarts_keep_more_codes_in_use():
    def use(restart_below):
        quantiser = Quantiser(32, 2, decay=0.9, restart_below=restart_below)
        for seed in range(80):  # latents that spread as an encoder learns
            quantiser(seeded(1, 2, 200, seed=seed) * (0.05 + seed / 20))
        return len(quantiser(seeded(1, 2, 2000) * 4).codes.unique())

    assert use(0) < use(0.1) == 32


def test_a_resumed_quantiser_goes_on_bit_by_bit():
    whole = Quantiser(32, 2, decay=0.5, restart_below=0.5)
    for seed in range(3):
        whole(seeded(1, 2, 50, seed=seed))
    resumed = Quantiser(32, 2, decay=0.5, restart_below=0.5)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    torch.rand(3)  # what else is drawn does not matter
    for seed in range(3, 9):
        for quantiser in (whole, resumed):
            quantiser(seeded(1, 2, 50, seed=seed))
    assert torch.equal(whole.codebook, resumed.codebook)


def test_half_precision_around_it_does_not_blur_distances():
    codebook = 100 + torch.arange(20.0)[:, None].expand(20, 2) / 16  # told apart by float32 alone
    quantiser = Quantiser(20, 2).eval()
    quantiser.codebook.copy_(codebook)
    latents = codebook.T[None].clone()  # (1, 2, 20)
    with torch.autocast("cpu", torch.bfloat16):
        quantised = quantiser(latents)
    assert quantised.codes[0].tolist() == list(range(20))
    assert quantised.latents.dtype == torch.float32


@pytest.mark.parametrize(("counts", "expected"), [([5, 5, 5, 5], 4), ([9, 0, 0, 0], 1), ([1, 1, 0, 2], 2**1.5)])
def test_perplexity_counts_codes_in_use(counts, expected):
    assert perplexity(torch.tensor(counts)) == pytest.approx(expected)


def test_the_running_perplexity_is_that_of_recent_batches():
    quantiser = Quantiser(4, 1, decay=0.5, restart_below=0)
    quantiser(torch.tensor([[[0.0, 10, 20, 30]]]))
    assert quantiser.perplexity() == pytest.approx(4)
    for _ in range(30):
        quantiser(torch.tensor([[[0.0, 10, 0, 10]]]))
    assert quantiser.perplexity() == pytest.approx(2, abs=0.01)


def trained_on(parts, restart_below):
    """A quantiser after six batches, of each only these images; without restarts it starts the same for all."""
    quantiser = Quantiser(8, 2, decay=0.5, restart_below=restart_below)
    if not restart_below:
        quantiser.updates += 1
        quantiser.counts.fill_(5.0)
        quantiser.codebook.copy_(seeded(8, 2, seed=99))
        quantiser.sums.copy_(5 * quantiser.codebook)
    for seed in range(6):
        quantiser(seeded(2, 2, 30, seed=seed)[parts])
    return quantiser.state_dict()


def in_one_of_two(rank, directory):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{directory}/meeting", rank=rank, world_size=2)
    states = [trained_on(slice(rank, rank + 1), restart_below) for restart_below in (0, 0.3)]
    torch.save(states, f"{directory}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_share_one_codebook_that_learns_from_both(tmp_path):
    mp.spawn(in_one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    whole = trained_on(slice(0, 2), restart_below=0)
    assert torch.allclose(first[0]["codebook"], whole["codebook"], atol=1e-5)
    assert first[1]["counts"].sum() == pytest.approx(60, rel=0.2)  # latents of a batch, of both


@pytest.mark.parametrize(("arguments", "told"), [((0, 3), "0 codes"), ((3, 0), "no codebook")])
def test_a_codebook_without_codes_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        Quantiser(*arguments)


def test_latents_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="latents have 4 channels, the codebook 3"):
        Quantiser(8, 3)(seeded(1, 4, 5))
