"""A training that is paused or stopped from outside ends with the weights of an uninterrupted one."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.control import Control, StoppedError
from models.loop import Training, make_accelerator, train


def run(path: Path, control: Control | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    data = torch.randn(16, 3)

    def loss(network: nn.Module, batch: Tensor, noise: torch.Generator) -> Tensor:
        return (network(data[batch]) - torch.randn(len(batch), 1, generator=noise)).square().mean()

    settings = Training(images=40, batch_size=4, learning_rate=0.01, ema_decay=0.9, precision="fp32")
    done = train(nn.Linear(3, 1), loss, 16, settings, make_accelerator("fp32"), path, "same", "toy", control)
    return done.network.state_dict()


ticks = itertools.count(0.0, 2.0).__next__  # a clock on which every look is due


def test_a_pause_writes_a_checkpoint_and_changes_no_weight(tmp_path: Path) -> None:
    file = tmp_path / "control.json"
    saved: list[bool] = []
    file.write_text(json.dumps({"state": "pause"}))

    def sleep(seconds: float) -> None:
        saved.append((tmp_path / "a.pt").exists())
        if len(saved) == 3:
            file.write_text(json.dumps({"state": "run"}))

    paused = run(tmp_path / "a.pt", Control(file, ticks, sleep))
    assert saved == [True, True, True]
    torch.testing.assert_close(paused, run(tmp_path / "b.pt"), rtol=0, atol=0)


def test_a_stopped_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    file = tmp_path / "control.json"
    file.write_text(json.dumps({"state": "stop", "reason": "budget of 1 kWh"}))
    with pytest.raises(StoppedError, match="budget of 1 kWh"):
        run(tmp_path / "a.pt", Control(file))
    assert torch.load(tmp_path / "a.pt", weights_only=True)["images_seen"] == 4
    file.unlink()
    torch.testing.assert_close(run(tmp_path / "a.pt", Control(file)), run(tmp_path / "b.pt"), rtol=0, atol=0)


@pytest.mark.parametrize("text", ["", "[]", '{"state": "halt"}'])
def test_an_unreadable_control_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "control.json").write_text(text)
    with pytest.raises(ValueError, match=r"control\.json"):
        Control(tmp_path / "control.json").read()
