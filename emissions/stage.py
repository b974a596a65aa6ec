"""`with stage(snakemake) as metered:` meters the work of one rule; `with unmetered(snakemake):` is for
accounting rules.

Around the block: CodeCarbon opens, then our own window; both close in the opposite order. A block that ends
well leaves trace, CodeCarbon's row, record and a journal line. A block that fails or is interrupted leaves
only a journal line, one line on the terminal and its traceback in the log.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from emissions import records
from emissions.joblog import JobLog, log_path
from emissions.meters import MeterSettings, codecarbon, open_meters
from emissions.meters.codecarbon import CodeCarbonMeter
from emissions.meters.model import cpu_model_name
from emissions.meters.nvml import NvmlMeter
from emissions.recorder import Component, Recorder, Recording, write_trace
from emissions.signals import Signals, Terminated, signals_for_the_main_thread

logger = logging.getLogger(__name__)

FAILURE_STATUS = 2
TEXT_FACTORS = ("family", "size", "sampler")


class Metered:
    """What the block gets: a place to say what work was done."""

    def __init__(self) -> None:
        self.counts: dict[str, int | None] = dict.fromkeys(records.WORK_COLUMNS)

    def work(self, **counts: float | None) -> None:
        """Set any of `images_seen, samples, voxels, flops, parameters`; a later call replaces an earlier
        figure.

        Raises ValueError for other names and for values that are not whole numbers of at least 0.
        """
        for name, value in counts.items():
            if name not in self.counts:
                raise ValueError(f"work: {name!r} is not one of {', '.join(records.WORK_COLUMNS)}")
            if value is not None and (not math.isfinite(value) or value < 0 or int(value) != value):
                raise ValueError(f"work: {name} is {value!r}; expected a whole number of at least 0")
            self.counts[name] = None if value is None else int(value)


class stage:  # noqa: N801 - reads as a statement where it is used
    """Meter the block as the stage `snakemake.rule` for the item named by the rule's single wildcard.

    Uses `output.record`, `output.trace`, `output.codecarbon`, `params.plan`, `log[0]` and
    `config["metering"]`. On failure of the block, or of writing what it metered, raises SystemExit(2); never
    because a meter failed.
    """

    def __init__(self, snakemake: Any) -> None:
        self._snakemake = snakemake
        self._metered = Metered()

    def __enter__(self) -> Metered:
        self._pid = os.getpid()
        self._log = JobLog(log_path(self._snakemake))
        try:
            with signals_for_the_main_thread():
                self._prepare()
                self._recorder.start()
        except Exception as error:
            self._log.failure(str(self._snakemake.rule), error)
            self._log.close()
            raise SystemExit(FAILURE_STATUS) from None
        self._signals = Signals()
        return self._metered

    def _prepare(self) -> None:
        """Everything that takes time or can be wrong, before the window opens."""
        self._stage, self._item = str(self._snakemake.rule), _item(self._snakemake)
        self._factors = _factors(getattr(self._snakemake.params, "plan", None) or {})
        output = self._snakemake.output
        self._record_path, self._trace_path, self._codecarbon_path = (
            Path(str(output.record)),
            Path(str(output.trace)),
            Path(str(output.codecarbon)),
        )
        self._journal_path = self._record_path.parents[3] / "emissions" / "journal.jsonl"
        attempts = records.read_journal(self._journal_path)
        self._attempts = 1 + len(records.attempts_since_ok(attempts, self._stage, self._item))
        settings = MeterSettings.from_config(self._snakemake.config.get("metering") or {})
        meters = open_meters(settings)
        self._codecarbon = CodeCarbonMeter(
            ram_w=settings.ram_w or codecarbon.default_ram_w(),
            cpu_tdp_w=settings.cpu_tdp_w if meters.cpu.method != "rapl" else None,
            gpu_indices=[gpu.index for gpu in meters.gpu.gpus] if isinstance(meters.gpu, NvmlMeter) else [],
            longest_gap_s=meters.cpu.longest_gap_s,
        )
        self._codecarbon.start()
        self._recorder = Recorder(meters, settings.interval_s)
        self._startup_s = max(time.time() - psutil.Process().create_time(), 0.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            return  # a forked child leaves the block too; the window is its parent's
        self._signals.hold()  # what arrives from here on is too late: the attempt goes to disk
        try:
            if error is None:
                error = _synchronise_gpus()
            recording = self._recorder.stop()
            self._codecarbon.stop()
            error = self._save(recording, error)
        finally:
            self._signals.restore()
        if error is not None:
            self._log.failure(f"{self._stage} {self._item}", error)
        else:
            energy_wh = 1000 * (recording.energy_kwh or math.nan)
            self._log.done(f"{self._stage} {self._item}: {recording.duration_s:.1f} s, {energy_wh:.3g} Wh")
        self._log.close()
        if error is not None:
            raise SystemExit(FAILURE_STATUS) from None

    def _save(self, recording: Recording, error: BaseException | None) -> BaseException | None:
        """Write what the outcome calls for, the record last but for its journal line; give the error that
        stands."""
        if error is None:
            try:
                record = self._record(recording, "ok")
                write_trace(self._trace_path, recording.trace)
                self._codecarbon.write_csv(self._codecarbon_path)
                records.write_record(self._record_path, record)
                records.append_journal(self._journal_path, record)
                return None
            except (OSError, ValueError) as failure:
                error = failure
        for path in (self._record_path, self._trace_path, self._codecarbon_path):
            path.unlink(missing_ok=True)
        outcome = "interrupted" if isinstance(error, (Terminated, KeyboardInterrupt)) else "failed"
        try:
            records.append_journal(self._journal_path, self._record(recording, outcome))
        except (OSError, ValueError) as failure:
            logger.warning("this attempt is not in the journal: %s", failure)
        return error

    def _record(self, recording: Recording, outcome: str) -> records.Record:
        gpus = recording.gpu.devices
        return {
            "stage": self._stage,
            "item": self._item,
            "attempts": self._attempts,
            "outcome": outcome,
            "started_at": records.utc_text(recording.started_at),
            "ended_at": records.utc_text(recording.ended_at),
            "duration_s": recording.duration_s,
            "node": platform.node(),
            "cpu_model": cpu_model_name(),
            "gpu_model": " + ".join(dict.fromkeys(gpus)) or None,
            "gpu_count": len(gpus),
            "cpu_kwh": recording.cpu.energy_kwh,
            "gpu_kwh": recording.gpu.energy_kwh,
            "ram_kwh": recording.ram.energy_kwh,
            "energy_kwh": recording.energy_kwh,
            "energy_low_kwh": recording.energy_low_kwh,
            "energy_high_kwh": recording.energy_high_kwh,
            "cpu_method": recording.cpu.method,
            "gpu_method": recording.gpu.method,
            "ram_method": recording.ram.method,
            "idle_kwh": recording.idle_kwh,
            "wasted_kwh": 0.0 if outcome == "ok" else recording.energy_kwh,
            "codecarbon_kwh": self._codecarbon.energy_kwh,
            **self._metered.counts,
            **self._factors,
            "startup_s": self._startup_s,
            "warnings": "; ".join([*recording.warnings, *self._codecarbon_warnings(recording)]),
            "attempt_id": uuid.uuid4().hex,
        }

    def _codecarbon_warnings(self, recording: Recording) -> list[str]:
        return self._codecarbon.warnings + self._codecarbon.disagreements(
            duration_s=recording.duration_s,
            cpu_j=_joules(recording.cpu),
            cpu_is_rapl=recording.cpu.method == "rapl",
            gpu_j=_joules(recording.gpu),
        )


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


def _joules(part: Component) -> float | None:
    return None if part.energy_kwh is None else part.energy_kwh * codecarbon.J_PER_KWH
