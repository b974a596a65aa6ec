"""Samplers by name, through `diffusers`' schedulers, which work in any number of dimensions."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the plan only needs names: reading a config must not cost seconds of imports
    from torch import Generator, Tensor, nn

NOISE_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled_linear": "scaled_linear"}

# name: scheduler of diffusers, predictions it can follow
SAMPLERS = {
    "ddpm":  ("DDPMScheduler",                   ("epsilon", "v_prediction")),          # Ho et al. 2020, alg. 2
    "ddim":  ("DDIMScheduler",                   ("epsilon", "v_prediction")),          # Song et al. 2021, eq. 12
    "dpmpp": ("DPMSolverMultistepScheduler",     ("epsilon", "v_prediction", "flow")),  # Lu et al. 2022b, alg. 2
    "euler": ("FlowMatchEulerDiscreteScheduler", ("flow",)),                            # Liu et al. 2023, eq. 1
    "heun":  ("FlowMatchHeunDiscreteScheduler",  ("flow",)),                            # Karras et al. 2022, alg. 1
}  # fmt: skip


def samplers_for(prediction: str) -> tuple[str, ...]:
    """Names of the samplers that can follow a prediction type."""
    return tuple(name for name, (_, predictions) in SAMPLERS.items() if prediction in predictions)


def make_scheduler(sampler: str, settings: dict[str, Any]) -> Any:
    """The scheduler of `diffusers` that carries out a sampler.

    Args:
        sampler: a key of `SAMPLERS`.
        settings: `timesteps` T, `noise_schedule` and `prediction`.
    """
    import diffusers.schedulers as schedulers

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
    denoiser: "nn.Module",
    noise: "Tensor",
    scheduler: Any,
    steps: int,
    generator: "Generator | None" = None,
    callback: Callable[[int, "Tensor"], None] | None = None,
) -> "Tensor":
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
    import inspect

    scheduler.set_timesteps(steps, device=noise.device)
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)  # (N, C, *latent)
    for i, t in enumerate(scheduler.timesteps):
        prediction = denoiser(x, t.expand(len(x)))  # (N, C, *latent)
        x = scheduler.step(prediction, t, x, **draws).prev_sample  # (N, C, *latent)
        if callback is not None:
            callback(i + 1, x)
    return x
