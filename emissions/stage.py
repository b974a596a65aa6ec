"""`with stage(snakemake) as metered:` meters the work of one rule; `with unmetered(snakemake):` is for
accounting rules.

The window is the block. It is metered by the node's recorder, a process beside the job (`emissions.recorder`), which
knows what became of the job even if the job cannot say. A block that ends well leaves trace, CodeCarbon's row, record
and a journal line. A block that fails or is interrupted leaves a journal line and its trace beside it, one line on
the terminal and its traceback in the log.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from emissions import records, retries
from emissions.acting.job import ActingJob
from emissions.attempt_file import read_attempt, trace_of, write_trace
from emissions.client import Closed, RecorderLostError, Session
from emissions.job import attempt_folders, job_of
from emissions.joblog import JobLog, log_path
from emissions.lease import leased_gpus
from emissions.meters import MeterSettings
from emissions.meters.codecarbon import write_csv
from emissions.signals import Signals, Terminated

logger = logging.getLogger(__name__)

FAILURE_STATUS = 2
TEXT_FACTORS = ("family", "size", "sampler")
COUNTS = (*records.WORK_COLUMNS, "images_resumed", "checkpoints")


class Metered:
    """What the block gets: a place to say what work was done, and `control_file`, as `ActingJob` has it."""

    def __init__(self, control_file: Callable[[], Path | None] = lambda: None) -> None:
        self.counts: dict[str, float | None] = dict.fromkeys(records.WORK_COLUMNS + records.PROGRESS_COLUMNS)
        self.resumed_from: list[str] = []
        self.control_file = control_file

    def work(
        self, *, resumed_from: Sequence[str] = (), checkpoint_s: float | None = None, **counts: float | None
    ) -> None:
        """Set any of `images_seen, samples, voxels, flops, parameters, images_resumed, checkpoints`; a later call
        replaces an earlier figure.

        Counts are of the finished work, whichever attempts did it. `resumed_from`: when the checkpoints were saved,
        UTC, from which attempts went on; energy of an earlier attempt up to there is not waste. `checkpoint_s`: in
        which this attempt wrote its checkpoints.

        Raises ValueError for other names, for values that are not whole numbers of at least 0, and for times without
        a zone.
        """
        for name, value in counts.items():
            if name not in COUNTS:
                raise ValueError(f"work: {name!r} is not one of {', '.join(COUNTS)}")
            if value is not None and (not math.isfinite(value) or value < 0 or int(value) != value):
                raise ValueError(f"work: {name} is {value!r}; expected a whole number of at least 0")
            self.counts[name] = None if value is None else int(value)
        if checkpoint_s is not None:
            self.counts["checkpoint_s"] = float(checkpoint_s)
        for moment in resumed_from:
            records.parse_utc(moment)
        self.resumed_from = list(resumed_from)


class stage:  # noqa: N801 - reads as a statement where it is used
    """Meter the block as the stage `snakemake.rule` for the item named by the rule's single wildcard.

    Uses `output.record`, `output.trace`, `output.codecarbon`, `params.plan`, `log[0]`, `threads`, `resources.gpu` and
    `config["metering"]`. With `resources: gpu=N`, the block has N GPUs of its own (`emissions.lease`); with gpu=0 it
    has none, and without it shares what is visible. On failure of the block, or of writing what it metered, raises
    SystemExit(2); never because a meter failed.
    """

    def __init__(self, snakemake: Any) -> None:
        self._snakemake = snakemake
        self._gpus = contextlib.ExitStack()

    def __enter__(self) -> Metered:
        self._pid = os.getpid()
        self._log = JobLog(log_path(self._snakemake))
        try:
            self._open()
        except Exception as error:
            self._gpus.close()
            self._log.failure(str(self._snakemake.rule), error)
            self._log.close()
            raise SystemExit(FAILURE_STATUS) from None
        self._signals = Signals()
        return self._metered

    def _open(self) -> None:
        """Everything that can be wrong, and the opening of the window last."""
        snakemake = self._snakemake
        self._name = f"{snakemake.rule} {_item(snakemake)}"
        factors = _factors(getattr(snakemake.params, "plan", None) or {})
        output = snakemake.output
        self._record_path, self._trace_path, self._codecarbon_path = (
            Path(str(path)).absolute() for path in (output.record, output.trace, output.codecarbon)
        )
        self._journal_path = self._record_path.parents[3] / "emissions" / "journal.jsonl"
        self._folders = attempt_folders(self._journal_path)
        settings = MeterSettings.from_config(snakemake.config.get("metering") or {})
        retries.recover(self._journal_path, self._folders)
        self._acting = ActingJob(snakemake.config, self._record_path, self._folders, self._tell)
        self._metered = Metered(self._acting.control_file)
        self._session = Session(settings)
        wanted = snakemake.resources.get("gpu")
        leased = self._lease(int(wanted or 0))
        job = job_of(
            stage=str(snakemake.rule),
            item=_item(snakemake),
            factors=factors,
            journal=self._journal_path,
            folders=self._folders,
            cpus=snakemake.threads,
            leased=leased,
            no_gpu=wanted is not None and int(wanted) == 0,
            codecarbon=settings.codecarbon,
        )
        self._attempt_id = self._session.open(job)
        self._acting.start(self._attempt_id, self._session.file)

    def _tell(self, line: str) -> None:
        self._log.tell(f"{self._name}: {line}")

    def _lease(self, count: int) -> list[str]:
        if count == 0 or not self._session.gpus:
            return []
        return self._gpus.enter_context(leased_gpus(count, self._session.gpus, tell=self._log.tell))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            return  # a forked child leaves the block too; the window is its parent's
        self._signals.hold()  # what arrives from here on is too late: the attempt goes to disk
        try:
            if error is None:
                error = _synchronise_gpus()
            error = self._close(error)
        finally:
            self._gpus.close()
            if isinstance(error, (Terminated, KeyboardInterrupt)):
                self._signals.ignore()  # this process is ending, which an impatient second one must not cut short
            else:
                self._signals.restore()
            self._log.close()
        if error is not None:
            raise SystemExit(FAILURE_STATUS) from None

    def _close(self, error: BaseException | None) -> BaseException | None:
        """End the window and write what the outcome calls for; give the error that stands."""
        self._metered.counts |= self._acting.close()
        try:
            closed = self._session.close(_outcome(error), self._metered.counts)
        except (RecorderLostError, OSError, ValueError) as failure:
            self._log.failure(self._name, error or failure)
            return error or failure
        done = ""
        if error is None:
            try:
                done = self._write(closed)
            except (OSError, ValueError) as failure:
                error = failure
        if error is not None:
            for path in (self._record_path, self._trace_path, self._codecarbon_path):
                path.unlink(missing_ok=True)
        problem = self._session.saved(_outcome(error), closed.record, keep_trace=error is not None)
        if problem:
            logger.warning("%s", problem)
        if error is not None:
            self._log.failure(self._name, error)
        else:
            self._log.tell(done)
        return error

    def _write(self, closed: Closed) -> str:
        """Trace, CodeCarbon's row, and last the record, which holds the earlier attempts too; returns the line that
        tells of it."""
        earlier = retries.earlier_attempts(records.read_journal(self._journal_path), closed.record)
        kept_kwh = retries.kept_kwh(earlier, self._metered.resumed_from, self._folders)
        record = retries.merge(earlier, closed.record, kept_kwh)
        write_trace(self._trace_path, trace_of(read_attempt(closed.file)) if closed.file else [])
        write_csv(self._codecarbon_path, closed.codecarbon)
        records.write_record(self._record_path, record)
        line = f"{self._name}: {record['duration_s']:.1f} s, {1000 * record['energy_kwh']:.3g} Wh"
        if earlier:
            line += f" in {record['attempts']} attempts, {1000 * record['wasted_kwh']:.3g} Wh of it wasted"
        return line


@contextmanager
def unmetered(snakemake: Any) -> Iterator[None]:
    """Log and errors as in `stage`, without metering: for accounting rules, which take seconds and price the
    others."""
    log = JobLog(log_path(snakemake))
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        log.failure(" ".join([str(snakemake.rule), *map(str, snakemake.wildcards)]), error)
        raise SystemExit(FAILURE_STATUS) from None
    finally:
        log.close()


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, Terminated):
        return "terminated"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _synchronise_gpus() -> Exception | None:
    """Wait for work queued on CUDA devices, so that its energy falls into the window; an error of that work
    is the job's."""
    torch = sys.modules.get("torch")  # never import it: a job without torch has nothing queued
    try:
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            for device in range(torch.cuda.device_count()):
                torch.cuda.synchronize(device)
    except Exception as error:  # an asynchronous kernel error surfaces here
        return error
    return None


def _item(snakemake: Any) -> str:
    wildcards = [str(value) for value in snakemake.wildcards]
    if len(wildcards) != 1:
        raise ValueError(
            f"rule {snakemake.rule}: a metered rule has one wildcard, its item; this one has {len(wildcards)}"
        )
    return wildcards[0]


def _factors(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan row's factors in the record's types; absent and NaN (an empty cell of a table) become None."""
    factors: dict[str, Any] = {}
    for name in records.FACTOR_COLUMNS:
        value = plan.get(name)
        if value is None or value == "" or value != value:  # NaN differs from itself
            factors[name] = None
        else:
            factors[name] = str(value) if name in TEXT_FACTORS else int(value)
    return factors
