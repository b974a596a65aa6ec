"""A job's end of the line to its node's recorder: open a window, close it, say goodbye."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emissions.attempt_file import read_attempt, record_of
from emissions.meeting import START_S, connected
from emissions.meters import MeterSettings
from emissions.records import Record, append_journal
from emissions.signals import signals_for_the_main_thread

logger = logging.getLogger(__name__)

REPLY_S = 15.0
TRIES = 3

_leaving: list[Session] = []  # of this process: closed, and to be told that it ends well


class RecorderLostError(Exception):
    """The recorder does not answer."""


@dataclass(frozen=True)
class Closed:
    """A closed window: the attempt's record, CodeCarbon's row of figures, and the file with the trace."""

    record: Record
    codecarbon: dict[str, Any] | None
    file: Path | None


class Session:
    """One job's connection to the recorder of its node. Raises `RecorderLostError` only on making it."""

    def __init__(self, settings: MeterSettings) -> None:
        say_goodbye()
        self.settings = settings
        self._buffer = b""
        self._file: Path | None = None
        self._job: Mapping[str, Any] = {}
        self._lost = False
        self._pid = os.getpid()
        self._socket, hello = self._greeted()
        self.gpus: list[dict[str, Any]] = hello["gpus"]
        self.warnings: list[str] = []
        theirs, ours = hello["settings"], settings.to_dict()
        others = {key: value for key, value in theirs.items() if key != "codecarbon" and value != ours.get(key)}
        if others:
            self.warnings.append(f"another job has started this node's recorder, whose settings hold: {others}")

    def _greeted(self) -> tuple[socket.socket, dict[str, Any]]:
        for _ in range(TRIES):
            try:
                self._socket = connected(self.settings)
                return self._socket, self._ask("hello", START_S)
            except TimeoutError as error:
                logger.info("no recorder came up (%s)", error)
                break
            except (OSError, RecorderLostError) as error:  # it may have been about to leave
                logger.info("the recorder did not answer (%s)", error)
        logger.warning("no recorder can be started beside this job; it is metered from inside")
        self._socket = _inside_this_process(self.settings)
        return self._socket, self._ask("hello", START_S)

    def open(self, job: Mapping[str, Any]) -> str:
        """Open the window of an attempt at `job`, and return the attempt's id."""
        self._job = job
        try:
            reply = self._ask("open", REPLY_S, job=job)
        except (OSError, RecorderLostError):
            logger.warning("the recorder is gone; this job is metered from inside")
            self._socket, self._buffer = _inside_this_process(self.settings), b""
            reply = self._ask("open", REPLY_S, job=job)
        self._file = Path(reply["file"]) if reply["file"] else None
        return str(reply["attempt_id"])

    @property
    def file(self) -> Path | None:
        """The attempt's file, while its window is open; None where none can be written."""
        return self._file

    def close(self, outcome: str, work: Mapping[str, Any]) -> Closed:
        """End the window and take the record. If the recorder is gone, it is made from the attempt's file."""
        try:
            reply = self._ask("close", REPLY_S, outcome=outcome, work=work, warnings=self.warnings)
            return Closed(reply["record"], reply["codecarbon"], self._file)
        except (OSError, RecorderLostError):
            logger.info("the recorder is gone", exc_info=True)
            self._lost = True
        if self._file is None:
            raise RecorderLostError("the recorder is gone, and no trace of this attempt is on disk")
        attempt = read_attempt(self._file)
        gone = f"the recorder was gone when the job ended; energy after {attempt.totals.t_s:.0f} s is missing"
        warnings = [*attempt.warnings, *self.warnings, gone]
        return Closed(
            record_of(attempt.header, attempt.totals, outcome=outcome, work=work, warnings=warnings), None, self._file
        )

    def saved(self, outcome: str, record: Record, *, keep_trace: bool, final: bool = False) -> str:
        """Say how the attempt ended after all its files were written, for the journal; returns a problem or "".

        Unless `final`, an end of the process without goodbye (SIGKILL on its way out) still makes it "killed".
        """
        try:
            if not self._lost:
                reply = self._ask("saved", REPLY_S, outcome=outcome, keep_trace=keep_trace)
                if final:
                    self.goodbye()
                else:
                    _leaving.append(self)
                return str(reply["problem"])
        except (OSError, RecorderLostError):
            logger.info("the recorder is gone", exc_info=True)
        record = record | {"outcome": outcome, "wasted_kwh": 0.0 if outcome == "ok" else record["energy_kwh"]}
        try:
            append_journal(Path(self._job["journal"]), record, once=True)
        except (OSError, ValueError) as error:
            return f"this attempt is not in the journal yet: {error}"
        if self._file is not None and not keep_trace:
            self._file.unlink(missing_ok=True)
        return ""

    def goodbye(self) -> None:
        """This process goes on, or ends by itself: nothing is left to be recorded of the attempt."""
        if os.getpid() == self._pid:  # a forked child ends without a word
            with contextlib.suppress(OSError):
                self._socket.sendall(b'{"say":"bye"}\n')
                self._socket.close()

    def _ask(self, say: str, timeout_s: float, **message: Any) -> dict[str, Any]:
        self._socket.settimeout(timeout_s)
        self._socket.sendall(json.dumps({"say": say, **message}).encode() + b"\n")
        while b"\n" not in self._buffer:
            chunk = self._socket.recv(1 << 16)
            if not chunk:
                raise RecorderLostError(f"no answer to {say}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


@atexit.register
def say_goodbye() -> None:
    """Tell the recorder that the attempts of this process that have ended did so for good."""
    while _leaving:
        _leaving.pop().goodbye()


def _inside_this_process(settings: MeterSettings) -> socket.socket:
    """A recorder in a thread, where no process can be started: it meters as well, but does not outlive the job."""
    from emissions.node import Node
    from emissions.recorder import Recorder
    from emissions.sensors import Sensors

    ours, its = socket.socketpair()
    recorder = Recorder(settings, Node(settings, Sensors(settings, own_process=False)))
    recorder.attach(its)
    with signals_for_the_main_thread():
        threading.Thread(target=recorder.run, name="recorder", daemon=True).start()
    return ours
