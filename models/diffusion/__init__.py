"""One diffusion core for every network and any number of spatial dimensions."""
