import torch

from models.autoencode import level_depths as autoencoder_depths
from models.device import resolve_precision, training_precision
from models.train import level_depths


def test_precision_is_as_asked_for():
    assert [resolve_precision(p) for p in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]
    assert resolve_precision("auto") in ("bf16", "fp32")


def test_levels_two_voxels_deep_are_trained_in_float32_on_cpus():
    expected = "bf16" if torch.cuda.is_available() else "fp32"
    assert training_precision("bf16", [8, 4, 2]) == expected
    assert training_precision("bf16", [12, 6]) == "bf16"
    assert training_precision("bf16", []) == "bf16"


def test_depths_are_those_of_the_3d_convolutions():
    settings = {"kind": "kl", "channels": {"2d": [32, 64], "3d": [32, 64, 64]}}
    assert autoencoder_depths((32, 32, 32), settings, "3d") == [32, 16, 8]
    assert autoencoder_depths((32, 32), settings, "2d") == []
    assert level_depths({"family": "unet", "size": "nano"}, (4, 8, 8)) == [4, 2]
    assert level_depths({"family": "unet", "size": "XS"}, (8, 8, 8)) == [8, 4, 2]
    assert level_depths({"family": "dit", "size": "XS"}, (8, 8, 8)) == []
    assert level_depths({"family": "unet", "size": "nano"}, (4, 4)) == []
