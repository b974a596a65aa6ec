import shutil
from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import VQVAE, AutoencoderKL
from torch import nn

from models.keeping import KeptInFile, KeptInMemory
from models.networks.autoencoder import build_autoencoder
from models.networks.vqgan import VQGAN, VQGANSize
from models.slabs import Convolution, Moments, NearestUpsampling, TransposedConvolution, ZeroPadding, clipped
from models.streaming import Streamed, decoder_of, encoder_of

TOLERANCE = 2e-6  # of the largest output: about ten layers of float32 rounding


def variational(channels=(8, 16, 16), groups=4, blocks=1, dims=3, transposed=False, attention=False):
    levels = len(channels)
    return random_weights(
        AutoencoderKL(
            dims,
            channels=channels,
            num_res_blocks=blocks,
            norm_num_groups=groups,
            latent_channels=4,
            attention_levels=(False,) * (levels - 1) + (attention,),
            with_encoder_nonlocal_attn=attention,
            with_decoder_nonlocal_attn=attention,
            use_convtranspose=transposed,
        )
    )


def random_weights(network):
    """Large enough that biases and far rows matter."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        nn.init.normal_(parameter, mean=0.5 if "norm" in name else 0.0, std=1.5 / fan**0.5)
    return network.eval()


NETWORKS = {
    "one level": lambda: variational((8,)),
    "two levels": lambda: variational((8, 12), groups=2, blocks=2),
    "three levels": lambda: variational(),
    "one group": lambda: variational(groups=1),
    "a group each": lambda: variational((8, 8), groups=8),
    "transposed convolutions": lambda: variational((8, 8, 16), transposed=True),
    "of the default study": lambda: random_weights(
        build_autoencoder(3, {"channels": {"3d": [4, 8, 8]}, "latent_channels": {"3d": 4}})
    ),
    "MONAI's VQ-VAE": lambda: random_weights(
        VQVAE(3, 1, 1, channels=(8, 16), num_res_layers=2, num_res_channels=(8, 16), embedding_dim=4,
              downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2)
    ),
    "VQ-GAN, time less compressed": lambda: random_weights(
        VQGAN(VQGANSize((8, 16), ((2, 2, 2), (2, 2, 1)), codes=8, code_channels=4))
    ),
}  # fmt: skip


def assert_same(streamed, whole):
    assert streamed.shape == whole.shape
    assert float((streamed - whole).abs().max()) <= TOLERANCE * float(whole.abs().max())


@torch.no_grad()
def encoded(network, images):
    latents = network.encode(images)
    return latents[0] if isinstance(latents, tuple) else latents


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_streamed_decoding_is_whole_decoding(name, axis, tmp_path):
    network, latents = NETWORKS[name](), torch.randn(1, 4, 5, 6, 7)
    with torch.no_grad():
        whole = network.decode(latents)
    for slab_rows, folder in ((3, None), (8, tmp_path)):
        assert_same(Streamed(decoder_of(network), axis, slab_rows, folder=folder)(latents), whole)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("axis", [0, 2])
def test_streamed_encoding_is_whole_encoding(name, axis):
    network, images = NETWORKS[name](), torch.randn(2, 1, 16, 8, 12)
    for slab_rows in (1, 3):
        assert_same(Streamed(encoder_of(network), axis, slab_rows)(images), encoded(network, images))


def test_slices_are_streamed_as_volumes_are():
    network, latents = variational(dims=2), torch.randn(3, 4, 9, 5)
    with torch.no_grad():
        assert_same(Streamed(decoder_of(network), 1, slab_rows=7)(latents), network.decode(latents))


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 60), st.integers(2, 15), st.sampled_from(("three levels", "MONAI's VQ-VAE")), st.integers(0, 2))
def test_any_height_of_slabs_gives_the_same(slab_rows, depth, name, axis):
    network = NETWORKS[name]()
    latents = torch.randn(1, 4, 3, 4, depth).movedim(4, 2 + axis)
    with torch.no_grad():
        assert_same(Streamed(decoder_of(network), axis, slab_rows)(latents), network.decode(latents))


class ShortHalo(KeptInMemory):
    """As if halos were a row too short below: the last row of a slab that does not end the volume is lost."""

    def read(self, rows, like):
        slab = super().read(rows, like)
        if rows[1] < self.tensor.shape[2 + self.axis]:
            slab.narrow(2 + self.axis, rows[1] - rows[0] - 1, 1).zero_()
        return slab


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 19), st.sampled_from(("three levels", "transposed convolutions", "MONAI's VQ-VAE")))
def test_halos_of_one_row_less_give_something_else(slab_rows, name):
    network, latents = NETWORKS[name](), torch.randn(1, 4, 12, 3, 4)
    with torch.no_grad():
        whole = network.decode(latents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.streaming.KeptInMemory", ShortHalo)
        short = Streamed(decoder_of(network), 0, slab_rows)(latents)
    assert float((short - whole).abs().max()) > 100 * TOLERANCE * float(whole.abs().max())


Case = namedtuple("Case", "layer on_slabs")


@st.composite
def layers(draw):
    """A layer of one axis, and the same on slabs."""
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, dilation * (kernel - 1)))
    kind = draw(st.sampled_from(("convolution", "transposed", "nearest", "padding")))
    if kind == "convolution":
        layer = nn.Conv1d(1, 1, kernel, stride, padding, dilation)
        return Case(layer, Convolution(layer, 0))
    if kind == "transposed":
        beyond = draw(st.integers(0, max(stride, dilation) - 1))
        padding = min(padding, dilation * (kernel - 1) + beyond)
        layer = nn.ConvTranspose1d(1, 1, kernel, stride, padding, beyond, dilation=dilation)
        return Case(layer, TransposedConvolution(layer, 0))
    if kind == "nearest":
        return Case(nn.Upsample(scale_factor=stride), NearestUpsampling([stride], 0))
    return Case(nn.ConstantPad1d((padding, stride), 0.0), ZeroPadding((padding, stride), 0, 1))


@settings(max_examples=150, deadline=None)
@given(layers(), st.integers(9, 14), st.data())
def test_a_layer_needs_the_rows_that_its_output_depends_on_and_no_other(case, size, data):
    """By the gradient of an output's rows: all weights are positive, so none cancels."""
    for parameter in case.layer.parameters():
        nn.init.constant_(parameter, 1.0)
    x = (1 + torch.rand(1, 1, size)).requires_grad_()
    whole = case.layer(x)
    first = data.draw(st.integers(0, whole.shape[2] - 1))
    rows = first, data.draw(st.integers(first + 1, whole.shape[2]))
    begin, end = clipped(case.on_slabs.needs(rows), size)
    part = case.on_slabs.run([x[..., begin:end].detach()], begin, size, rows)
    assert torch.allclose(part, whole[..., rows[0] : rows[1]], atol=1e-5)
    seen = torch.autograd.grad(whole[..., rows[0] : rows[1]].sum(), x)[0][0, 0].nonzero()[:, 0].tolist()
    if seen:
        assert begin <= seen[0] <= seen[-1] < end
    if seen and not gaps(case.layer):
        assert (begin, end) == (seen[0], seen[-1] + 1)


def gaps(layer):
    """Whether the rows that a kernel sees lie apart, so that the first or last of an interval may not be seen."""
    dilated = getattr(layer, "dilation", (1,))[0] > 1
    return dilated or (isinstance(layer, nn.ConvTranspose1d) and layer.kernel_size[0] < layer.stride[0])


def test_moments_of_rows_are_those_of_the_volume_far_from_zero():
    """A sum of squares in float32 would give nothing here: 1e4 squared has lost the unit variance."""
    x = 1e4 + torch.randn(2, 6, 9, 5, 4)
    moments = Moments(groups=3, axis=0)
    for slab in x.split((4, 1, 4), dim=2):
        moments.add(slab)
    mean, variance = moments.mean_and_variance()
    groups = x.double().view(2, 3, -1)
    assert torch.allclose(mean, groups.mean(2), rtol=1e-14)
    assert torch.allclose(variance, groups.var(2, correction=0), rtol=1e-10)


def test_statistics_are_of_this_volume_and_not_of_the_last():
    network, latents = variational(), torch.randn(2, 1, 4, 3, 4, 5)
    streamed = Streamed(decoder_of(network), slab_rows=4)
    streamed(100 + latents[0])
    with torch.no_grad():
        assert_same(streamed(latents[1]), network.decode(latents[1]))


def test_slabs_are_as_high_as_the_memory_allows():
    streamed = Streamed(decoder_of(variational()), working_gb=2e-4)
    plan = streamed.plan((1, 4, 16, 4, 4))
    assert plan.working_gb <= 2e-4
    for each in plan.passes:
        assert each.rows == each.size or streamed._working_bytes(each.target, 2 * each.rows, plan.shapes) > 2e5
    assert min(each.rows for each in plan.passes) < 64
    least_gb = streamed.least_gb((1, 4, 16, 4, 4))
    rows = [
        each.rows for each in Streamed(decoder_of(variational()), working_gb=least_gb).plan((1, 4, 16, 4, 4)).passes
    ]
    assert min(rows) == 1
    with pytest.raises(ValueError, match=r"working_gb: 1e-05 is too little, slabs of one row take \S+ GB$"):
        Streamed(decoder_of(variational()), working_gb=1e-5).plan((1, 4, 16, 4, 4))


def test_what_is_kept_is_what_the_plan_says(monkeypatch):
    sizes, most = {}, []

    class Counted(KeptInMemory):
        def __init__(self, tensor, axis):
            super().__init__(tensor, axis)
            sizes[self] = tensor.numel() * 4 if tensor.shape[1] > 4 else 0  # neither latents nor images
            most.append(sum(sizes.values()))

        def close(self):
            super().close()
            sizes.pop(self)

    monkeypatch.setattr("models.streaming.KeptInMemory", Counted)
    streamed = Streamed(decoder_of(variational()), slab_rows=8)
    streamed(torch.randn(1, 4, 4, 4, 4))
    assert max(most) == pytest.approx(1e9 * streamed.plan((1, 4, 4, 4, 4)).kept_gb)
    assert not sizes


def test_files_leave_nothing_and_half_precision_is_close(tmp_path):
    network, latents = variational(), torch.randn(1, 4, 5, 4, 4)
    with torch.no_grad():
        whole = network.decode(latents)
    kept = Streamed(decoder_of(network), slab_rows=5, folder=tmp_path, kept_as=torch.bfloat16)
    exact = Streamed(decoder_of(network), slab_rows=5, folder=tmp_path)
    difference = float((kept(latents) - whole).abs().max() / whole.abs().max())
    assert 1e-4 < difference < 5e-2
    assert kept.plan(latents.shape).kept_gb == exact.plan(latents.shape).kept_gb / 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_file_gives_back_what_it_was_given(axis, tmp_path):
    x = torch.randn(2, 3, 5, 7, 4)
    kept = KeptInFile(tuple(x.shape), torch.float32, axis, tmp_path)
    for rows in ((2, 5), (0, 2)):
        kept.write(rows, x.narrow(2 + axis, rows[0], rows[1] - rows[0]))
    assert torch.equal(kept.read((1, 4), x), x.narrow(2 + axis, 1, 3))
    kept.close()


class Shared(nn.Module):
    """Writes over what it reads once more."""

    def __init__(self):
        super().__init__()
        self.convolve, self.act = nn.Conv3d(1, 1, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.convolve(x)
        return x + self.act(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: decoder_of(variational(attention=True)), r"1\.blocks\.2 \(SpatialAttentionBlock\) cannot be run slab"),
        (lambda: decoder_of(variational().train()), "training mode; call eval"),
        (lambda: nn.Sequential(nn.Conv3d(1, 1, 3), nn.BatchNorm3d(1)).eval(), r"1 \(BatchNorm3d\) cannot be run slab"),
        (lambda: nn.Sequential(nn.Conv3d(1, 1, 3, padding_mode="reflect")).eval(), r"0 \(Conv3d\) cannot be run slab"),
        (lambda: nn.Sequential(nn.Conv3d(1, 1, 3), nn.Upsample(scale_factor=1.5)).eval(), r"1 \(Upsample\) cannot"),
        (lambda: nn.Sequential(nn.Conv3d(1, 1, 3), nn.Softmax(2)).eval(), r"1 \(Softmax\) cannot be run slab"),
        (lambda: Shared().eval(), "in place, which others read"),
        (lambda: nn.Sequential(nn.ReLU()).eval(), "no convolution"),
    ],
)
def test_what_cannot_be_streamed_is_refused_in_one_line(network, message):
    with pytest.raises(ValueError, match=message) as refused:
        Streamed(network())
    assert "\n" not in str(refused.value)


def test_bad_numbers_are_refused(tmp_path, monkeypatch):
    decoder = decoder_of(variational())
    with pytest.raises(ValueError, match="slab_rows: 0 is below 1"):
        Streamed(decoder, slab_rows=0)
    with pytest.raises(ValueError, match="axis: 3 is none of the 3 axes"):
        Streamed(decoder, axis=3)
    with pytest.raises(ValueError, match=r"an input of shape \(1, 5, 4, 4, 4\) does not fit the network"):
        Streamed(decoder)(torch.randn(1, 5, 4, 4, 4))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"0\.0 GB are free, streaming this volume takes"):
        Streamed(decoder, folder=tmp_path)(torch.randn(1, 4, 4, 4, 4))
