"""From noise to latents, through `diffusers`' schedulers, which work in any number of dimensions."""

import inspect
from collections.abc import Callable
from typing import Any

from diffusers import schedulers
from torch import Generator, Tensor, nn

from models.diffusion.samplers import SAMPLERS

NOISE_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled_linear": "scaled_linear"}


def make_scheduler(sampler: str, settings: dict[str, Any]) -> Any:
    """The scheduler of `diffusers` that carries out a sampler.

    Args:
        sampler: a key of `SAMPLERS`.
        settings: `timesteps` T, `noise_schedule` and `prediction`.
    """
    scheduler = getattr(schedulers, SAMPLERS[sampler][0])
    if sampler in ("euler", "heun"):
        return scheduler(num_train_timesteps=settings["timesteps"])
    options: dict[str, Any] = {"num_train_timesteps": settings["timesteps"], "timestep_spacing": "trailing"}
    if settings["prediction"] == "flow":
        options |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    else:
        options |= {
            "prediction_type": settings["prediction"],
            "beta_schedule": NOISE_SCHEDULES[settings["noise_schedule"]],
        }
    if sampler in ("ddpm", "ddim"):
        options["clip_sample"] = False  # the default clamps latents to [-1, 1], which washes images out
    return scheduler(**options)


def sample_latents(
    denoiser: nn.Module,
    noise: Tensor,
    scheduler: Any,
    steps: int,
    generator: Generator | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Turn noise into latents.

    Args:
        denoiser: called as `denoiser(x, t)`.
        noise: (N, C, *latent), standard normal.
        scheduler: from `make_scheduler`.
        steps: denoising steps.
        generator: of the noise that stochastic samplers add.
        callback: told (passes so far, latents) after each pass.

    Returns:
        latents (N, C, *latent), in the scale that the denoiser was trained on.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)  # (N, C, *latent)
    for i, t in enumerate(scheduler.timesteps):
        prediction = denoiser(x, t.expand(len(x)))  # (N, C, *latent)
        x = scheduler.step(prediction, t, x, **draws).prev_sample  # (N, C, *latent)
        if callback is not None:
            callback(i + 1, x)
    return x
