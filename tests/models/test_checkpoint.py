import resource
import subprocess
import sys

import pytest
import torch

from models import checkpoint


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {"identity": "a", "weights": {"w": torch.arange(5.0)}, "losses": [(1, 0.5)]}
    checkpoint.save(state, tmp_path / "new" / "model.pt")
    loaded = checkpoint.load(tmp_path / "new" / "model.pt")
    assert torch.equal(loaded["weights"]["w"], state["weights"]["w"])
    assert loaded["losses"] == [(1, 0.5)]


def test_another_training_is_not_resumed(tmp_path):
    checkpoint.save({"identity": checkpoint.identity_of({"size": "nano"}, [4, 8])}, tmp_path / "c.pt")
    assert checkpoint.load_if_same(tmp_path / "c.pt", checkpoint.identity_of({"size": "nano"}, [4, 8])) is not None
    assert checkpoint.load_if_same(tmp_path / "c.pt", checkpoint.identity_of({"size": "tiny"}, [4, 8])) is None
    assert checkpoint.load_if_same(tmp_path / "none.pt", "any") is None


def test_a_truncated_file_is_named_and_training_starts_afresh(tmp_path, caplog):
    path = tmp_path / "c.pt"
    checkpoint.save({"identity": "a", "w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"c\.pt: not a readable checkpoint"):
        checkpoint.load(path)
    assert checkpoint.load_if_same(path, "a") is None
    assert "c.pt" in caplog.text


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save({"old": True}, path)
    script = (
        "import resource, signal, sys, torch\n"
        "from models import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))\n"
        "try:\n"
        "    checkpoint.save({'w': torch.zeros(100_000)}, sys.argv[1])\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True).stdout
    assert "model.pt" in told
    assert checkpoint.load(path) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
