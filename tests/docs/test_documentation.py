"""What the documentation promises exists: commands, files, keys, and help with an example."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from models.config import check_config
from models.plan import make_plan
from tests.models.config_files import ROOT, SCHEMA, default_config

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "config/README.md",
    ROOT / "benchmarks/README.md",
]
OVERLAYS = [*sorted((ROOT / "config/studies").glob("*.yaml")), ROOT / "tests/config/tiny.yaml"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    commands = re.findall(r"(?:^|`)make ([a-z]+)\b", page.read_text(), flags=re.M)
    assert set(commands) <= targets


def test_every_subcommand_has_help_with_an_example():
    def output(*arguments: str) -> str:
        command = [sys.executable, "-m", "emissions.cli", *arguments, "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    subcommands = re.findall(r"^    ([a-z]+)\b", output(), flags=re.M)
    assert {"summary", "dashboard"} <= set(subcommands)
    for name in subcommands:
        assert re.search(rf"footprint {name}", output(name).split("\n\n", 1)[1]), f"{name} shows no example"


def merged(base: dict, overlay: dict) -> dict:
    """An overlay over a config, as Snakemake merges them: mappings deeply, all else replaced."""
    deep = {key: merged(base[key], value) for key, value in overlay.items() if isinstance(value, dict) and key in base}
    return {**base, **overlay, **deep}


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlays_are_valid_and_say_only_what_differs(path: Path):
    overlay = yaml.safe_load(path.read_text())
    config = merged(default_config(), overlay)
    check_config(config, SCHEMA)
    assert make_plan(config).runs


def test_every_key_of_the_config_is_explained():
    lines = (ROOT / "config/config.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"^  [a-z_]+: ", line) and "#" not in line:
            above = next(text for text in reversed(lines[:number]) if not re.match(r"^  [a-z_]+: ", text))
            assert above.strip().startswith("#") or "#" in above or above.endswith(":"), line


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/images.md", ROOT / "config/README.md"])
def test_configs_in_the_documentation_are_valid(page: Path):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.S):
        check_config(merged(default_config(), yaml.safe_load(block)), SCHEMA)
