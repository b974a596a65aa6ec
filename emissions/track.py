"""`footprint track -- COMMAND`: meter any command, with all the processes that it starts.

The command is never harmed by its metering: what fails is a warning, and the exit status is the command's own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emissions.attempt_file import read_attempt, trace_of, write_trace
from emissions.client import Closed, Session
from emissions.job import attempt_folders, job_of
from emissions.lease import leased_gpus
from emissions.meters import MeterSettings
from emissions.meters.codecarbon import write_csv
from emissions.meters.settings import LONGEST_INTERVAL_S, SHORTEST_INTERVAL_S
from emissions.records import FACTOR_COLUMNS, Record, parse_utc, write_record
from emissions.retries import recover

if TYPE_CHECKING:
    from emissions.grid.intensity import CarbonIntensity

logger = logging.getLogger(__name__)

PR_SET_CHILD_SUBREAPER = 36
SI_KERNEL = 0x80  # `si_code` of a signal that the terminal sends, to all processes in its foreground at once
FORWARDED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # which no command expects
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells have it
STAGE = "track"
INTENSITY_YEAR = 2024  # of the annual means, for zones without a typical year


def track(
    command: Sequence[str],
    out: Path | None = None,
    zone: str | None = None,
    settings: MeterSettings | None = None,
    gpus: int = 0,
) -> int:
    """Run a command and meter it; one line on stderr tells what it took.

    For a process that has nothing else to do: it adopts the command's orphans, and ends without heed of signals.

    Args:
        command: with its arguments.
        out: folder for record.json, power.parquet, codecarbon.csv and journal.jsonl; None keeps no file.
        zone: of the grid, for emissions in the line.
        settings: of the meters.
        gpus: how many GPUs the command is to have for itself; 0: it shares those that it sees.

    Returns:
        The command's exit status; 128 + n if signal n ended it, 127 if there is no such command, 126 if it cannot be
        executed.

    Raises:
        ValueError: for an unknown zone, or more GPUs than there are; then nothing has run.
    """
    intensity = _intensity(zone)
    refusal = _refusal(command[0])
    if refusal is not None:
        return _told(command[0], refusal)
    with _folder_for_files(out) as folder:
        session = _session(settings or MeterSettings()) if folder else None
        if session is None or folder is None:
            with _signals_wait() as unblocked:
                return _status(_run(command, unblocked)[0])
        if gpus and not session.gpus:
            logger.warning("--gpus=%d: no GPU was found to hold", gpus)
        with leased_gpus(gpus, session.gpus, asked_by="--gpus") as leased, _signals_wait() as unblocked:
            _adopt_orphans()
            opened = _open(session, Path(command[0]).name, folder, leased)
            returncode, stopped_by = _run(command, unblocked)
            if opened:
                with _metering_goes_on("what the command took is not known"):
                    record = _close(session, _outcome(returncode, stopped_by), folder, keeps_files=out is not None)
                    written = f"; {folder / 'record.json'}" if out else ""
                    _say(f"footprint: {_line(record, intensity)}{written}")
    return _status(returncode)


@contextlib.contextmanager
def _metering_goes_on(otherwise: str) -> Iterator[None]:
    """What goes wrong in the block is told, and is not the command's."""
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s", otherwise, " ".join(str(error).split()) or type(error).__name__)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, AttributeError):  # a full disk, a closed pipe, no stderr at all
        sys.stderr.write(line + "\n")


# --- what is metered, and where it is kept


@contextlib.contextmanager
def _folder_for_files(out: Path | None) -> Iterator[Path | None]:
    """`out`, or a folder in its place where it cannot be written to; without `out`, one that is gone afterwards.

    None where there is no place at all.
    """
    with contextlib.ExitStack() as stack:
        folder = None
        with _metering_goes_on("the command runs without being metered"):
            if out is None:
                folder = Path(
                    stack.enter_context(tempfile.TemporaryDirectory(prefix="footprint-", ignore_cleanup_errors=True))
                )
            else:
                folder = _writable(out.absolute())
        yield folder


def _writable(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        kept = Path(tempfile.mkdtemp(prefix="footprint-"))
        logger.warning("%s cannot be written to (%s); the figures go to %s", out, error.strerror, kept)
        return kept


def _session(settings: MeterSettings) -> Session | None:
    # a recorder inside this process is a thread, which must not take the signals that are the command's
    with _metering_goes_on("the command runs without being metered"), _signals_wait():
        return Session(settings)
    return None


def _open(session: Session, item: str, folder: Path, leased: Sequence[str]) -> bool:
    """Open the window; returns whether it is open. Attempts that ended with their recorder come to their end here."""
    journal = folder / "journal.jsonl"
    folders = attempt_folders(journal)
    with _metering_goes_on("earlier attempts were not looked for"):
        recover(journal, folders)
    with _metering_goes_on("the command runs without being metered"):
        session.open(
            job_of(
                stage=STAGE,
                item=item,
                factors=dict.fromkeys(FACTOR_COLUMNS),
                journal=journal,
                folders=folders,
                cpus=None,
                leased=leased,
                own=False,
                codecarbon=session.settings.codecarbon,
            )
        )
        return True
    return False


def _close(session: Session, outcome: str, folder: Path, *, keeps_files: bool) -> Record:
    """Close the window and keep what there is to keep; a file that cannot be written costs that file."""
    closed = session.close(outcome, {})
    whole = not keeps_files
    if keeps_files:
        with _metering_goes_on(f"not all figures are in {folder}"):
            _write(closed, folder)
            whole = True
    problem = session.saved(outcome, closed.record, keep_trace=not whole, final=True)
    if problem:
        logger.warning("%s", problem)
    with contextlib.suppress(OSError):  # not empty: earlier attempts that were killed
        (folder / "attempts").rmdir()
    return closed.record


def _write(closed: Closed, folder: Path) -> None:
    write_trace(folder / "power.parquet", trace_of(read_attempt(closed.file)) if closed.file else [])
    write_csv(folder / "codecarbon.csv", closed.codecarbon)
    write_record(folder / "record.json", closed.record)


# --- the command


def _refusal(program: str) -> OSError | None:
    """Why a program cannot be started, as far as can be told before anything waits or is metered."""
    if shutil.which(program):
        return None
    if os.sep in program and Path(program).exists():
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return FileNotFoundError(errno.ENOENT, "no such command")


def _told(program: str, refusal: OSError) -> int:
    """Tell why there is no such command, and return its exit status."""
    _say(f"error: {program}: {refusal.strerror}")
    return NOT_FOUND if isinstance(refusal, FileNotFoundError) else NOT_EXECUTABLE


def _adopt_orphans() -> None:
    """A process whose parent ends becomes our child and not that of process 1: its time stays in our tree.

    Not before the recorder has started, which is to be nobody's child.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def _signals_wait() -> Iterator[Collection[int]]:
    """Signals that are for the command wait until there is one; yields those that were blocked before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(command: Sequence[str], mask: Collection[int]) -> tuple[int, int]:
    """Run to the end, while signals wait.

    Args:
        command: with its arguments.
        mask: signals that are blocked in the command.

    Returns:
        Its return code as of `subprocess`, and the signal that stopped it through us or 0.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignores it would cost us the exit status
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        # its open files, too, are the command's: a pipe of make's job server, for instance
        pid = os.posix_spawnp(command[0], tuple(command), os.environ, setsigmask=mask, setsigdef=IGNORED_BY_PYTHON)
    except OSError as error:
        return _told(command[0], error), 0
    ended = _wait(pid)
    for number in FORWARDED:  # what comes from here on is for a command that has ended
        signal.signal(number, signal.SIG_IGN)
    return ended


def _wait(pid: int) -> tuple[int, int]:
    """Pass signals on to the command until it has ended; also see off the orphans that we have adopted."""
    heeded = {number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}  # as under nohup
    stopped_by = 0
    while True:
        number, from_terminal = _next_signal({*heeded, signal.SIGCHLD})
        if number == signal.SIGCHLD:
            returncode = _reap(pid)
            if returncode is not None:
                return returncode, stopped_by
            continue
        if number in (signal.SIGTERM, signal.SIGINT):
            stopped_by = number
        if not from_terminal:
            os.kill(pid, number)


def _next_signal(numbers: Collection[int]) -> tuple[int, bool]:
    """Wait for a signal; returns it, and whether the terminal has sent it to the command as well."""
    if hasattr(signal, "sigwaitinfo"):
        found = signal.sigwaitinfo(numbers)
        return found.si_signo, found.si_code == SI_KERNEL
    return signal.sigwait(numbers), os.isatty(0)  # macOS does not tell who sent it


def _reap(pid: int) -> int | None:
    """Return code of the command if it has ended."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
        if ended == 0:
            return None


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _outcome(returncode: int, stopped_by: int) -> str:
    if returncode == 0:
        return "ok"
    if stopped_by or -returncode in (signal.SIGTERM, signal.SIGINT):
        return "terminated" if signal.SIGTERM in (stopped_by, -returncode) else "interrupted"
    return "killed" if -returncode == signal.SIGKILL else "failed"


# --- the line


def _intensity(zone: str | None) -> CarbonIntensity | None:
    """Of the zone, at its hours where it has a typical year. Raises ValueError for an unknown zone."""
    if zone is None:
        return None
    from emissions.grid.intensity import intensity_of  # pandas, which takes longer than all else here

    return intensity_of(zone, INTENSITY_YEAR)


def _line(record: Record, intensity: CarbonIntensity | None) -> str:
    energy_wh, low_wh, high_wh = (1000 * record[f"energy{bound}_kwh"] for bound in ("", "_low", "_high"))
    parts = [f"{record['duration_s']:.1f} s, {energy_wh:.3g} Wh ({low_wh:.2g} to {high_wh:.2g})"]
    for part in ("cpu", "gpu", "ram"):
        method, part_kwh = record[f"{part}_method"], record[f"{part}_kwh"]
        if part_kwh is None:
            parts.append(f"{part.upper()} unknown")
        elif method != "none":
            parts.append(f"{part.upper()} {1000 * part_kwh:.3g} Wh [{method}]")
    if intensity is not None:
        parts.append(_emissions(record, intensity))
    if record["outcome"] != "ok":
        parts.append(record["outcome"])
    if record["warnings"]:
        parts.append(f"warnings: {record['warnings']}")
    return " ".join("; ".join(parts).split())


def _emissions(record: Record, intensity: CarbonIntensity) -> str:
    from emissions.pricing import mean_intensity_g_per_kwh, operational_emissions_g

    start, end = (parse_utc(record[edge]) for edge in ("started_at", "ended_at"))
    g_per_kwh = mean_intensity_g_per_kwh(intensity, start, end)
    emissions_g = operational_emissions_g(record["energy_kwh"], 1.0, g_per_kwh)
    return f"{emissions_g:.3g} g CO2e in {intensity.zone.zone} ({g_per_kwh:.0f} g/kWh, PUE 1)"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to `footprint`."""
    parser = subparsers.add_parser(
        "track",
        help="meter any command",
        description="Run a command, with all processes that it starts, and tell the energy it took in one line. The "
        "exit status is the command's.",
        epilog="example: footprint track --out measured --zone DE -- torchrun --nproc-per-node 2 train.py",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for record.json, power.parquet, codecarbon.csv and journal.jsonl (default: no files)",
    )
    parser.add_argument("--zone", metavar="Z", help="grid zone, for emissions in the line")
    parser.add_argument(
        "--gpus", type=_count, default=0, metavar="N", help="hold N GPUs for the command alone (default: all it sees)"
    )
    parser.add_argument(
        "--interval-s", type=_interval_s, default=1.0, metavar="S", help="between readings, 0.1 to 10 (default: 1)"
    )
    parser.add_argument("--no-codecarbon", action="store_true", help="do not run CodeCarbon beside")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what to run")
    parser.set_defaults(run=_track)


def _interval_s(text: str) -> float:
    seconds = float(text)
    if not SHORTEST_INTERVAL_S <= seconds <= LONGEST_INTERVAL_S:
        raise argparse.ArgumentTypeError(f"{text} is not {SHORTEST_INTERVAL_S:g} to {LONGEST_INTERVAL_S:g} seconds")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number of GPUs")
    return int(text)


def _track(arguments: argparse.Namespace) -> int:
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise ValueError("footprint track: no command; write it after --, as in: footprint track -- sleep 5")
    settings = MeterSettings(interval_s=arguments.interval_s, codecarbon=not arguments.no_codecarbon)
    return track(command, arguments.out, arguments.zone, settings, arguments.gpus)
