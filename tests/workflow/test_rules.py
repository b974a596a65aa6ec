"""What every rule, script and package must keep to, read from the parsed workflow and the sources."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, ResourceSettings

from tests.workflow.snake import BASE, ROOT, TINY

ACCOUNTING = {  # these make tables of what was metered; nothing trains, samples or looks at images in them
    "write_plan",
    "collect_ledger",
    "fetch_intensity",
    "price_ledger",
    "whatif",
    "propose_schedule",
    "measure_savings",
    "compare_emissions",
    "build_dashboard",
    "print_summary",
}


@pytest.fixture(scope="module")
def rules():
    with SnakemakeApi() as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=2),
            config_settings=ConfigSettings(configfiles=[BASE, TINY]),
            snakefile=ROOT / "Snakefile",
        )
        workflow.dag()
        parsed = workflow._workflow
        return list(parsed.rules)


def test_every_script_is_metered(rules):
    scripted = [rule for rule in rules if rule.script]
    assert len(scripted) >= 12
    for rule in scripted:
        source = Path(ROOT / "workflow/scripts" / Path(rule.script).name).read_text()
        assert Path(rule.script).stem == rule.name, "a rule and its script share a name"
        if rule.name in ACCOUNTING:
            assert "with unmetered(snakemake)" in source, rule.name
            continue
        assert "with stage(snakemake) as metered" in source, rule.name
        outputs = {name: str(file) for name, file in rule.output.items()}
        assert outputs["record"].endswith(f"emissions/{rule.name}.json"), rule.name
        assert outputs["trace"].endswith(f"emissions/{rule.name}.power.parquet"), rule.name
        assert outputs["codecarbon"].endswith(f"emissions/{rule.name}.codecarbon.csv"), rule.name


def test_no_rule_works_without_a_script(rules):
    for rule in rules:
        assert not rule.is_run and not rule.shellcmd, f"{rule.name} would not be metered"


def test_every_script_belongs_to_a_rule(rules):
    assert {rule.name for rule in rules if rule.script} == {
        file.stem for file in (ROOT / "workflow/scripts").glob("*.py")
    }


def test_a_script_hands_over_and_does_not_think():
    for script in (ROOT / "workflow/scripts").glob("*.py"):
        tree = ast.parse(script.read_text())
        kinds = {type(node) for node in ast.walk(tree)}
        assert not kinds & {ast.For, ast.While, ast.If, ast.FunctionDef, ast.ClassDef}, script.name
        assert len(script.read_text().splitlines()) <= 25, script.name


def test_every_rule_says_what_it_does(rules):
    for rule in rules:
        assert rule.docstring, rule.name


def test_jobs_run_side_by_side_and_say_which_gpus_they_need(rules):
    profile = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert "resources" not in profile and "default-resources" not in profile
    for rule in rules:
        assert "energy_meter" not in rule.resources, rule.name
        if rule.script and rule.name not in ACCOUNTING:
            assert "gpu" in rule.resources, rule.name
            assert rule.resources["_cores"].raw == 1, f"{rule.name} takes both cores: no other job fits beside it"


def imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("package", "never"),
    [("models", {"emissions", "snakemake"}), ("emissions", {"models", "torch", "monai", "snakemake"})],
)
def test_the_packages_do_not_know_each_other(package, never):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 10
    for file in files:
        assert not imports(file) & never, file


def test_the_constraints_pin_everything_without_a_local_build():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", pin), pin


def test_the_one_file_that_both_packages_need_is_the_same_in_both():
    assert (ROOT / "models/files.py").read_text() == (ROOT / "emissions/files.py").read_text()
