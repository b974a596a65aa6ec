"""A job's end of the line to its node's recorder: find it or start it, open a window, close it, say goodbye.

The recorder is one per node and user. It belongs to no job: it is started in a session of its own, so that neither
Ctrl-C nor the end of the job that started it ends it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emissions.attempt_file import read_attempt, record_of
from emissions.meters import MeterSettings
from emissions.processes import age_s, started
from emissions.records import Record, append_journal
from emissions.signals import signals_for_the_main_thread

logger = logging.getLogger(__name__)

START_S = 10.0  # how long a recorder may take to answer for the first time, on a machine that is busy
REPLY_S = 15.0
POLL_S = 0.003
TRIES = 3
LONGEST_SOCKET_PATH = 107  # sun_path of unix(7), less its end

# One recorder serves the jobs that see the same hardware in the same way: these tell that they may not.
_SIGHT = ("LD_LIBRARY_PATH", "LD_PRELOAD", "FOOTPRINT_POWERCAP")
_CLUSTER_JOB = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")

_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

_startup_counted = False  # a process starts once, however many windows it opens
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
        self._settings = settings
        self._buffer = b""
        self._file: Path | None = None
        self._job: Mapping[str, Any] = {}
        self._lost = False
        self._pid = os.getpid()
        self._socket, hello = self._greeted()
        self.gpus: list[dict[str, Any]] = hello["gpus"]
        self.warnings: list[str] = []
        if hello["settings"] != settings.to_dict():
            self.warnings.append(
                f"the recorder of this node was started by another job, whose settings hold: {hello['settings']}"
            )

    def _greeted(self) -> tuple[socket.socket, dict[str, Any]]:
        for _ in range(TRIES):
            try:
                self._socket = connected(self._settings)
                return self._socket, self._ask("hello", START_S)
            except TimeoutError as error:
                logger.info("no recorder came up (%s)", error)
                break
            except (OSError, RecorderLostError) as error:  # it may have been about to leave
                logger.info("the recorder did not answer (%s)", error)
        logger.warning("no recorder can be started beside this job; it is metered from inside")
        self._socket = _inside_this_process(self._settings)
        return self._socket, self._ask("hello", START_S)

    def open(self, job: Mapping[str, Any]) -> str:
        """Open the window of an attempt at `job`, and return the attempt's id."""
        self._job = job
        reply = self._ask("open", REPLY_S, job=job)
        self._file = Path(reply["file"]) if reply["file"] else None
        return str(reply["attempt_id"])

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


def runtime_folder() -> Path:
    """Where the jobs of a user on this node find each other: FOOTPRINT_RUNTIME_DIR, or a folder of the user's in
    XDG_RUNTIME_DIR or /tmp. Private to the user. Raises OSError where none can be made."""
    own = os.environ.get("FOOTPRINT_RUNTIME_DIR")
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if own:
        folder = Path(own)
    elif session and os.access(session, os.W_OK | os.X_OK):
        folder = Path(session) / "latent-footprint"
    else:
        folder = Path(f"/tmp/latent-footprint-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set FOOTPRINT_RUNTIME_DIR")
    return folder


def _key() -> str:
    """Digest of what tells jobs apart that cannot share a recorder."""
    told = [os.environ.get(name, "") for name in (*_SIGHT, *_CLUSTER_JOB)]
    told += [_namespace(kind) for kind in ("mnt", "pid")]
    told.append(str(Path(__file__).resolve().parent))  # another version may speak differently
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:12]


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115 - not a path of a file
    except OSError:
        return ""  # no Linux


def connected(settings: MeterSettings) -> socket.socket:
    """A connection to the recorder of this node, which is started if there is none. Raises OSError."""
    path = runtime_folder() / f"{_key()}.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise OSError(f"{path} is too long for a socket; set FOOTPRINT_RUNTIME_DIR to a shorter one")
    try:
        return _connect(path)
    except OSError:
        pass  # there is none, or it has just left
    with _only_one(path.with_suffix(".lock")):
        try:
            return _connect(path)
        except OSError:
            _start(path, settings)
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                return _connect(path)
            except OSError:
                if time.monotonic() > deadline_s:
                    log = path.with_suffix(".log")
                    raise TimeoutError(f"nothing listens at {path} after {START_S:.0f} s; see {log}") from None
                time.sleep(POLL_S)


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Jobs that start together start one recorder."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(path: Path, settings: MeterSettings) -> None:
    """Start a recorder that is nobody's child: its CPU time must not become this job's when it ends."""
    package = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    recorder = [sys.executable, "-P", "-m", "emissions.recorder", str(path), json.dumps(settings.to_dict())]
    shell = ["/bin/sh", "-c", '"$@" </dev/null >/dev/null 2>>"$0" &', str(path.with_suffix(".log")), *recorder]
    subprocess.run(shell, env=environment, cwd="/", start_new_session=True, check=True)


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


def job_of(
    *,
    stage: str,
    item: str,
    factors: Mapping[str, Any],
    journal: Path,
    folders: Sequence[Path],
    cpus: float | None,
    leased: Sequence[str] = (),
    no_gpu: bool = False,
    own: bool = True,
) -> dict[str, Any]:
    """What the recorder is told about this process as a job.

    Args:
        stage: what is done.
        item: to what.
        factors: the plan's, by the names of `records.FACTOR_COLUMNS`.
        journal: where its attempts are kept.
        folders: for the attempt's file, the first that can be written to.
        cpus: logical CPUs reserved for it; None: all that it may use.
        leased: UUIDs of the GPUs that it holds alone; without any it shares those that it sees.
        no_gpu: it uses none.
        own: whether the process does the work itself, or only what it starts.
    """
    global _startup_counted
    count_startup, _startup_counted = own and not _startup_counted, True
    pid = os.getpid()
    return {
        "stage": stage,
        "item": item,
        "factors": dict(factors),
        "journal": str(journal),
        "folders": [str(folder) for folder in folders],
        "pid": pid,
        "pid_started": started(pid),
        "own": own,
        "count_startup": count_startup,
        "startup_s": age_s(pid) if count_startup else 0.0,
        "cpus": float(cpus or usable_cpus()),
        "usable_cpus": usable_cpus(),
        "leased": list(leased),
        "no_gpu": no_gpu,
        "visible": next((os.environ[name] for name in _VISIBLE if name in os.environ), None),
    }


def attempt_folders(journal: Path) -> list[Path]:
    """Where attempts of a journal keep their files: beside it, or with the user's jobs where that is read-only."""
    folders = [journal.parent / "attempts"]
    with contextlib.suppress(OSError):
        folders.append(runtime_folder() / "attempts")
    return folders


def usable_cpus() -> float:
    """Logical CPUs of the node that this job may use: by affinity, by SLURM, by the quota of its cgroup."""
    limits = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        limits.append(float(len(os.sched_getaffinity(0))))
    slurm = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if slurm.isdecimal():
        limits.append(float(slurm))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        limits.append(float(quota) / float(period))  # "max" is no number
    return max(min(limits), 0.01)
