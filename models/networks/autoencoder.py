"""Which autoencoder stands between images and latents: the one place that knows the kinds.

Both kinds are called alike: `forward(x)` gives a reconstruction and what the latents cost, `latents_of(x)` what
diffusion learns, `images_of(z)` its images; `downsampling` says how many pixels a latent stands for along each axis.
"""

from typing import Any

from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from models.networks.vqgan import VQGAN, VQGANSize
from models.recompute import recompute_blocks


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

    def forward(  # type: ignore[override]  # MONAI's gives mean and deviation
        self, x: Tensor
    ) -> tuple[Tensor, Tensor]:  # (N, 1, *image) -> (N, 1, *image), scalar
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


class SliceWise(nn.Module):
    """An autoencoder of slices over time for stacks of them, as in CardioDiT: each slice is on its own.

    Args:
        autoencoder: of images (N, 1, H, W, T).
    """

    def __init__(self, autoencoder: "VQGAN | KLAutoencoder") -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.downsampling = (1, *autoencoder.downsampling)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, 1, D, H, W, T) -> (N, 1, D, H, W, T), scalar
        """Reconstruction, and the mean of what each slice costs."""
        reconstruction, regularisation = self.autoencoder(slices_of(x))
        return stacks_of(reconstruction, x.shape[2]), regularisation

    def latents_of(self, x: Tensor) -> Tensor:  # (N, 1, D, H, W, T) -> (N, C, D, *latent)
        """What diffusion learns, of each slice."""
        return stacks_of(self.autoencoder.latents_of(slices_of(x)), x.shape[2])

    def images_of(self, latents: Tensor) -> Tensor:  # (N, C, D, *latent) -> (N, 1, D, H, W, T)
        """Images of latents, slice by slice."""
        return stacks_of(self.autoencoder.images_of(slices_of(latents)), latents.shape[2])


def slices_of(stacks: Tensor) -> Tensor:  # (N, C, D, *plane) -> (N * D, C, *plane)
    """Slices as samples of their own."""
    return stacks.transpose(1, 2).flatten(0, 1)


def stacks_of(slices: Tensor, depth: int) -> Tensor:  # (N * D, C, *plane) -> (N, C, D, *plane)
    """What `slices_of` took apart."""
    return slices.unflatten(0, (-1, depth)).transpose(1, 2)


Autoencoder = VQGAN | KLAutoencoder | SliceWise


def vq_size(axes: int, dims: str, settings: dict[str, Any]) -> VQGANSize:
    """The codebook and levels of `kind: vq`; every level halves all axes, unless `strides` says otherwise."""
    channels = tuple(settings["channels"][dims])
    strides = settings["strides"] or [[2] * axes] * len(channels)
    return VQGANSize(
        channels=channels,
        strides=tuple(tuple(level) for level in strides),
        codes=settings["codes"],
        code_channels=settings["latent_channels"][dims],
        decay=settings["codebook_decay"],
    )


def build_autoencoder(
    spatial_dims: int, settings: dict[str, Any], frames: bool = False, checkpointing: bool = False
) -> VQGAN | KLAutoencoder:
    """The network of an autoencoder of one-channel images; of stacks over time, that of a slice.

    Args:
        spatial_dims: 2 or 3.
        settings: the config's `autoencoder`, with `channels` of each level and `latent_channels` for `2d` and `3d`.
        frames: of sequences: the network sees slices over time, (H, W, T).
        checkpointing: keep no activations inside blocks for the backward pass but compute them anew.

    Raises:
        ValueError: if the levels of a VQ-GAN do not agree with each other.
    """
    dims, axes = f"{spatial_dims}d", 3 if frames else spatial_dims
    if settings.get("kind", "kl") == "vq":
        return VQGAN(vq_size(axes, dims, settings), checkpointing)
    channels = tuple(settings["channels"][dims])
    network = KLAutoencoder(axes, channels, settings["latent_channels"][dims], settings.get("kl_weight", 0.0))
    if checkpointing:
        recompute_blocks(network)
    return network


def of_images(network: VQGAN | KLAutoencoder, spatial_dims: int, frames: bool) -> Autoencoder:
    """A network of `build_autoencoder` as one of whole images, volumes or sequences."""
    return SliceWise(network) if frames and spatial_dims == 3 else network
