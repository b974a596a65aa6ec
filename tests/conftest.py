"""Every test that meters has a recorder of its own, and none of them a user's."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import cannot
from tests.standins import slurm


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="footprint-", dir="/tmp"))  # a socket's path has at most 107 bytes


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heeded() -> None:
    """A suite in the background, or behind nohup, has SIGINT or SIGHUP ignored, and so would the jobs of its tests."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _runtime_of_the_session() -> Iterator[None]:
    folder = _folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOOTPRINT_RUNTIME_DIR", str(folder))
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """For counters that must go on to the millisecond: a busy disk would hold their writer up."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path / "memory"
        return
    folder = Path(tempfile.mkdtemp(prefix="footprint-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def runtime_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where only the jobs of one test find each other."""
    folder = _folder()
    monkeypatch.setenv("FOOTPRINT_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm_packages() -> None:
    if missing := slurm.missing_packages():
        cannot(f"no SLURM here; on Debian: apt-get install {' '.join(missing)}")
