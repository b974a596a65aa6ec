"""Control of a running training from outside: a small file that says run, pause or stop."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
STATES = ("run", "pause", "stop")


class StoppedError(ValueError):
    """A training was told to stop; its checkpoint is written and it can be resumed."""


class LeftError(Exception):
    """One of several processes of a training leaves, with a checkpoint, for whoever started them to wait."""


class Control:
    """What a control file asks for: JSON with `state` (run, pause, stop) and, for stop, `reason`; absent: run."""

    def __init__(
        self,
        path: str | Path,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """The clock and the sleep are in seconds."""
        self.path, self.clock, self.sleep = Path(path), clock, sleep
        self.looked: float | None = None

    def read(self) -> tuple[str, str]:
        """State and reason.

        Raises:
            ValueError: naming the file, if it holds no known state.
        """
        try:
            told = json.loads(self.path.read_text())
        except FileNotFoundError:
            return "run", ""
        except ValueError as error:
            raise ValueError(f"{self.path}: not a readable control file") from error
        if not isinstance(told, dict) or told.get("state") not in STATES:
            raise ValueError(f"{self.path}: state has to be one of {', '.join(STATES)}")
        return told["state"], str(told.get("reason", ""))

    def obey(self, name: str, save: Callable[[], None]) -> None:
        """Go on, or write a checkpoint and wait or stop; looks at the file at most once in LOOK_EVERY_S.

        Raises:
            StoppedError: if told to stop, after the checkpoint is written.
            ValueError: from `read`.
        """
        now = self.clock()
        if self.looked is not None and now - self.looked < LOOK_EVERY_S:
            return
        self.looked = now
        if self.read()[0] == "run":
            return
        save()
        self.wait(name)
        self.looked = self.clock()

    @property
    def left_path(self) -> Path:
        """There when the processes of a training have left with a checkpoint, as they were told."""
        return self.path.with_suffix(".left")

    def wait(self, name: str) -> None:
        """With a checkpoint written: until the training may go on.

        Raises:
            StoppedError: if told to stop.
            ValueError: from `read`.
        """
        logger.info("%s pauses or stops; its checkpoint is written", name)
        while (told := self.read())[0] == "pause":
            self.sleep(LOOK_EVERY_S)
        if told[0] == "stop":
            raise StoppedError(f"{name}: stopped ({told[1] or 'no reason given'}); resumes with `make study`")
        logger.info("%s goes on", name)


def control_of(path: str | Path | None) -> Control | None:
    """What a training obeys; None where nobody controls it."""
    return None if path is None else Control(path)
