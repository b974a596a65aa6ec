"""The recorder: one small process on a node that meters every job there, and outlives each of them.

Jobs attach through a Unix socket (`emissions.client`) and say when their window opens and closes. All meters are
read together, at a fixed interval and whenever a window opens or closes, and what they counted is divided between
the jobs (`emissions.node`). Each attempt grows a file (`emissions.attempt_file`); a job that is gone without a word
is in the journal as killed. The recorder leaves when the last job has.

No failure of a meter, a disk or a client ends it: each becomes a warning of the attempts it touches.

    python -m emissions.recorder SOCKET SETTINGS     settings: `MeterSettings` as JSON
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emissions.attempt_file import record_of
from emissions.beside import CodeCarbonBeside
from emissions.meters import MeterSettings
from emissions.meters.model import ModelCpuMeter
from emissions.meters.ram import default_ram_w
from emissions.node import Node, OpenAttempt
from emissions.records import Record, append_journal

logger = logging.getLogger(__name__)

LINGER_S = 0.3  # without a job, before it leaves: a job may be about to attach
CODECARBON_S = 3.0  # how long a closing attempt waits for CodeCarbon's figures
MOST_S = 3600.0  # JSON knows no infinity


class Job:
    """One client: its connection, the attempt it has open, and CodeCarbon beside it."""

    def __init__(self, connection: socket.socket | None) -> None:
        self.connection = connection
        self.buffer = b""
        self.attempt: OpenAttempt | None = None
        self.codecarbon: CodeCarbonBeside | None = None
        self.pidfd = -1
        self.ending: dict[str, Any] | None = None  # what the job said at its end
        self.outcome = ""  # why it is being ended, once it is
        self.deadline_s = float("inf")
        self.record: Record | None = None
        self.saved = False  # its outcome is in the journal; what may still happen is that it is killed on its way out

    def used(self) -> tuple[float, float, float]:
        """Seconds, joules of the node's CPU and of this job's GPUs since its window opened."""
        assert self.attempt is not None
        gpus_j = sum(held.whole_j for held in self.attempt.gpus.values())
        return self.attempt.totals.t_s, self.attempt.node_cpu_j, gpus_j

    def reply(self, message: Mapping[str, Any]) -> None:
        """Answer, if anyone is there to hear it."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.sendall(json.dumps(message).encode() + b"\n")


class Recorder:
    """The event loop. Handlers are short; nothing in them waits."""

    def __init__(self, settings: MeterSettings, node: Node | None = None) -> None:
        self.settings = settings
        self.node = node or Node(settings)
        self.jobs: list[Job] = []
        self._selector = selectors.DefaultSelector()
        self._due_s = time.monotonic() + settings.interval_s
        self._touch_s = min(self.node.sensors.longest_gap_s, settings.interval_s)
        self._alone_since_s = time.monotonic()
        self._listener: socket.socket | None = None
        self._ending: list[CodeCarbonBeside] = []  # which have told what they had to
        # it sees no simulated hardware, and inside a job it would pass for the job's own
        self.may_run_codecarbon = not settings.simulated and self.node.sensors.is_own_process

    def listen(self, listener: socket.socket) -> None:
        """Take jobs from a listening socket."""
        listener.setblocking(False)
        self._listener = listener
        self._watch(listener, self._accept)

    def attach(self, connection: socket.socket) -> None:
        """Take one job that is connected already."""
        job = Job(connection)
        self.jobs.append(job)
        connection.setblocking(False)
        self._watch(connection, lambda: self._hear(job))

    def run(self) -> None:
        """Meter until no job has been there for a while, then see off those that are still on their way out."""
        while time.monotonic() - self._alone_since_s < LINGER_S:
            for key, _ in self._selector.select(self._wait_s()):
                self._guarded(key.data)
            self._guarded(self._on_time)
            if not all(job.saved for job in self.jobs):
                self._alone_since_s = time.monotonic()
        self.leave()
        while self.jobs:
            for key, _ in self._selector.select():
                self._guarded(key.data)

    def leave(self) -> None:
        """Take no more jobs, and let go of the hardware."""
        if self._listener is not None:
            self._unwatch(self._listener)
            path = self._listener.getsockname()
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - a socket's name is no Path
            self._listener.close()
        self.node.leave()

    def _wait_s(self) -> float:
        if all(job.saved for job in self.jobs):
            return LINGER_S / 3
        deadline_s = min(self._due_s, *(job.deadline_s for job in self.jobs))
        return max(min(deadline_s - time.monotonic(), self._touch_s), 0.0)

    def _on_time(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self.node.read()
            self.node.write_rows()
            interval_s = self.settings.interval_s
            self._due_s += interval_s * (1 + (now_s - self._due_s) // interval_s)  # a late reading moves no other
        else:
            self.node.sensors.touch()
        for job in [job for job in self.jobs if now_s >= job.deadline_s]:
            self._give_up_waiting(job)
        self._ending = [beside for beside in self._ending if not beside.has_ended()]

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # one job's trouble is not another's
            logger.exception("the recorder goes on after an error")

    def _watch(self, source: Any, act: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _unwatch(self, source: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        self.attach(connection)

    # --- what a client says

    def _hear(self, job: Job) -> None:
        assert job.connection is not None
        try:
            chunk = job.connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._hung_up(job)
            return
        job.buffer += chunk
        *lines, job.buffer = job.buffer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            handler = {
                "hello": self._hello,
                "open": self._open,
                "close": self._close,
                "saved": self._saved,
                "bye": self._bye,
            }
            handler[message["say"]](job, message)

    def _hello(self, job: Job, message: Mapping[str, Any]) -> None:
        job.reply({"pid": os.getpid(), "gpus": self.node.gpus(), "settings": self.settings.to_dict()})

    def _open(self, job: Job, message: Mapping[str, Any]) -> None:
        job.attempt = self.node.open(message["job"])
        header = job.attempt.header
        with contextlib.suppress(AttributeError, OSError):  # kernels before 5.3, other systems
            job.pidfd = os.pidfd_open(header["pid"])
            self._watch(job.pidfd, lambda: self._process_ended(job))
        job.reply({"attempt_id": header["attempt_id"], "file": str(job.attempt.file.path or "")})
        if header["codecarbon"] and self.may_run_codecarbon:
            self._start_codecarbon(job)

    def _start_codecarbon(self, job: Job) -> None:
        assert job.attempt is not None
        cpu = self.node.sensors.meters.cpu
        beside = {
            "ram_w": self.settings.ram_w or default_ram_w(),
            "cpu_tdp_w": cpu.tdp_w if isinstance(cpu, ModelCpuMeter) else None,
            "gpu_indices": [gpu["index"] for gpu in job.attempt.header["gpus"]],
            "longest_gap_s": min(cpu.longest_gap_s, MOST_S),
        }
        try:
            job.codecarbon = CodeCarbonBeside(beside)
        except OSError as error:
            job.attempt.warn(f"CodeCarbon did not start ({error})")
            return
        self._watch(job.codecarbon.output, lambda: self._codecarbon_says(job))

    def _close(self, job: Job, message: Mapping[str, Any]) -> None:
        """The job's window ends; its record goes to the job, whose word is awaited before it is in the journal."""
        job.ending = dict(message)
        self._end_window(job, message["outcome"])

    def _saved(self, job: Job, message: Mapping[str, Any]) -> None:
        """The job has written what it wanted, or could not: its outcome is final."""
        assert job.record is not None and job.attempt is not None
        outcome = message["outcome"]
        problem = self._journal(job, outcome)
        if not problem:
            job.attempt.file.write({"end": outcome})
        job.attempt.file.close(remove=not problem and not message["keep_trace"])
        job.saved = True
        job.reply({"problem": problem})

    def _bye(self, job: Job, message: Mapping[str, Any]) -> None:
        """The job's process ends by itself, or goes on with something else."""
        if job.attempt is not None and not job.outcome:
            self._end_window(job, "killed")  # it left without closing its window
        else:
            self._forget(job)

    # --- what happens to a job

    def _hung_up(self, job: Job) -> None:
        """The connection is closed. Only the end of the process is an end: a careless fork may close it too."""
        assert job.connection is not None
        self._unwatch(job.connection)
        job.connection.close()
        job.connection = None
        if job.attempt is None:
            self._forget(job)
        elif job.pidfd < 0:
            self._process_ended(job)

    def _process_ended(self, job: Job) -> None:
        if job.pidfd >= 0:
            self._unwatch(job.pidfd)
        if not job.outcome:
            self._end_window(job, "killed")
            return
        job.outcome = "killed"  # after the end of its window: whoever waits for its files will not find them whole
        if job.record is not None:
            self._bury(job)

    def _end_window(self, job: Job, outcome: str) -> None:
        assert job.attempt is not None
        job.outcome = outcome
        self.node.close(job.attempt)
        if job.codecarbon is not None and not job.codecarbon.done:
            job.codecarbon.stop(job.used())
            job.deadline_s = time.monotonic() + CODECARBON_S
        self._settle_if_known(job)

    def _codecarbon_says(self, job: Job) -> None:
        assert job.codecarbon is not None
        if not job.codecarbon.running:
            self.node.read()  # its window opens now
        job.codecarbon.read(job.used())
        self._settle_if_known(job)

    def _give_up_waiting(self, job: Job) -> None:
        assert job.codecarbon is not None
        job.codecarbon.give_up(CODECARBON_S)
        self._settle_if_known(job)

    def _settle_if_known(self, job: Job) -> None:
        beside = job.codecarbon
        if beside is not None and beside.done and beside.output >= 0:
            self._unwatch(beside.output)
            beside.close()
            self._ending.append(beside)
        if job.outcome and (beside is None or beside.done):
            self._settle(job)

    def _settle(self, job: Job) -> None:
        """Everything is known: make the record, and give it to the job, or to the journal if there is none left."""
        attempt, ending = job.attempt, job.ending or {}
        assert attempt is not None
        job.deadline_s = float("inf")
        result = None
        if job.codecarbon is not None:
            result = job.codecarbon.result
            attempt.totals.codecarbon_node_j = job.codecarbon.node_j()
            for text in (*job.codecarbon.warnings, *job.codecarbon.disagreements()):
                attempt.warn(text)
        job.record = record_of(
            attempt.header,
            attempt.totals,
            outcome=job.outcome,
            work=ending.get("work"),
            codecarbon=result,
            warnings=[*attempt.warnings, *ending.get("warnings", ())],
        )
        if job.outcome == "killed":
            self._bury(job)
        else:
            job.reply({"record": job.record, "codecarbon": result})

    def _bury(self, job: Job) -> None:
        """The job is gone: its attempt is in the journal, and its trace stays."""
        assert job.attempt is not None
        if not self._journal(job, "killed"):
            job.attempt.file.write({"end": "killed"})
        job.attempt.file.close(remove=False)
        self._forget(job)

    def _journal(self, job: Job, outcome: str) -> str:
        """Append to the journal; a problem is told, and the attempt's file then stays for the next collection."""
        assert job.record is not None and job.attempt is not None
        record = job.record | {"outcome": outcome, "wasted_kwh": 0.0 if outcome == "ok" else job.record["energy_kwh"]}
        try:
            append_journal(Path(job.attempt.header["journal"]), record)
        except (OSError, ValueError) as error:
            logger.exception("an attempt is not in the journal")
            job.attempt.file.write({"record": record})
            return f"this attempt is not in the journal yet: {error}"
        return ""

    def _forget(self, job: Job) -> None:
        if job in self.jobs:
            self.jobs.remove(job)
        if job.connection is not None:
            self._unwatch(job.connection)
            job.connection.close()
        if job.pidfd >= 0:
            self._unwatch(job.pidfd)
            os.close(job.pidfd)
            job.pidfd = -1


def main(argv: list[str]) -> int:
    """Serve the jobs of this node at the socket `argv[0]`, with the settings `argv[1]`."""
    path, settings = Path(argv[0]), MeterSettings(**json.loads(argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a scheduler signals the whole job; how that ends is to be recorded
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    path.unlink(missing_ok=True)  # of a recorder that is gone: whoever starts one holds the lock
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    recorder = Recorder(settings, Node(settings, folder=path.parent))
    recorder.listen(listener)
    recorder.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
