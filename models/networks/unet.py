"""The denoising U-Net of latent diffusion (Rombach et al. 2022), from MONAI."""

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from models.networks.sizes import UNetSize


class UNet(nn.Module):
    """MONAI's U-Net, called as every denoiser here: `(x, t) -> prediction of the shape of x`."""

    def __init__(self, spatial_dims: int, latent_channels: int, size: UNetSize) -> None:
        super().__init__()
        self.unet = DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=latent_channels,
            out_channels=latent_channels,
            channels=size.channels,
            attention_levels=size.attention,
            num_res_blocks=size.blocks,
            num_head_channels=size.head_channels,
            norm_num_groups=size.groups,
            use_flash_attention=True,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # (N, C, *latent), (N,) -> (N, C, *latent)
        """Predict for latents `x` at noise levels `t`, counted in timesteps."""
        prediction: Tensor = self.unet(x, timesteps=t.to(torch.float32))
        return prediction
