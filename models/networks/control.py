"""What every control branch shares: a trained denoiser that stays as it is, and masks of labels that it can follow."""

import torch
from torch import Tensor, nn


class Controlled(nn.Module):
    """A trained denoiser, frozen, and a branch beside it that learns to make it follow a mask.

    Sub-classes give `encode`, which is done once for a volume, and `predict`, which is done at every step.

    Args:
        base: the denoiser; its parameters are frozen, and it stays in evaluation mode.
        labels: of the masks, background not counted.
        image_shape: of the masks and of the images that go with them.
    """

    base: nn.Module

    def __init__(self, base: nn.Module, labels: int, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False).eval()
        self.labels, self.image_shape = labels, tuple(image_shape)

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        """Predict for latents (N, C, *latent) at noise levels (N,), controlled by masks (N, labels, *image)."""
        return self.predict(x, t, self.encode(mask))

    def encode(self, mask: Tensor) -> Tensor:  # (N, labels, *image) -> what `predict` takes
        """Turn masks into what the branch works with.

        Raises:
            ValueError: if the masks have another size or number of labels than the model's.
        """
        raise NotImplementedError

    def predict(self, x: Tensor, t: Tensor, control: Tensor) -> Tensor:  # (N, C, *latent), (N,) -> (N, C, *latent)
        """Predict with masks that are encoded already."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Controlled":
        """Set the mode of the branch; the base stays in evaluation mode, or its dropout would disturb what it knows."""
        super().train(mode)
        self.base.eval()
        return self

    def check(self, mask: Tensor) -> None:
        """Refuse masks that are not the model's; see `encode`."""
        if mask.ndim != 2 + len(self.image_shape):
            raise ValueError(
                f"mask: has {mask.ndim} axes, and this model is for (samples, labels, *image) with an image of "
                f"{self.image_shape}"
            )
        if mask.shape[1] != self.labels:
            raise ValueError(f"mask: has {mask.shape[1]} labels, and this model was trained on {self.labels}")
        if tuple(mask.shape[2:]) != self.image_shape:
            raise ValueError(f"mask: has size {tuple(mask.shape[2:])}; this model was trained on {self.image_shape}")


def label_channels(label_map: Tensor, labels: int) -> Tensor:  # (N, 1, *image) integers -> (N, labels, *image) float32
    """A channel of zeros and ones for each label 1 to `labels`; 0 is background and has none.

    Raises:
        ValueError: if there is another label, or a number that is none.
    """
    found = torch.unique(label_map)
    strange = found[(found < 0) | (found > labels) | (found != found.round())]
    if len(strange):
        raise ValueError(f"mask: has label {strange[0].item():g}, and this model was trained on 0 to {labels}")
    return torch.cat([(label_map == label).to(torch.float32) for label in range(1, labels + 1)], dim=1)


def drop_labels(mask: Tensor, generator: torch.Generator, whole: float = 0.1, each: float = 0.1) -> Tensor:
    """Masks as a training shows them: some empty, some without a label, so that the model also knows what to do then.

    Args:
        mask: (N, labels, *image).
        generator: on the CPU.
        whole: probability that a sample's mask is emptied.
        each: probability that one label of it is.

    Returns:
        (N, labels, *image).
    """
    n, labels = mask.shape[:2]
    kept = torch.rand(n, 1, generator=generator) >= whole  # (N, 1)
    kept = kept & (torch.rand(n, labels, generator=generator) >= each)  # (N, labels)
    return mask * kept.view(n, labels, *(1,) * (mask.ndim - 2)).to(mask)
