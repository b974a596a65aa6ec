"""A training in little memory, asked first and then carried out: a program of its own, since the limit stays.

Prints JSON: what `room_for_diffusion` says of the settings as they are, then of those that it advises, and whether two
steps of either training end well.
"""

import json
import re
import resource
import tempfile
from pathlib import Path

import psutil
import torch
from accelerate.state import AcceleratorState

from models.loop import Training, make_accelerator, train
from models.memory import denoising_loss
from models.networks.denoiser import build_denoiser
from models.room import room_for_diffusion

PLAN = {"model": "dit-nano", "family": "dit", "size": "nano", "spatial_dims": 3, "devices": 1}
LATENT, ROOM_BYTES = (4, 16, 16, 16), 0.25e9


def network_of(training):
    return build_denoiser(PLAN, LATENT[1:], LATENT[0], 2, training["activation_checkpointing"])


def asked(batch_size, training):
    try:
        room_for_diffusion(PLAN, {"batch_size": {"3d": batch_size}}, training, network_of(training), (100, *LATENT))
    except ValueError as error:
        return str(error)
    return ""


def trained(batch_size, training):
    """Two steps: in the second, the optimiser has its moments."""
    AcceleratorState._reset_state()
    length = Training(2 * batch_size, batch_size, learning_rate=1e-4, ema_decay=0.9, precision=training["precision"])
    loss = denoising_loss((batch_size, *LATENT))
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(training["precision"])
        path = Path(folder) / "checkpoint.pt"
        try:
            train(
                network_of(training), lambda network, *_: loss(network), 100, length, accelerator, path, "", "limited"
            )
        except (RuntimeError, MemoryError) as error:
            return str(error)
    return ""


def main():
    torch.set_num_threads(1)
    batch_size, training = 16, {"precision": "fp32", "activation_checkpointing": False}
    trained(1, training)  # libraries load what they need
    limit = psutil.Process().memory_info().vms + int(ROOM_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    said = asked(batch_size, training)
    advice = said.rpartition("would fit: ")[2]
    lean = {
        "precision": "bf16" if "training.precision: bf16" in advice else "fp32",
        "activation_checkpointing": "training.activation_checkpointing: true" in advice,
    }
    found = re.search(r"diffusion\.batch_size\.3d: (\d+)", advice)
    lean_batch = int(found[1]) if found else batch_size
    told = {"said": said, "said_of_advice": asked(lean_batch, lean), "advice_fails": trained(lean_batch, lean)}
    print(json.dumps(told | {"as_asked_fails": trained(batch_size, training)}))


if __name__ == "__main__":
    main()
