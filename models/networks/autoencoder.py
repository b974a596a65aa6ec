"""The KL autoencoder between images and latents (Rombach et al. 2022, section 3.1), from MONAI."""

from typing import Any

from monai.networks.nets import AutoencoderKL


def downsampling(settings: dict[str, Any]) -> int:
    """Side of an image over side of its latent."""
    return int(2 ** (len(settings["channels"]) - 1))


def build_autoencoder(spatial_dims: int, settings: dict[str, Any]) -> AutoencoderKL:
    """An autoencoder of one-channel images.

    Args:
        spatial_dims: 2 or 3.
        settings: `channels` of each level and `latent_channels`.

    Returns:
        a network whose `encode` maps (N, 1, *image) to mean and deviation, (N, C, *latent) each, and whose `decode`
        maps back.
    """
    channels = tuple(settings["channels"])
    return AutoencoderKL(
        spatial_dims=spatial_dims,
        in_channels=1,
        out_channels=1,
        channels=channels,
        attention_levels=(False,) * len(channels),
        latent_channels=settings["latent_channels"],
        num_res_blocks=1,
        norm_num_groups=min(16, *channels),
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
