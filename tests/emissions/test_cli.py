"""The `footprint` command, as a user runs it."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request

import pytest

from emissions.cli import COMMANDS, main
from tests.emissions.studies import make_plan
from tests.emissions.test_compare import write_tables

FOOTPRINT = [sys.executable, "-m", "emissions.cli"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_tables(folder, make_plan(dims=(2,), resolutions=(32,)))
    (folder / "dashboard").mkdir()
    (folder / "dashboard/index.html").write_text("<p>a dashboard</p>")
    return folder


def test_summary_prints_the_study(results, capsys):
    assert main(["summary", "--results", str(results)]) == 0
    assert "What this study took" in capsys.readouterr().out


def test_summary_prints_json(results, capsys):
    assert main(["summary", "--results", str(results), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["places"]["zones"] == 352


@pytest.mark.parametrize("command", ["summary", "dashboard", "track", "doctor", "whatif", "schedule", "intensity"])
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example: footprint {command}" in capsys.readouterr().out
    assert len(COMMANDS) == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["summary", "--results", "nowhere"], "nowhere/emissions/priced.csv"),
        (["dashboard", "--results", "nowhere"], "nowhere/dashboard/index.html"),
        (["dashboard", "--port", "80x"], "'80x' is not a port"),
        (["dashboard", "--port", "65536"], "'65536' is not a port"),
        (["track"], "no command; write it after --"),
        (["doctor", "--idle", "soon"], "--idle: invalid float value: 'soon'"),
        (["sumary"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(arguments, words):
    ended = subprocess.run([*FOOTPRINT, *arguments], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_command_starts_without_what_only_some_of_it_needs():
    heavy = "{'pandas', 'numpy', 'pyarrow', 'psutil', 'torch', 'codecarbon'}"
    script = f"import sys, emissions.cli; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(("redirection", "status"), [(">&-", 0), ("| head -n 0", 0), (">/dev/full", 2)])
def test_a_reader_that_takes_nothing_is_no_crash(results, redirection, status):
    script = f'set -o pipefail; "$@" {redirection}'
    command = ["bash", "-c", script, "bash", *FOOTPRINT, "summary", "--results", str(results)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(command, env=buffered, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr and len(ended.stderr.splitlines()) == (status > 0)


def test_the_dashboard_is_served_on_this_machine_only_until_it_is_stopped(results):
    command = [*FOOTPRINT, "dashboard", "--results", str(results), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
            assert found is not None
            with urllib.request.urlopen(found.group(), timeout=10) as page:
                assert page.read() == b"<p>a dashboard</p>"
        finally:
            server.terminate()


def test_a_port_in_use_is_one_line(results, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["dashboard", "--results", str(results), "--port", str(port)]) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err
