"""Samplers by name. Names only: the plan reads them, and reading a config must not cost seconds of imports."""

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
