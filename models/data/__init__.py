"""Real images, read and made into cohorts: bundled CT, own folders, MedMNIST."""
