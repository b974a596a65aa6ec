"""Other recorders of this user on the node: of another allocation of the cluster, another container, another library.

They read the same hardware, so each must know what the others' jobs hold. Every recorder posts a notice in the folder
where the node's jobs meet, and holds a lock on it as long as it lives. What changes between two readings of one is
seen at its next: to rounding, shares add up within a recorder, and to one reading between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Holdings:
    """What jobs hold of a node."""

    gpus: Counter[str] = field(default_factory=Counter)  # UUID -> how many hold it
    leased: Counter[str] = field(default_factory=Counter)  # how many of them by lease
    usable: float = 0.0  # the share of the CPUs that they may use


class NoticeBoard:
    """One recorder's notice, and those of the others. A folder that refuses is a board where nobody else is seen."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._descriptor = -1
        if folder is not None:
            path = folder / f"{uuid.uuid4().hex}.notice"  # pids may be the same in two containers
            with contextlib.suppress(OSError):
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._path = path

    def post(self, holdings: Holdings) -> None:
        """Say what the jobs of this recorder hold from now on."""
        if self._path is None:
            return
        text = json.dumps({"gpus": holdings.gpus, "leased": holdings.leased, "usable": holdings.usable}).encode()
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))

    def others(self) -> Holdings:
        """What the jobs of all other recorders hold together."""
        total = Holdings()
        if self._folder is None:
            return total
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):  # noqa: PTH208 - a third of the time
                if name.endswith(".notice") and (self._path is None or name != self._path.name):
                    _add(total, self._folder / name)
        return total

    def close(self) -> None:
        """Take the notice down."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._path = None


def _add(total: Holdings, path: Path) -> None:
    """Add a notice; one whose recorder is gone is taken down."""
    with contextlib.suppress(OSError, ValueError, KeyError), path.open("rb") as notice:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(notice, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink()
            return
        said: Mapping[str, dict[str, int]] = json.loads(notice.read())  # half a text is no JSON: seen the next time
        total.gpus.update(said["gpus"])
        total.leased.update(said["leased"])
        total.usable += float(said["usable"])  # type: ignore[arg-type]
