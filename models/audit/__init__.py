"""How good and how varied generated images are, beside real images the model has never seen."""
