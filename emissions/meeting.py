"""Where the jobs and the recorder of a node meet: a folder of the user's, with a socket in it.

The recorder is one per node and user. It belongs to no job: it is started in a session of its own, so that neither
Ctrl-C nor the end of the job that started it ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from emissions.meters import MeterSettings

START_S = 10.0  # how long a recorder may take to answer for the first time, on a machine that is busy
POLL_S = 0.003
LONGEST_SOCKET_PATH = 107  # sun_path of unix(7), less its end

# One recorder serves the jobs that see the same hardware in the same way: these tell that they may not.
_SIGHT = ("LD_LIBRARY_PATH", "LD_PRELOAD", "FOOTPRINT_POWERCAP")
_CLUSTER_JOB = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


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
