"""The forward process: how noise is added in training, and what the network learns to predict."""

from typing import Any

import torch
from torch import Tensor

from models.diffusion.sampling import make_scheduler


class ForwardProcess:
    """Noise levels and targets of training.

    epsilon: the noise (Ho et al. 2020, equation 14). v_prediction: sqrt(a) noise - sqrt(1 - a) x (Salimans and Ho 2022,
    appendix D). flow: noise - x along the straight line between both (Liu et al. 2023).

    Args:
        settings: `timesteps` T, `noise_schedule`, `prediction`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.timesteps = int(settings["timesteps"])
        self.flow = settings["prediction"] == "flow"
        self.epsilon = settings["prediction"] == "epsilon"
        self.scheduler: Any = None if self.flow else make_scheduler("ddpm", settings)

    def draw_times(self, n: int, generator: torch.Generator, device: torch.device) -> Tensor:  # (n,)
        """Uniform noise levels, whole timesteps, or real ones for flow."""
        if self.flow:
            return (torch.rand(n, generator=generator) * self.timesteps).to(device)
        return torch.randint(self.timesteps, (n,), generator=generator).to(device)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:  # (N, C, *latent) each, (N,) -> (N, C, *latent)
        """Latents `x` with the noise of level `t`."""
        if self.flow:
            level = self.level(t, x)
            return (1 - level) * x + level * noise
        noisy: Tensor = self.scheduler.add_noise(x, noise, t)
        return noisy

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:  # (N, C, *latent)
        """What the network should predict from `add_noise(x, noise, t)`."""
        if self.flow:
            return noise - x
        if self.epsilon:
            return noise
        velocity: Tensor = self.scheduler.get_velocity(x, noise, t)
        return velocity

    def level(self, t: Tensor, x: Tensor) -> Tensor:  # (N, 1, ..., 1)
        """Share of noise, 0 to 1, at flow time `t`."""
        return (t / self.timesteps).view(-1, *(1,) * (x.ndim - 1))
