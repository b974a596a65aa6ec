"""Training an autoencoder against a discriminator: both as one network that `models.loop.train` trains.

Both losses are of one reconstruction, as in the usual two steps: the discriminator's own step would see that
reconstruction too, and the autoencoder's step the discriminator before its own. So one backward pass gives both their
gradients, as long as neither loss reaches the other's weights; and checkpoints, resuming, averaging, control and
several processes are those of the loop.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from models.losses import CRITERIA, PerceptualLoss, spectral_loss, warm_up
from models.networks.quantiser import processes
from models.work import TRAINING_PASSES, count_flops

TERMS = ("l1", "regularisation", "perceptual", "spectral", "adversarial", "discriminator")


@dataclass(frozen=True)
class Objective:
    """What is added to the mean absolute error and the autoencoder's own regularisation, and how much of it."""

    perceptual_weight: float = 0.0
    spectral_weight: float = 0.0
    adversarial_weight: float = 0.0  # 0: the discriminator is not trained either
    warmup_images: int = 0  # seen until the adversarial weight is reached
    criterion: str = "least_squares"  # or hinge
    discriminator_rate: float = 1.0  # its learning rate over the autoencoder's
    betas: tuple[float, float] = (0.9, 0.999)  # of the optimiser, for both


class Adversarial(nn.Module):
    """An autoencoder and the discriminator that it is trained against; called, it gives the sum of both losses.

    Args:
        autoencoder: called with images, gives their reconstruction and a regularisation such as a commitment loss.
        discriminator: gives numbers that are high for real images.
        objective: the losses and their weights.
        perceptual: needed where it has a weight.

    Raises:
        ValueError: if the criterion is not known, or the perceptual loss is missing.
    """

    seen: Tensor  # scalar, int64: images, by all processes
    means: Tensor  # (TERMS,)

    def __init__(
        self,
        autoencoder: nn.Module,
        discriminator: nn.Module | None,
        objective: Objective,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        super().__init__()
        if objective.criterion not in CRITERIA:
            raise ValueError(f"autoencoder.criterion: {objective.criterion} is not one of {', '.join(CRITERIA)}")
        if objective.perceptual_weight and perceptual is None:
            raise ValueError("autoencoder.perceptual_weight: there is no perceptual loss to weigh")
        self.autoencoder: Any = autoencoder
        self.objective, self.perceptual = objective, perceptual
        self.discriminator = discriminator if objective.adversarial_weight else None
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("means", torch.zeros(len(TERMS)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is clipped on its own and has its own learning rate: `rate` times that of the training."""
        networks = [(self.autoencoder, 1.0), (self.discriminator, self.objective.discriminator_rate)]
        return [
            {"params": list(network.parameters()), "rate": rate, "betas": self.objective.betas}
            for network, rate in networks
            if network is not None
        ]

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:  # (N, 1, *image) -> scalar
        """The sum of both losses; the generator draws the slices that the perceptual loss looks at."""
        reconstruction, regularisation = self.autoencoder(x)
        reconstruction = reconstruction.float()  # (N, 1, *image)
        nothing, wanted = x.new_zeros(()), self.objective
        terms = dict.fromkeys(TERMS, nothing) | {"l1": F.l1_loss(reconstruction, x), "regularisation": regularisation}
        if wanted.perceptual_weight and self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstruction, x, generator)
        if wanted.spectral_weight:
            terms["spectral"] = spectral_loss(reconstruction, x)
        if self.discriminator is not None:
            terms["adversarial"], terms["discriminator"] = self.contest(self.discriminator, x, reconstruction)
        adversarial_weight = wanted.adversarial_weight * warm_up(int(self.seen), wanted.warmup_images)
        weights = (1.0, 1.0, wanted.perceptual_weight, wanted.spectral_weight, adversarial_weight, 1.0)
        if self.training:
            self.note(torch.stack([terms[name].detach().float() for name in TERMS]), len(x))
        return sum((weight * terms[name] for weight, name in zip(weights, TERMS, strict=True)), nothing)

    def contest(self, discriminator: nn.Module, x: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the autoencoder, whose gradient the discriminator's weights do not see, and the other way round."""
        criterion = CRITERIA[self.objective.criterion]
        frozen = {name: weights.detach() for name, weights in discriminator.named_parameters()}
        generator_loss = criterion.generator(functional_call(discriminator, frozen, (reconstruction,)).float())
        real, fake = discriminator(x).float(), discriminator(reconstruction.detach()).float()  # (N, 1, *patches) each
        return generator_loss, criterion.discriminator(real, fake)

    def flops(self, crop: tuple[int, ...], recomputed: bool = False) -> int:
        """Operations of one training step for one image of this shape.

        The discriminator is run three times (for the autoencoder; for it on real and reconstructed) and has gradients
        of inputs once and of weights and inputs twice; the perceptual network is run on both images, with gradients of
        the reconstruction. `recomputed`: the autoencoder keeps no activations and runs once more.
        """
        autoencoder = copy.deepcopy(self.autoencoder).eval()  # counting is no step of a codebook
        total = (TRAINING_PASSES + recomputed) * count_flops(autoencoder, (1, 1, *crop))
        if self.discriminator is not None:
            total += (3 + 1 + 4) * count_flops(self.discriminator, (1, 1, *crop))
        if self.perceptual is not None and self.objective.perceptual_weight:
            total += 3 * self.perceptual.flops(crop)
        return total

    @torch.no_grad()
    def note(self, values: Tensor, images: int) -> None:  # (TERMS,)
        """Count images, and keep running means of the losses: in buffers, which checkpoints hold."""
        images *= processes()
        self.means.lerp_(values, max(0.01, images / (int(self.seen) + images)))  # of all, until there were a hundred
        self.seen += images

    def terms(self) -> dict[str, float]:
        """Each loss by its name, before it is weighted, as a mean over about the last hundred batches."""
        return dict(zip(TERMS, self.means.tolist(), strict=True))
