"""Networks for any number of spatial dimensions: autoencoder, U-Net, diffusion transformer."""
