"""What `with stage(...)` adds to a job on this machine.

Run from the repository: `python -m tests.standins.overhead [--idle SECONDS]`. The imports that every training
script has made by then (pandas comes with MONAI) are made first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas  # noqa: F401 - see above

from emissions.stage import stage
from tests.standins.hardware import fake_snakemake


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=float, default=0.5, help="seconds that the metered block sleeps")
    idle_s = parser.parse_args().idle
    with tempfile.TemporaryDirectory() as results:
        metered = stage(fake_snakemake(Path(results), config={}))
        start_s = time.perf_counter()
        metered.__enter__()
        opened_s, cpu_s = time.perf_counter(), time.process_time()
        time.sleep(idle_s)
        closing_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
        metered.__exit__(None, None, None)
        end_s = time.perf_counter()
    added_s = opened_s - start_s + end_s - closing_s
    share = 100 * cpu_s / (closing_s - opened_s)
    sys.stdout.write(
        f"enter {opened_s - start_s:.3f} s, exit {end_s - closing_s:.3f} s, together {added_s:.3f} s; "
        f"in the window {share:.2f} % of one core\n"
    )


if __name__ == "__main__":
    main()
