"""What only some tests need of a machine."""

import os
from typing import NoReturn

import pytest


def cannot(message: str) -> NoReturn:
    """A newcomer may do without these tests; the project may not."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
