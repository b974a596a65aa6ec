"""The KL autoencoder between images and latents (Rombach et al. 2022, section 3.1), from MONAI."""

from typing import Any

from monai.networks.nets import AutoencoderKL


def downsampling(spatial_dims: int, settings: dict[str, Any]) -> int:
    """Side of an image over side of its latent."""
    return int(2 ** (len(settings["channels"][f"{spatial_dims}d"]) - 1))


def build_autoencoder(spatial_dims: int, settings: dict[str, Any]) -> AutoencoderKL:
    """An autoencoder of one-channel images.

    Args:
        spatial_dims: 2 or 3.
        settings: the config's `autoencoder`, with `channels` of each level and `latent_channels` for `2d` and `3d`.

    Returns:
        a network whose `encode` maps (N, 1, *image) to mean and deviation, (N, C, *latent) each, and whose `decode`
        maps back.
    """
    dims = f"{spatial_dims}d"
    channels = tuple(settings["channels"][dims])
    return AutoencoderKL(
        spatial_dims=spatial_dims,
        in_channels=1,
        out_channels=1,
        channels=channels,
        attention_levels=(False,) * len(channels),
        latent_channels=settings["latent_channels"][dims],
        num_res_blocks=1,
        norm_num_groups=4,  # one group a channel would normalise absolute intensity away
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
