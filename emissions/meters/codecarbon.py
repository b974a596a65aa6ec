"""CodeCarbon's offline tracker beside our own meters: a second opinion on the same window, and its own row of figures.

Our figures are the ledger's; CodeCarbon's total is `codecarbon_kwh`. Its arguments are all given, and no config file
or environment variable of the user reaches it, so two machines track alike. It never sees the network.

It runs in a process of its own, so that neither its threads nor its failures are the job's:

    python -m emissions.meters.codecarbon '{"ram_w": 20.0, "cpu_tdp_w": null, "gpu_indices": [0], "longest_gap_s": 30}'

starts one tracker (`start_tracker` has the settings) and writes one line, `{"started": true, "cpu_is_rapl": ...}`;
waits for a line, or the end, of its standard input; stops the tracker, writes one line `{"result": {its columns}}`,
and exits with 0. A failure is `{"failed": "why"}` in place of either line. SIGINT and SIGTERM are left to whoever
started it.

It runs by `start()` and `stop()`. `start_task()` stops its sampler and then loses RAPL energy at the second wrap.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from emissions.files import atomic_path
from emissions.meters.base import J_PER_KWH
from emissions.meters.processor import default_tdp, processor

# Its periodic sampler and stop() do not exclude each other: where they meet, a modelled interval is counted
# twice. Without RAPL no tick is needed (counters and CPU time are differences, and its load monitor runs at 1
# Hz regardless), so none comes before an hour. With RAPL it reads often enough to see every wrap.
TICK_WITHOUT_RAPL_S = 3600.0
SHORTEST_TICK_S = 0.2

COUNTRY_ISO_CODE = "DEU"  # prices its `emissions` column only, which nothing of ours reads

# Agreement: 2 %, plus the time by which its window is longer than ours, plus this slack: counters of GPUs step by up
# to 0.1 s at each edge, and it skips a last measurement that would come within 0.05 s of the one before.
RELATIVE_TOLERANCE = 0.02
SLACK_S = 0.25

Result = Mapping[str, Any]


def write_csv(path: Path, result: Result | None) -> None:
    """Its row in its own columns, as its own output would write it; only the header if it failed."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(result) if result else _columns())
        writer.writeheader()
        if result:
            writer.writerow(result)


def _columns() -> list[str]:
    from codecarbon.output_methods.emissions_data import EmissionsData

    return list(EmissionsData.__dataclass_fields__)


def disagreements(
    result: Result, *, window_s: float, cpu_j: float | None, gpu_j: float | None, ram_w: float | None
) -> list[str]:
    """One line for each of its figures that known watts or our own counter contradict.

    Args:
        result: its row.
        window_s: length of our own window around the same time.
        cpu_j: our RAPL reading in that window, only where both read RAPL (its load model is cubic, ours is linear).
        gpu_j: our reading of the same GPUs.
        ram_w: the watts that it was told. Its RAM energy is these times its own duration, unless an interval was lost
            or counted twice.

    None: not comparable.
    """
    own_s = float(result["duration"])
    longer_s = max(own_s - window_s, 0.0) + SLACK_S
    lines = []
    if ram_w is not None:
        lines.append(_compare("RAM", result, ram_w * own_s, own_s, SLACK_S, "known watts"))
    if gpu_j is not None:
        lines.append(_compare("GPU", result, gpu_j, window_s, longer_s, "our readings"))
    if cpu_j is not None:
        lines.append(_compare("CPU", result, cpu_j, window_s, longer_s, "our RAPL readings"))
    return [line for line in lines if line]


def _compare(what: str, result: Result, ours_j: float, duration_s: float, slack_s: float, reference: str) -> str:
    theirs_j = float(result[f"{what.lower()}_energy"]) * J_PER_KWH
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
        "allow_multiple_runs": True,  # False would replace signal handlers
        "metadata": None,
        **own,
    }


def start_tracker(
    folder: str,
    *,
    ram_w: float,
    cpu_tdp_w: float | None = None,
    gpu_indices: Sequence[int] = (),
    longest_gap_s: float = TICK_WITHOUT_RAPL_S,
) -> Any:
    """A running tracker. Raises whatever CodeCarbon does.

    Args:
        folder: where its own files would go, were there any.
        ram_w: watts that CodeCarbon is told for the RAM: they make its RAM energy a check of its time-keeping.
        cpu_tdp_w: watts of a modelled CPU, only where there is no RAPL (they would switch CodeCarbon's RAPL off).
        gpu_indices: NVML indices of the GPUs to read.
        longest_gap_s: the longest time between readings in which no counter can wrap unseen.
    """
    with _quick_and_quiet(cpu_tdp_w):
        from codecarbon import OfflineEmissionsTracker

        tracker = OfflineEmissionsTracker(
            **tracker_arguments(
                output_dir=folder,
                force_ram_power=ram_w,
                force_cpu_power=cpu_tdp_w,
                gpu_ids=list(gpu_indices),
                measure_power_secs=min(max(longest_gap_s, SHORTEST_TICK_S), TICK_WITHOUT_RAPL_S),
            )
        )
        tracker.start()
    return tracker


def prepare_stop(tracker: Any) -> None:
    """Let a running tracker look its country up now.

    It would do so in stop(), between its last measurement and its reading of the clock, and with 0.6 s of imports
    (pandas, for tables of clouds and processors that are not asked for; HTTP libraries). Where a later version does
    it otherwise, stop() is slower and no figure changes.
    """
    with contextlib.suppress(Exception):
        import codecarbon.input

        with _replaced(codecarbon.input, "_load_static_data", _load_countries):
            tracker._ensure_geo_metadata()
            tracker._ensure_emissions_engine()


def _load_countries() -> None:
    import codecarbon.input as source

    path = source._get_resource_path("data/private_infra/global_energy_mix.json")
    source._CACHE["global_energy_mix"] = json.loads(path.read_text(encoding="utf-8"))


def stop_tracker(tracker: Any) -> dict[str, Any]:
    """Its row. Raises AttributeError where it has kept an exception of stop() to itself."""
    tracker.stop()
    return dict(tracker.final_emissions_data.values)


def _reads_rapl(tracker: Any) -> bool:
    return any(getattr(part, "_mode", "") == "intel_rapl" for part in tracker._hardware)


@contextlib.contextmanager
def _quick_and_quiet(cpu_tdp_w: float | None) -> Iterator[None]:
    """Start CodeCarbon without the user's settings, its chatter and two seconds of start-up.

    * Config files and CODECARBON_* variables are merged in one function, which answers nothing here: an argument
      that a later version adds keeps CodeCarbon's default.
    * py-cpuinfo starts processes to find the processor's name (1.2 s), and CodeCarbon looks up its TDP with pandas
      (0.4 s) even where it is told the watts. The kernel tells the name, and our own table the watts.
    """
    import codecarbon.core.resource_tracker
    import codecarbon.emissions_tracker
    import cpuinfo
    from codecarbon.external.logger import set_logger_level

    cpu = processor()

    def tdp_per_socket(_: Any) -> SimpleNamespace:
        watts = default_tdp(cpu).watts if cpu_tdp_w is None else cpu_tdp_w
        return SimpleNamespace(model=cpu.name, tdp=watts / cpu.sockets)

    set_logger_level("error")  # the tracker sets it too, after its first lines
    with (
        _replaced(codecarbon.emissions_tracker, "get_hierarchical_config", dict),
        _replaced(cpuinfo, "get_cpu_info", lambda: {"brand_raw": cpu.name}),
        _replaced(codecarbon.core.resource_tracker, "get_cached_tdp", tdp_per_socket),
    ):
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)  # raises where a later version has moved it: better no figure than a wrong one
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def main(arguments: list[str]) -> int:
    """The process: settings as JSON in the first argument, lines of JSON on standard output. Returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answer = _own_output()
    with tempfile.TemporaryDirectory(prefix="codecarbon-", ignore_cleanup_errors=True) as folder:
        try:
            tracker = start_tracker(folder, **json.loads(arguments[0]))
            answer({"started": True, "cpu_is_rapl": _reads_rapl(tracker)})
        except Exception as error:  # whatever it is, it is not the job's
            answer({"failed": _described("did not start", error)})
            return 0
        prepare_stop(tracker)
        sys.stdin.readline()
        try:
            answer({"result": stop_tracker(tracker)})
        except Exception as error:  # as above
            answer({"failed": _described("gave no result", error)})
    return 0


def _own_output() -> Callable[[dict[str, Any]], None]:
    """Writes to standard output, which is for our lines alone: whatever libraries print goes to standard error."""
    output = os.dup(1)
    os.dup2(2, 1)

    def answer(line: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(output, (json.dumps(line, default=str) + "\n").encode())

    return answer


def _described(what: str, error: Exception) -> str:
    first_line = (str(error).splitlines() or [""])[0]
    return f"{what} ({type(error).__name__}: {first_line})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
