"""The published generators by name: what their authors released, as tables.

Sizes, shapes and settings are those of the public repositories at the commits read (VolDiT 76c7063, CardioDiT abf3c97,
MedLoRD ee9f359). None: not published. What is ours in a row is said above it.
"""

import difflib
import math
from dataclasses import dataclass
from typing import Any

from models.networks.sizes import CARDIODIT_SIZES, DIT_SIZES, MEDLORD_SIZE, UNET_SIZES, DiTSize, UNetSize


@dataclass(frozen=True)
class System:
    """What the generators of one paper share."""

    image: tuple[int, ...]  # (x, y, z) or (D, H, W, T), with one channel
    latent: tuple[int, ...]
    latent_channels: int
    source: str


@dataclass(frozen=True)
class StageOne:
    """How a VQ-GAN is trained; its network has the same name in `models.networks.vqgan`."""

    perceptual: float  # weight beside the mean absolute error, as the two that follow
    adversarial: float
    spectral: float
    warmup_epochs: int  # until the adversarial loss has its weight
    learning_rate: float
    discriminator_rate: float
    epochs: int
    batch_size: int
    crop: tuple[int, ...] | None  # None: whole images; of CardioDiT one random slice over time


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is trained and sampled; with as many steps as timesteps."""

    timesteps: int
    noise_schedule: str
    prediction: str
    loss: str
    ema_decay: float
    dropout: float
    learning_rate: float
    gamma: float | None  # factor of the learning rate each epoch; None: 100 epochs of warm-up, then a cosine to 0.01
    weight_decay: float | None
    epochs: int
    batch_size: int
    sampler: str

    def settings(self) -> dict[str, Any]:
        """As `models.diffusion` takes them."""
        return {"timesteps": self.timesteps, "noise_schedule": self.noise_schedule, "prediction": self.prediction}


@dataclass(frozen=True)
class ControlRecipe:
    """How the branch that follows masks is built and trained."""

    labels: int  # of the released configuration; masks of a study may have others
    channels: tuple[int, ...]  # of the mask's embedding
    initial_stride: int  # of its first convolution
    ratio: float | None  # channels of a ControlNet over those of its U-Net; None: a `ControlAdapter`
    drop_whole: float  # probability in training, as `drop_labels` takes it
    drop_each: float
    learning_rate: float
    epochs: int
    batch_size: int
    ema_decay: float


@dataclass(frozen=True)
class Preset:
    """A published generator: a network of a system."""

    system: str  # key of the tables below
    size: DiTSize | UNetSize
    patch: tuple[int, ...] | None = None  # per axis; None: a U-Net
    depth: str | None = None  # how a U-Net takes the D of (D, H, W, T): as `samples` or as `channels`
    published_parameters: float | None = None

    @property
    def family(self) -> str:
        """As in the matrix: `dit`, `unet` or `unet-slices`."""
        if isinstance(self.size, DiTSize):
            return "dit"
        return "unet-slices" if self.depth == "samples" else "unet"

    @property
    def axes(self) -> int:
        """Of its images, time among them."""
        return len(SYSTEMS[self.system].image)

    @property
    def tokens(self) -> int | None:
        """Tokens of a transformer at the published size; None for a U-Net."""
        return None if self.patch is None else math.prod(SYSTEMS[self.system].latent) // math.prod(self.patch)


#                       image              latent         channels  source
SYSTEMS = {
    "voldit":    System((512, 512, 256),   (64, 64, 32),   8,       "arXiv 2603.25181"),
    "cardiodit": System((6, 256, 256, 32), (6, 64, 64, 8), 8,       "arXiv 2603.25194"),
    "medlord":   System((512, 512, 256),   (128, 128, 64), 8,       "arXiv 2503.13211"),
}  # fmt: skip

#                         perceptual adversarial spectral warm-up rate  discriminator's epochs batch crop
STAGE_ONES = {
    "voldit":    StageOne(0.005,     0.005,      0.0,     10,     5e-5, 2e-5,           1300,  4,    None),
    "cardiodit": StageOne(0.002,     0.005,      0.0,     50,     5e-5, 2e-5,            500,  4,    None),
    "medlord":   StageOne(0.002,     0.005,      1.0,     10,     3e-5, 1e-4,            500,  2,    (128, 128, 128)),
}  # fmt: skip

# The loss of CardioDiT's merged U-Net is called Huber: at its usual threshold, 1, it is Smooth-L1. Of its two baselines
# no settings but that were published: theirs are CardioDiT's here.
#
#                       T    schedule  prediction      loss         EMA     drop rate  gamma   weights epochs batch
RECIPES = {
    "voldit":    Recipe(300, "cosine", "v_prediction", "smooth_l1", 0.9999, 0.1, 1e-4, 0.999,  None, 1000, 2, "ddpm"),
    "cardiodit": Recipe(300, "cosine", "v_prediction", "smooth_l1", 0.9999, 0.0, 1e-4, None,   1e-4, 3000, 1, "ddim"),
    "medlord":   Recipe(300, "cosine", "v_prediction", "smooth_l1", 0.999,  0.0, 1e-4, 0.9995, None, 5000, 4, "ddpm"),
}  # fmt: skip

#                           labels channels              stride ratio  drops    rate  epochs batch EMA
CONTROLS = {
    "voldit":  ControlRecipe(1,    (8, 16, 32, 64, 128), 1,     None, 0.1, 0.1, 5e-5,   500, 2,    0.9999),
    "medlord": ControlRecipe(6,    (32, 64),             2,     0.5,  0.0, 0.1, 7.5e-5, 500, 1,    0.999),
}  # fmt: skip

# VolDiT counts its parameters at patch 2 on 192^3 images, whose latent is 24^3, and with its fixed positions. Those of
# CardioDiT are slice by slice (2d+t) and with 6 slices of 8 channels as 48 (3d+t) its baselines: their U-Nets have no
# published size, B is ours, with about as many parameters as CardioDiT-B.
#
#                            system       size                  patch         depth       published parameters
PRESETS = {
    "voldit-XS/2":    Preset("voldit",    DIT_SIZES["XS"],      (2, 2, 2),    None,        17.2e6),
    "voldit-S/2":     Preset("voldit",    DIT_SIZES["S"],       (2, 2, 2),    None,        33.2e6),
    "voldit-B/2":     Preset("voldit",    DIT_SIZES["B"],       (2, 2, 2),    None,       131.0e6),
    "voldit-L/2":     Preset("voldit",    DIT_SIZES["L"],       (2, 2, 2),    None,       580.0e6),
    "voldit-XS/4":    Preset("voldit",    DIT_SIZES["XS"],      (4, 4, 4)),
    "voldit-S/4":     Preset("voldit",    DIT_SIZES["S"],       (4, 4, 4)),
    "voldit-B/4":     Preset("voldit",    DIT_SIZES["B"],       (4, 4, 4)),
    "voldit-L/4":     Preset("voldit",    DIT_SIZES["L"],       (4, 4, 4)),
    "cardiodit-S":    Preset("cardiodit", CARDIODIT_SIZES["S"], (1, 4, 4, 2)),
    "cardiodit-B":    Preset("cardiodit", CARDIODIT_SIZES["B"], (1, 4, 4, 2)),
    "cardiodit-L":    Preset("cardiodit", CARDIODIT_SIZES["L"], (1, 4, 4, 2)),
    "cardiodit-2d+t": Preset("cardiodit", UNET_SIZES["B"],      None,         "samples"),
    "cardiodit-3d+t": Preset("cardiodit", UNET_SIZES["B"],      None,         "channels"),
    "medlord":        Preset("medlord",   MEDLORD_SIZE),
}  # fmt: skip


def preset_named(name: str) -> Preset:
    """A published generator.

    Raises:
        ValueError: naming the nearest, or all, if there is none of that name.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(PRESETS)}"
        raise ValueError(f"preset: there is no {name}; {hint}")
    return PRESETS[name]
