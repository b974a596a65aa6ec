"""Snakemake as a user runs it, with this project's Snakefile, in any folder."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = ROOT / "config/config.yaml"
TINY = ROOT / "tests/config/tiny.yaml"


def snakemake_command(
    folder: Path, *arguments: str | Path, configs: tuple[Path, ...] = (TINY,), profile: str = "default"
) -> tuple[list[str | Path], dict[str, str]]:
    """Command and environment of Snakemake with `folder` as working directory; results land there."""
    targets = [argument for argument in arguments if not str(argument).startswith("-")]
    flags = [argument for argument in arguments if str(argument).startswith("-")]
    command = [sys.executable, "-m", "snakemake", *flags, "--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--workflow-profile", ROOT / "profiles" / profile, "--cores", "2"]
    command += ["--configfile", BASE, *configs, "--", *targets]
    return command, {**os.environ, "PYTHONPATH": str(ROOT)}


def snakemake(
    folder: Path, *arguments: str | Path, configs: tuple[Path, ...] = (TINY,)
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake to its end."""
    command, environment = snakemake_command(folder, *arguments, configs=configs)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def jobs_of(dry_run: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """How often each rule would run, from the table that a dry run prints."""
    assert dry_run.returncode == 0, dry_run.stderr[-2000:]
    counts, in_table = {}, False
    for line in (dry_run.stdout + dry_run.stderr).splitlines():
        if line.startswith(("job ", "-----")):
            in_table = True
        elif in_table and len(line.split()) == 2 and line.split()[1].isdigit():
            counts[line.split()[0]] = int(line.split()[1])
        elif in_table and line.startswith("total"):
            break
    counts.pop("total", None)
    return counts
