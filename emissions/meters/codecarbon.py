"""CodeCarbon's offline tracker beside our own meters: a second opinion on the same window, and its own row of
figures.

Our figures are the ledger's; CodeCarbon's total is `codecarbon_kwh`. Its arguments are all given, and no
config file or environment variable of the user reaches it, so two machines track alike. It never sees the
network. Nothing it does may harm the job: whatever it raises becomes a warning.

It runs by `start()` and `stop()`. `start_task()` stops its sampler and then loses RAPL energy at the second
wrap.
"""

from __future__ import annotations

import csv
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from emissions.files import atomic_path
from emissions.meters.base import J_PER_KWH
from emissions.meters.model import cpu_model_name

logger = logging.getLogger(__name__)

# Its periodic sampler and stop() do not exclude each other: where they meet, a modelled interval is counted
# twice. Without RAPL no tick is needed (counters and CPU time are differences, and its load monitor runs at 1
# Hz regardless), so none comes before an hour. With RAPL it reads often enough to see every wrap.
TICK_WITHOUT_RAPL_S = 3600.0
SHORTEST_TICK_S = 0.2

COUNTRY_ISO_CODE = "DEU"  # prices its `emissions` column only, which nothing of ours reads
DEFAULT_W_PER_THREAD = 4.0  # CodeCarbon's figure for processors that it does not know

# Agreement: 2 %, plus the time by which its window is longer than ours, plus this slack for its slow stop
# (it reads its clock for `duration` some 0.1 s after its last measurement).
RELATIVE_TOLERANCE = 0.02
SLACK_S = 0.25


class CodeCarbonMeter:
    """One tracker over one window: `start()`, `stop()`, then `energy_kwh`, `write_csv()` and
    `disagreements()`."""

    def __init__(
        self,
        *,
        ram_w: float,
        cpu_tdp_w: float | None = None,
        gpu_indices: list[int] | None = None,
        longest_gap_s: float = float("inf"),
    ) -> None:
        """
        Args:
            ram_w: watts that CodeCarbon is told for the RAM: they make its RAM energy a check of its
                time-keeping.
            cpu_tdp_w: watts of the config, only where there is no RAPL (they would switch CodeCarbon's RAPL
                off).
            gpu_indices: NVML indices of the GPUs of this job.
            longest_gap_s: the longest time between readings in which no counter can wrap unseen.
        """
        self.ram_w = ram_w
        self.warnings: list[str] = []
        self.result: dict[str, Any] | None = None
        self._tracker: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="codecarbon-", ignore_cleanup_errors=True)
        self._arguments = tracker_arguments(
            output_dir=self._folder.name,
            force_ram_power=ram_w,
            force_cpu_power=cpu_tdp_w,
            gpu_ids=gpu_indices or [],
            measure_power_secs=min(max(longest_gap_s, SHORTEST_TICK_S), TICK_WITHOUT_RAPL_S),
        )

    def start(self) -> None:
        """Open the tracker. Its failure is a warning."""
        try:
            with _quiet_start():
                from codecarbon import OfflineEmissionsTracker

                self._tracker = OfflineEmissionsTracker(**self._arguments)
                self._tracker.start()
        except Exception as error:  # whatever it is, it is not the job's
            self._tracker = None
            self._failed("did not start", error)

    def stop(self) -> None:
        """Close the tracker and take its figures. Its failure is a warning."""
        try:
            if self._tracker is not None:
                self._tracker.stop()
                # stop() keeps its exceptions to itself, so the figures may not be there
                self.result = dict(self._tracker.final_emissions_data.values)
        except Exception as error:  # as above
            self._failed("gave no result", error)
        finally:
            self._tracker = None
            self._folder.cleanup()

    def _failed(self, what: str, error: Exception) -> None:
        logger.info("CodeCarbon %s", what, exc_info=True)
        self.warnings.append(
            f"CodeCarbon {what} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        )

    @property
    def energy_kwh(self) -> float | None:
        """Its total over all components; None if it failed."""
        return None if self.result is None else float(self.result["energy_consumed"])

    def write_csv(self, path: Path) -> None:
        """Its row in its own columns, as its own output would write it; only the header if it failed."""
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.result) if self.result else _columns())
            writer.writeheader()
            if self.result:
                writer.writerow(self.result)

    def disagreements(
        self, *, duration_s: float, cpu_j: float | None, cpu_is_rapl: bool, gpu_j: float | None
    ) -> list[str]:
        """One line for each of its figures that known watts or our own counter contradict.

        RAM: known watts x its own duration; it differs where an interval was lost or counted twice. GPU: our
        counter.
        CPU: our RAPL, only where both read it (its load model is cubic, ours is linear: not comparable).
        """
        if self.result is None:
            return []
        own_s = float(self.result["duration"])
        longer_s = max(own_s - duration_s, 0.0) + SLACK_S
        lines = [
            _compare(
                "RAM",
                float(self.result["ram_energy"]) * J_PER_KWH,
                self.ram_w * own_s,
                own_s,
                SLACK_S,
                "known watts",
            )
        ]
        if gpu_j is not None:
            gpu_cc_j = float(self.result["gpu_energy"]) * J_PER_KWH
            lines.append(_compare("GPU", gpu_cc_j, gpu_j, duration_s, longer_s, "our NVML readings"))
        if cpu_is_rapl and cpu_j is not None:
            cpu_cc_j = float(self.result["cpu_energy"]) * J_PER_KWH
            lines.append(_compare("CPU", cpu_cc_j, cpu_j, duration_s, longer_s, "our RAPL readings"))
        return [line for line in lines if line]


def _compare(what: str, theirs_j: float, ours_j: float, duration_s: float, slack_s: float, reference: str) -> str:
    slack_j = slack_s * ours_j / duration_s if duration_s > 0 else 0.0
    if abs(theirs_j - ours_j) <= RELATIVE_TOLERANCE * ours_j + slack_j:
        return ""
    return (
        f"CodeCarbon's {what} energy is {theirs_j:.1f} J where {reference} give {ours_j:.1f} J; "
        "codecarbon_kwh is off by as much"
    )


def tracker_arguments(**own: Any) -> dict[str, Any]:
    """Every argument of `OfflineEmissionsTracker`, save deprecated ones that `output_methods` overrides."""
    return {
        "project_name": "latent-footprint",
        "experiment_id": "latent-footprint",
        "experiment_name": "stage",
        "country_iso_code": COUNTRY_ISO_CODE,
        "region": None,
        "cloud_provider": None,
        "cloud_region": None,
        "country_2letter_iso_code": None,
        "electricitymaps_api_token": None,
        "force_carbon_intensity_g_co2e_kwh": None,
        "pue": 1.0,
        "wue": 0.0,
        "tracking_mode": "machine",
        "force_mode_cpu_load": False,
        "rapl_include_dram": False,
        "rapl_prefer_psys": False,
        "output_methods": [],  # its row is taken from the tracker: no file of its own to clear away
        "output_file": "emissions.csv",
        "output_handlers": [],
        "on_csv_write": "append",
        "api_call_interval": -1,
        "api_endpoint": "",
        "api_key": "",
        "emissions_endpoint": None,
        "prometheus_url": "",
        "logging_logger": None,
        "logger_preamble": "",
        "log_level": "error",
        "allow_multiple_runs": True,  # False would replace the job's signal handlers
        "metadata": None,
        **own,
    }


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Start CodeCarbon without the user's settings, its chatter and py-cpuinfo's second of start-up.

    * Config files and CODECARBON_* variables are merged in one function, which answers nothing here: an
      argument that a later version adds keeps CodeCarbon's default.
    * py-cpuinfo starts processes to find the processor's name (1.2 s in every job). CodeCarbon wants
      `brand_raw` alone, which the kernel tells. The function is put back afterwards.
    """
    import codecarbon.emissions_tracker
    import cpuinfo
    from codecarbon.external.logger import set_logger_level

    set_logger_level("error")  # the tracker sets it too, after its first lines
    with (
        _replaced(codecarbon.emissions_tracker, "get_hierarchical_config", dict),
        _replaced(cpuinfo, "get_cpu_info", lambda: {"brand_raw": cpu_model_name()}),
    ):
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)  # raises where a later version has moved it: better no figure than a wrong one
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def default_cpu_tdp_w() -> float:
    """Thermal design power of this machine by CodeCarbon's table, all sockets; 4 W per thread if unknown."""
    threads = psutil.cpu_count() or 1
    try:
        with _quiet_start():
            from codecarbon.core import cpu, hardware_cache, util

            tdp_w = hardware_cache.get_cached_tdp(cpu).tdp  # the tracker reuses the same look-up
            unknown_w = util.count_cpus() * DEFAULT_W_PER_THREAD
            # CodeCarbon's default covers the threads of all sockets already
            return float(tdp_w) if tdp_w == unknown_w else float(tdp_w) * util.count_physical_cpus()
    except Exception:  # an estimate is wanted, whatever CodeCarbon stumbles over
        logger.info("CodeCarbon gave no thermal design power", exc_info=True)
        return threads * DEFAULT_W_PER_THREAD


def default_ram_w() -> float:
    """CodeCarbon's watts for this machine's memory (or this SLURM job's): 5 W per assumed DIMM on x86."""
    try:
        from codecarbon.external.ram import RAM

        return float(RAM(tracking_mode="machine").total_power().W)
    except Exception:  # as above
        logger.info("CodeCarbon gave no RAM power", exc_info=True)
        return 10.0  # its smallest x86 figure, two DIMMs


def _columns() -> list[str]:
    from codecarbon.output_methods.emissions_data import EmissionsData

    return list(EmissionsData.__dataclass_fields__)
