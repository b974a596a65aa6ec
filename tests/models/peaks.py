"""Peak memory as it really is, beside what is predicted: a program of its own, since a test's process has a past.

Prints JSON: by case, [measured, predicted] in bytes, both over what the process held before.
"""

import json
import resource
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from models.diffusion.sampling import make_scheduler, sample_latents
from models.loop import Training, make_accelerator, train
from models.memory import (
    RUNTIME_GB,
    Machine,
    denoising_loss,
    generation_memory,
    reconstruction_loss,
    training_memory,
)
from models.networks.autoencoder import build_autoencoder
from models.networks.denoiser import build_denoiser
from models.networks.vqgan import VQGAN, VQGANSize
from models.recompute import recompute_blocks
from models.streaming import Streamed, decoder_of

DIFFUSION = {"timesteps": 100, "noise_schedule": "cosine", "prediction": "v_prediction"}
RUNTIME_BYTES = 1e9 * RUNTIME_GB["cpu"]


def status(key):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith(key))


def measured(run):
    """Over what is resident before; Linux forgets the last high-water mark when told 5."""
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return status("VmHWM") - before


def training_of(build, loss):
    """Two steps of the real loop: in the second, the optimiser has its moments."""

    def run():
        AcceleratorState._reset_state()
        network = build()
        length = Training(images=2, batch_size=1, learning_rate=1e-4, ema_decay=0.9, precision="fp32")
        with tempfile.TemporaryDirectory() as folder:
            arguments = (length, make_accelerator("fp32"), Path(folder) / "checkpoint.pt", "", "peak")
            train(network, lambda denoiser, batch, noise: loss(denoiser), 2, *arguments)

    return run


@torch.inference_mode()
def generation_of(denoiser, decoder, latents, working_gb):
    """Two steps, then one volume."""
    network, decode = denoiser().eval(), decoder().eval()
    x = sample_latents(network, torch.randn(latents), make_scheduler("ddim", DIFFUSION), 2)
    return Streamed(decode, working_gb=working_gb)(x) if working_gb else decode(x)


def unet(size, side):
    return build_denoiser({"family": "unet", "size": size}, (side,) * 3, 8, 2)


def dit(size, side):
    return build_denoiser({"family": "dit", "size": size}, (side,) * 3, 8, 2)


def kl():
    return build_autoencoder(3, {"channels": {"3d": [16, 32]}, "latent_channels": {"3d": 4}})


def vq():
    return decoder_of(VQGAN(VQGANSize((32, 64), ((2, 2, 2),) * 2, codes=64)))


def cases(machine):
    """By name: what is run, what is predicted."""
    for name, build, loss in (
        ("train a U-Net", partial(unet, "nano", 20), denoising_loss((2, 8, 20, 20, 20))),
        ("train a U-Net, checkpointed", lambda: recompute_blocks(unet("nano", 20)), denoising_loss((2, 8, 20, 20, 20))),
        ("train a transformer", partial(dit, "XS", 16), denoising_loss((1, 8, 16, 16, 16))),
        ("train an autoencoder", kl, reconstruction_loss((1, 1, 40, 40, 40))),
    ):
        yield name, training_of(build, loss), partial(training_memory, build, loss, machine)
    latents = (1, 8, 24, 24, 24)
    for name, working_gb in (("generate, decode whole", None), ("generate, decode in slabs", 0.05)):
        given = partial(dit, "nano", 24), vq, latents, working_gb
        predicted = partial(generation_memory, given[0], latents, vq, latents, machine, working_gb)
        yield name, partial(generation_of, *given), predicted


def main():
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    machine = Machine("cpu", "fp32")
    training_of(partial(unet, "nano", 8), denoising_loss((1, 8, 8, 8, 8)))()  # libraries load what they need
    generation_of(partial(dit, "nano", 8), vq, (1, 8, 8, 8, 8), 0.05)
    wanted = [case for case in cases(machine) if len(sys.argv) < 2 or sys.argv[1] in case[0]]
    predicted = {name: predict().total_gb * 1e9 - RUNTIME_BYTES for name, _, predict in wanted}
    print(json.dumps({name: [measured(run), predicted[name]] for name, run, _ in wanted}))


if __name__ == "__main__":
    main()
