"""The project's own config and schema, for tests that start from them."""

import copy
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"


def default_config() -> dict[str, Any]:
    """config/config.yaml, a fresh copy at each call."""
    return copy.deepcopy(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
