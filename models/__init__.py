"""Everything that happens to a model: images, networks, diffusion, training, sampling, audits. Knows nothing of energy."""
