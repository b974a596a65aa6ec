import math

import pytest
import torch

from models.diffusion.process import ForwardProcess
from models.diffusion.samplers import SAMPLERS, samplers_for
from models.diffusion.sampling import make_scheduler, sample_latents

PREDICTIONS = ["epsilon", "v_prediction", "flow"]


def settings(prediction="v_prediction", noise_schedule="cosine", timesteps=300):
    return {"timesteps": timesteps, "noise_schedule": noise_schedule, "prediction": prediction}


class Exact(torch.nn.Module):
    """The best possible denoiser of data that is normal with mean m and deviation s: it knows them.

    With x_t = a x + b n, the expected clean latent is m + a s^2 / (a^2 s^2 + b^2) (x_t - a m).
    """

    def __init__(self, config, mean, deviation):
        super().__init__()
        self.config, self.mean, self.deviation = config, mean, deviation
        self.alphas = None if config["prediction"] == "flow" else make_scheduler("ddpm", config).alphas_cumprod

    def forward(self, x, t):
        if self.alphas is None:
            b = (t / self.config["timesteps"]).double()
            a = 1 - b
        else:
            a, b = self.alphas[t.long()].double().sqrt(), (1 - self.alphas[t.long()].double()).sqrt()
        a, b = (part.view(-1, *(1,) * (x.ndim - 1)) for part in (a, b))
        variance = self.deviation**2
        clean = self.mean + a * variance / (a**2 * variance + b**2) * (x - a * self.mean)
        noise = (x - a * clean) / b.clamp(min=1e-6)
        if self.config["prediction"] == "epsilon":
            return noise.to(x.dtype)
        return (noise - clean if self.config["prediction"] == "flow" else a * noise - b * clean).to(x.dtype)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_noise_is_added_and_the_target_gives_the_clean_latent_back(prediction, dims):
    process = ForwardProcess(settings(prediction))
    x, noise = torch.randn(2, 4, 3, *(4,) * dims).double()
    t = process.draw_times(4, torch.Generator().manual_seed(0), torch.device("cpu"))
    noisy, target = process.add_noise(x, noise, t), process.target(x, noise, t)
    if prediction == "epsilon":
        assert torch.equal(target, noise)
        return
    if prediction == "flow":
        clean = noisy - (t / 300).view(-1, *(1,) * (x.ndim - 1)) * target
    else:
        a = process.scheduler.alphas_cumprod[t].double().view(-1, *(1,) * (x.ndim - 1))
        clean = a.sqrt() * noisy - (1 - a).sqrt() * target
    assert torch.allclose(clean, x, atol=1e-5)


def test_the_cosine_schedule_is_that_of_its_paper():
    """Nichol and Dhariwal 2021, equation 17, with s = 0.008; the last steps are clipped there too."""
    alphas = ForwardProcess(settings()).scheduler.alphas_cumprod
    f = [math.cos((i / 300 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(301)]
    expected = torch.tensor([f[i + 1] / f[0] for i in range(290)])
    assert torch.allclose(alphas[:290], expected, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(8, 8), (4, 4, 4)])
def test_every_sampler_draws_from_the_data_when_the_denoiser_is_exact(prediction, sampler, shape):
    if sampler not in samplers_for(prediction):
        with pytest.raises(StopIteration):
            next(name for name in samplers_for(prediction) if name == sampler)
        return
    config = settings(prediction)
    noise = torch.randn(512, 2, *shape, generator=torch.Generator().manual_seed(1))
    steps = 100 if sampler == "ddpm" else 50
    with torch.inference_mode():
        x = sample_latents(
            Exact(config, 1.5, 0.5), noise, make_scheduler(sampler, config), steps, torch.Generator().manual_seed(2)
        )
    assert x.shape == noise.shape
    assert x.mean() == pytest.approx(1.5, abs=0.03)
    assert x.std() == pytest.approx(0.5, rel=0.08)


def test_latents_beyond_one_are_not_clipped():
    config = settings()
    noise = torch.randn(64, 1, 4, 4)
    for sampler in ("ddpm", "ddim"):
        x = sample_latents(Exact(config, 5.0, 0.1), noise, make_scheduler(sampler, config), 20)
        assert x.mean() == pytest.approx(5.0, abs=0.1)


def test_the_callback_sees_every_pass():
    config, seen = settings(), []
    scheduler = make_scheduler("ddim", config)
    x = torch.randn(1, 1, 4, 4)
    sample_latents(Exact(config, 0.0, 1.0), x, scheduler, 6, callback=lambda passes, x: seen.append(passes))
    assert seen == list(range(1, 7))
