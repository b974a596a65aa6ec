"""Where a job's words go: everything to its log file, warnings and one line per failure to the terminal."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JobLog:
    """Root logging of one job: INFO and above to `path`, WARNING and above to stderr too.

    `close()` undoes it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._root = logging.getLogger()
        self._level = self._root.level
        self._handlers: list[logging.Handler] = []
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        # warnings of libraries (deprecations and the like) are for the log, not for the user's terminal
        terminal.addFilter(lambda record: record.name != "py.warnings")
        self._add(terminal)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(path, mode="w", encoding="utf-8")
            formatter = logging.Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%SZ")
            formatter.converter = time.gmtime
            file.setFormatter(formatter)
            self._add(file)
        self._root.setLevel(logging.INFO)
        logging.captureWarnings(True)

    def _add(self, handler: logging.Handler) -> None:
        self._handlers.append(handler)
        self._root.addHandler(handler)

    def tell(self, line: str) -> None:
        """One line on stderr and in the log, so that whoever watches sees the study go on."""
        sys.stderr.write(f"{line}\n")
        logging.getLogger(__name__).info(line)

    def failure(self, name: str, error: BaseException) -> None:
        """One line on stderr; the traceback in the log (in the line's place where there is no log)."""
        if self.path is None:
            sys.stderr.write(f"error: {name}: {message_of(error)}\n")
            return
        sys.stderr.write(f"error: {name}: {message_of(error)} (traceback in {self.path})\n")
        try:
            with self.path.open("a", encoding="utf-8") as log:
                traceback.print_exception(error, file=log)
        except OSError:
            traceback.print_exception(error, file=sys.stderr)  # a full disk: the terminal is all there is

    def close(self) -> None:
        logging.captureWarnings(False)
        self._root.setLevel(self._level)
        for handler in self._handlers:
            self._root.removeHandler(handler)
            handler.close()


def message_of(error: BaseException) -> str:
    """One line: the message of errors meant for users, with the type before it for other exceptions."""
    text = " ".join(str(error).split())
    if text and (isinstance(error, (ValueError, OSError)) or not isinstance(error, Exception)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def log_path(snakemake: Any) -> Path | None:
    """The job's first log file, if its rule declares one."""
    return Path(str(snakemake.log[0])) if len(snakemake.log) else None
