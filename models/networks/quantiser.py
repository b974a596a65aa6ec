"""The codebook of a VQ-GAN: nearest codes in bounded memory, learned by moving averages, dead codes restarted.

MONAI's `EMAQuantizer` holds a distance and a one-hot entry for each pair of latent and code: 2 GB each for one crop of
MedLoRD's (32 x 32 x 32 latents, 16,384 codes). It also knows neither one axis nor four, and leaves dead codes dead.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

DISTANCES_AT_ONCE = 2**24  # 64 MB of float32, however many latents and codes there are


class Quantised(NamedTuple):
    """Latents at the nearest codes, which these are, and what it costs that they were not there."""

    latents: Tensor  # (N, C, *latent), codes forwards and the identity backwards
    codes: Tensor  # (N, *latent), int64
    loss: Tensor  # commitment, scalar


class Quantiser(nn.Module):
    """Codes for the channels of each latent position, in any number of dimensions.

    Codes follow their latents by exponential moving averages (van den Oord et al. 2017, appendix A.1), so they need
    no gradient and no optimiser: with n_k latents at code k in a batch, N_k <- decay N_k + (1 - decay) n_k,
    m_k <- decay m_k + (1 - decay) sum z, e_k = m_k / N_k. They start at random latents of the first batch, not at noise
    far from all of them. A code whose average use falls below `restart_below` of an even share starts anew at a random
    latent (Dhariwal et al. 2020, section 3.1). With several processes all learn from the latents of all.

    The drawing of latents depends on the number of updates alone: a resumed training draws what an uninterrupted one
    would.

    Args:
        codes: K, in the codebook.
        channels: C, of a code.
        decay: of the averages.
        commitment: beta of the loss, beta mean |z - sg(e)|^2.
        restart_below: share of an even use under which a code counts as dead; 0: none is restarted.

    Raises:
        ValueError: if there are no codes.
    """

    codebook: Tensor  # (K, C)
    counts: Tensor  # (K,)
    sums: Tensor  # (K, C)
    updates: Tensor  # scalar, int64

    def __init__(
        self, codes: int, channels: int, decay: float = 0.99, commitment: float = 0.25, restart_below: float = 0.03
    ) -> None:
        super().__init__()
        if codes < 1 or channels < 1:
            raise ValueError(f"autoencoder.codes: {codes} codes of {channels} channels are no codebook")
        self.decay, self.commitment, self.restart_below = decay, commitment, restart_below
        self.register_buffer("codebook", torch.randn(codes, channels))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, latents: Tensor) -> Quantised:  # (N, C, *latent)
        """Quantise; in training, learn from the latents as well, after they are quantised.

        Raises:
            ValueError: if the latents have another number of channels than the codes.
        """
        if latents.shape[1] != self.codebook.shape[1]:
            raise ValueError(f"latents have {latents.shape[1]} channels, the codebook {self.codebook.shape[1]}")
        with in_full_precision(latents.device):
            z = latents.float()  # (N, C, *latent)
            vectors = z.detach().movedim(1, -1).flatten(0, -2)  # (V, C), V = N * positions
            if self.training and not self.updates:
                self.start(vectors)
            codes = nearest(vectors, self.codebook)  # (V,)
            found = self.embed(codes.view(z.shape[0], *z.shape[2:]))  # (N, C, *latent)
            loss = self.commitment * F.mse_loss(z, found)
            if self.training:
                self.update(vectors, codes)
        if z.requires_grad:
            found = z + (found - z).detach()  # straight through
        return Quantised(found, codes.view(z.shape[0], *z.shape[2:]), loss)

    def embed(self, codes: Tensor) -> Tensor:  # (N, *latent) -> (N, C, *latent)
        """The latents that codes stand for."""
        return self.codebook[codes].movedim(-1, 1).contiguous()

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:  # (V, C)
        """Take random latents as codes, each as if used evenly so far."""
        used = total(torch.tensor(float(len(vectors)), device=vectors.device)) / len(self.codebook)
        self.codebook.copy_(self.draw(vectors, len(self.codebook)))
        self.counts.fill_(float(used))
        self.sums.copy_(self.codebook * used)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:  # (V, C), (V,)
        """Move the averages by one batch, and start dead codes anew."""
        counts = total(torch.bincount(codes, minlength=len(self.codebook)).to(vectors.dtype))  # (K,)
        sums = total(torch.zeros_like(self.codebook).index_add_(0, codes, vectors))  # (K, C)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        kept = self.counts > 1e-5  # of others the quotient is no longer told from rounding
        means = self.sums / self.counts.clamp(min=1e-5)[:, None]
        self.codebook.copy_(torch.where(kept[:, None], means, self.codebook))
        share = counts.sum() / len(counts)  # of an even use
        dead = (self.counts < self.restart_below * share).nonzero()[:, 0]  # (D,)
        if len(dead):
            fresh = self.draw(vectors, len(dead))  # (D, C)
            self.codebook[dead] = fresh
            self.counts[dead] = share
            self.sums[dead] = fresh * share
        self.updates += 1

    def draw(self, vectors: Tensor, count: int) -> Tensor:  # (V, C) -> (count, C)
        """Random latents, the same in every process; where there are too few, slightly moved copies of them."""
        generator = torch.Generator().manual_seed(int(self.updates))
        rounds = [torch.randperm(len(vectors), generator=generator) for _ in range(-(-count // len(vectors)))]
        drawn = vectors[torch.cat(rounds)[:count].to(vectors.device)]  # (count, C)
        noise = torch.randn(drawn.shape, generator=generator).to(drawn)
        noise[: len(vectors)] = 0
        drawn = drawn + 0.01 * vectors.std(0, correction=0) * noise
        if processes() > 1:
            dist.broadcast(drawn, 0)
        return drawn

    def perplexity(self) -> float:
        """Codes in use, as `perplexity` counts them, over about the last 1 / (1 - decay) batches."""
        return perplexity(self.counts)


@torch.no_grad()
def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:  # (V, C), (K, C) -> (V,)
    """The code at the least Euclidean distance; of |z|^2 - 2 z'e + |e|^2 the first term is the same for all codes."""
    squares = codebook.square().sum(1)  # (K,)
    rows = max(1, DISTANCES_AT_ONCE // len(codebook))
    chunks = [torch.addmm(squares, chunk, codebook.T, alpha=-2).argmin(1) for chunk in vectors.split(rows)]
    return torch.cat(chunks)


def perplexity(counts: Tensor) -> float:  # (K,)
    """exp(-sum p log p) of how often each code is used: K for even use, 1 where one code has all."""
    shares = counts.double() / counts.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def in_full_precision(device: torch.device) -> AbstractContextManager[None]:
    """No mixed precision, which would blur distances; on `meta`, where operations are counted, there is none."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """Sum over all processes."""
    if processes() > 1:
        dist.all_reduce(values)
    return values
