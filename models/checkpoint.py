"""Checkpoints: what a training needs to go on, and what a trained network needs to be used."""

import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import torch

from models.files import atomic_path

logger = logging.getLogger(__name__)


def identity_of(*parts: Any) -> str:
    """Digest of everything a training depends on: plan row, settings, data. Another identity is another training."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def save(state: dict[str, Any], path: str | Path) -> None:
    """Write a state, whole or not at all.

    Raises:
        OSError: naming the file, for instance when the disk is full.
    """
    buffer = io.BytesIO()  # torch.save turns a full disk into a RuntimeError that names no file
    torch.save(state, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: str | Path) -> dict[str, Any]:
    """Read a state onto the CPU; nothing in the file is executed.

    Raises:
        ValueError: naming the file, if it is not a readable checkpoint.
        FileNotFoundError: if there is none.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); delete it to start afresh"
        ) from error
    return state


def load_if_same(path: str | Path, identity: str) -> dict[str, Any] | None:
    """The state of an interrupted training with this identity, or None, which is logged where a file is passed over."""
    if not Path(path).exists():
        return None
    try:
        state = load(path)
    except ValueError as error:
        logger.warning("%s; training starts afresh", error)
        return None
    if state.get("identity") != identity:
        logger.info("%s belongs to other settings; training starts afresh", path)
        return None
    return state
