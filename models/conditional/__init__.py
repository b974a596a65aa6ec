"""Generation that follows masks: a branch trained beside a denoiser that stays as it is."""
