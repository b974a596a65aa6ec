from pathlib import Path

import pytest

from tests.emissions.live import server as grid_server  # noqa: F401 - a fixture
from tests.workflow.snake import snakemake


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole tiny study, run once for all tests, on the real images."""
    folder = tmp_path_factory.mktemp("tiny")
    finished = snakemake(folder)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return folder
