"""Everything that happens to a model: images, networks, training, sampling, audits. Knows nothing of energy."""
