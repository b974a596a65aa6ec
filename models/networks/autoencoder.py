"""Which autoencoder stands between images and latents: the one place that knows the kinds.

Both kinds are called alike: `forward(x)` gives a reconstruction and what the latents cost, `latents_of(x)` what
diffusion learns, `images_of(z)` its images, and `downsampling` says how many pixels a latent stands for along each axis.
"""

from typing import Any

from monai.networks.nets import AutoencoderKL
from torch import Tensor

from models.networks.vqgan import VQGAN, VQGANSize


class KLAutoencoder(AutoencoderKL):
    """The variational autoencoder of Rombach et al. 2022, section 3.1, from MONAI; every level but the first halves.

    Args:
        spatial_dims: 2 or 3.
        channels: of each level.
        latent_channels: C.
        kl_weight: of the divergence of the latents from a standard normal.
    """

    def __init__(
        self, spatial_dims: int, channels: tuple[int, ...], latent_channels: int, kl_weight: float = 0.0
    ) -> None:
        super().__init__(
            spatial_dims=spatial_dims,
            in_channels=1,
            out_channels=1,
            channels=channels,
            attention_levels=(False,) * len(channels),
            latent_channels=latent_channels,
            num_res_blocks=1,
            norm_num_groups=4,  # one group a channel would normalise absolute intensity away
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.kl_weight = kl_weight
        self.downsampling = (2 ** (len(channels) - 1),) * spatial_dims

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, 1, *image) -> (N, 1, *image), scalar
        """Reconstruction, and the weighted divergence."""
        reconstruction, mean, deviation = (part.float() for part in super().forward(x))  # (N, C, *latent) twice
        divergence = 0.5 * (mean**2 + deviation**2 - (deviation**2).log() - 1).flatten(1).sum(1).mean()
        return reconstruction, self.kl_weight * divergence

    def latents_of(self, x: Tensor) -> Tensor:  # (N, 1, *image) -> (N, C, *latent)
        """The mean of the latents."""
        latents: Tensor = self.encode(x)[0]
        return latents

    def images_of(self, latents: Tensor) -> Tensor:  # (N, C, *latent) -> (N, 1, *image)
        """Images of latents."""
        images: Tensor = self.decode(latents)
        return images


Autoencoder = VQGAN | KLAutoencoder


def vq_size(spatial_dims: int, settings: dict[str, Any]) -> VQGANSize:
    """The codebook and levels of `kind: vq`; every level halves all axes, unless `strides` says otherwise."""
    dims = f"{spatial_dims}d"
    channels = tuple(settings["channels"][dims])
    strides = settings["strides"] or [[2] * spatial_dims] * len(channels)
    return VQGANSize(
        channels=channels,
        strides=tuple(tuple(level) for level in strides),
        codes=settings["codes"],
        code_channels=settings["latent_channels"][dims],
        decay=settings["codebook_decay"],
    )


def build_autoencoder(spatial_dims: int, settings: dict[str, Any]) -> Autoencoder:
    """An autoencoder of one-channel images.

    Args:
        spatial_dims: 2 or 3.
        settings: the config's `autoencoder`, with `channels` of each level and `latent_channels` for `2d` and `3d`.

    Raises:
        ValueError: if the levels of a VQ-GAN do not agree with each other.
    """
    dims = f"{spatial_dims}d"
    if settings.get("kind", "kl") == "vq":
        return VQGAN(vq_size(spatial_dims, settings))
    channels = tuple(settings["channels"][dims])
    return KLAutoencoder(spatial_dims, channels, settings["latent_channels"][dims], settings.get("kl_weight", 0.0))


def downsampling(spatial_dims: int, settings: dict[str, Any]) -> int:
    """Side of an image over side of its latent."""
    levels = len(settings["channels"][f"{spatial_dims}d"])
    return int(2 ** (levels if settings.get("kind", "kl") == "vq" else levels - 1))
