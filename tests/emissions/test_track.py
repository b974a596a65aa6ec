"""`footprint track` as a user runs it, on commands that say themselves what they did."""

import contextlib
import csv
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import combinations
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from emissions import track
from emissions.meters.base import J_PER_KWH
from emissions.records import LEDGER_COLUMNS, read_journal, read_record
from tests.emissions.jobs import recorders, wait_for_no_recorder
from tests.standins.hardware import REPOSITORY, standin_environment

TRACK = [sys.executable, "-m", "emissions.cli", "track"]
QUICK = [*TRACK, "--no-codecarbon"]
PYTHON = [sys.executable, "-I", "-S", "-c"]
SLEEPS = ["sh", "-c", "echo ready; exec sleep 60"]
EXITS_ON_SIGNAL = ["sh", "-c", "trap 'exit 5' TERM INT USR1; echo ready; while :; do sleep 0.05; done"]
# User and system time are each cut to ticks, in each of some processes.
RESOLUTION_S = 8 / os.sysconf("SC_CLK_TCK")
BURNS = """
import os, sys, time
def burn(seconds):  # of CPU time, all that this process has used by then
    while time.process_time() < seconds:
        pass
"""


@pytest.fixture
def environment(monkeypatch):
    """Of a machine without sensors, where the test's jobs meet in a folder of their own and leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="track-", dir="/tmp"))  # short: a socket is in it
    (folder / "temporary").mkdir()
    settings = {
        "FOOTPRINT_RUNTIME_DIR": str(folder / "runtime"),
        "FOOTPRINT_POWERCAP": str(folder / "no-powercap"),
        "TMPDIR": str(folder / "temporary"),
        "PYTHONPATH": str(REPOSITORY),
    }
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)
    yield {**os.environ, **settings}
    wait_for_no_recorder(folder)
    shutil.rmtree(folder)


@pytest.fixture
def with_gpus(environment, nvml_folder):
    """The same with GPUs of 250 and 260 W."""
    own = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    return standin_environment(nvml_folder, **own, FAKE_NVML_WATTS="250,260")


def run(environment, command, *options, **arguments):
    arguments = {"capture_output": True, "text": True, "timeout": 120} | arguments
    return subprocess.run([*QUICK, *options, "--", *command], env=environment, **arguments)


@contextlib.contextmanager
def started(environment, command, *options, **arguments):
    """A tracked command that has said its first line."""
    arguments = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | arguments
    with subprocess.Popen([*QUICK, *options, "--", *command], env=environment, **arguments) as process:
        try:
            assert process.stdout is None or process.stdout.readline()
            yield process
        finally:
            process.kill()


def runtime(environment):
    return Path(environment["FOOTPRINT_RUNTIME_DIR"])


def temporary(environment):
    return Path(environment["TMPDIR"])


def the_line(errors):
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert re.match(r"footprint: \d+\.\d s, \S+ Wh \(\S+ to \S+\); CPU ", lines[0])
    return lines[0]


# --- the command goes as it would without


@pytest.mark.parametrize(
    ("script", "status", "outcome"),
    [("exit 0", 0, ""), ("exit 3", 3, "failed"), ("kill -9 $$", 137, "killed"), ("kill -15 $$", 143, "terminated")],
)
def test_the_exit_status_is_the_commands(environment, script, status, outcome):
    ended = run(environment, ["sh", "-c", script])
    assert ended.returncode == status
    assert ended.stdout == ""
    assert ("; failed" in ended.stderr, "; killed" in ended.stderr, "; terminated" in ended.stderr) == (
        outcome == "failed",
        outcome == "killed",
        outcome == "terminated",
    )
    the_line(ended.stderr)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [(None, 127, "no such command"), ("", 126, "Permission denied"), ("\x7fELF", 126, "Exec format error")],
)
def test_what_cannot_be_run_has_a_shells_status(environment, tmp_path, content, status, words):
    command = tmp_path / "command"
    if content is not None:
        command.write_text(content)
    if content:
        command.chmod(0o755)
    ended = run(environment, [str(command)])
    assert ended.returncode == status
    assert ended.stderr.startswith(f"error: {command}: {words}\n")


def test_an_unknown_command_is_one_line_and_starts_no_recorder(environment):
    ended = run(environment, ["no-such-command"], "--gpus", "1")
    assert (ended.returncode, ended.stderr) == (127, "error: no-such-command: no such command\n")
    assert not runtime(environment).exists()


def test_input_and_output_pass_through(environment):
    data = os.urandom(300_000)
    ended = run(environment, ["sh", "-c", "cat; echo own error >&2"], input=data, text=False)
    assert ended.stdout == data
    own, line = ended.stderr.decode().splitlines()
    assert own == "own error"
    the_line(line)


def test_open_files_and_broken_pipes_are_the_commands_too(environment):
    reading, writing = os.pipe()
    script = f"echo here >/dev/fd/{writing}; yes | head -n 1; exec grep SigIgn /proc/self/status"
    ended = run(environment, ["sh", "-c", script], pass_fds=(writing,))
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert stream.read() == "here\n"
    word, ignored = ended.stdout.splitlines()
    assert word == "y"
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&-", "2>/dev/full <&-"])
def test_a_terminal_that_takes_no_line_changes_no_status(environment, redirection):
    script = f'"$@" {redirection}'
    command = ["sh", "-c", script, "sh", *QUICK, "--", "sh", "-c", "exit 3"]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 3


def test_a_command_may_have_options_and_needs_no_dashes(environment):
    assert run(environment, ["echo", "--out", "--", "x"]).stdout == "--out -- x\n"
    ended = subprocess.run([*QUICK, "echo", "--zone", "y"], env=environment, capture_output=True, text=True)
    assert ended.stdout == "--zone y\n"


@pytest.mark.parametrize("blocked", [set(), {signal.SIGTERM, signal.SIGRTMIN + 1}])
def test_signals_are_blocked_in_the_command_as_they_would_be_without(environment, blocked):
    def block():
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

    shown = run(environment, ["grep", "SigBlk", "/proc/self/status"], preexec_fn=block).stdout
    assert int(shown.split()[1], 16) == sum(1 << (number - 1) for number in blocked)


def test_the_status_is_known_though_a_parent_ignores_the_ends_of_children(environment):
    ended = run(environment, ["sh", "-c", "exit 7"], preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert ended.returncode == 7


# --- what is kept


def test_out_holds_record_trace_codecarbons_row_and_journal(environment, tmp_path):
    out = tmp_path / "new" / "measured"
    command = [*TRACK, "--out", str(out), "--interval-s", "0.1", "--zone", "DE", "--", "sleep", "0.7"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0
    line = the_line(ended.stderr)
    assert "g CO2e in DE (" in line and line.endswith(f"; {out / 'record.json'}")
    assert sorted(path.name for path in out.iterdir()) == [
        "codecarbon.csv", "journal.jsonl", "power.parquet", "record.json",
    ]  # fmt: skip
    assert tuple(json.loads((out / "record.json").read_text())) == LEDGER_COLUMNS
    record = read_record(out / "record.json")
    assert (record["stage"], record["item"], record["outcome"]) == ("track", "sleep", "ok")
    assert 0.7 <= record["duration_s"] < 5
    assert record["cpu_s"] < 0.3 and record["startup_kwh"] == 0 and record["wasted_kwh"] == 0
    assert read_journal(out / "journal.jsonl") == [record]
    trace = pq.read_table(out / "power.parquet").to_pydict()
    assert len(trace["time"]) >= 4 and all(watts > 0 for watts in trace["ram_w"])
    with (out / "codecarbon.csv").open() as stream:
        assert "energy_consumed" in next(csv.reader(stream))


def test_without_out_no_file_is_left(environment, tmp_path):
    the_line(run(environment, ["true"], cwd=tmp_path).stderr)
    wait_for_no_recorder(runtime(environment))
    assert list(tmp_path.iterdir()) == [] and list(temporary(environment).iterdir()) == []
    assert {path.suffix for path in runtime(environment).iterdir()} == {".lock", ".log"}


def test_the_journal_of_a_folder_holds_all_its_runs(environment, tmp_path):
    for status in (0, 1, 0):
        assert run(environment, ["sh", "-c", f"exit {status}"], "--out", str(tmp_path)).returncode == status
    attempts = read_journal(tmp_path / "journal.jsonl")
    assert [attempt["outcome"] for attempt in attempts] == ["ok", "failed", "ok"]
    assert attempts[1]["wasted_kwh"] == attempts[1]["energy_kwh"] > 0
    assert read_record(tmp_path / "record.json") == attempts[2]


def test_a_folder_that_cannot_be_written_to_changes_where_the_figures_are(environment, tmp_path):
    (tmp_path / "file").write_text("")
    ended = run(environment, ["sh", "-c", "exit 3"], "--out", str(tmp_path / "file" / "out"))
    assert ended.returncode == 3
    warning, line = ended.stderr.splitlines()
    kept = Path(re.search(r"cannot be written to \(.+\); the figures go to (.+)$", warning).group(1))
    assert line.endswith(f"; failed; {kept / 'record.json'}")
    assert read_journal(kept / "journal.jsonl") == [read_record(kept / "record.json")]


def in_small_disk(folder, command):
    """`command` in a mount namespace where `folder` holds a page."""
    return ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o size=4k none "$0"; exec "$@"', str(folder), *command]


def test_a_full_disk_costs_files_and_neither_the_line_nor_the_status(environment, tmp_path):
    if subprocess.run(in_small_disk(tmp_path, ["true"]), capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    fill_and_fail = f"head -c 9999 /dev/zero > {tmp_path}/filler; exit 3"
    command = [*TRACK, "--out", str(tmp_path), "--", "sh", "-c", fill_and_fail]
    ended = subprocess.run(in_small_disk(tmp_path, command), env=environment, capture_output=True, text=True)
    assert ended.returncode == 3
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("head: ")]
    assert f"WARNING: not all figures are in {tmp_path}" in lines[0] and "No space left" in lines[0]
    the_line(lines[-1])


# --- whose CPU time it is


def wait_with_usage(process):
    """Exit status of a process and the CPU seconds of it and of all that it has waited for."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def cpu_seconds(environment, out, command):
    """CPU seconds of the record, and the kernel's of the whole run: that is the command and `footprint` itself."""
    process = subprocess.Popen(
        [*QUICK, "--out", str(out), "--interval-s", "0.2", "--", *command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = process.stderr.read(), process.stderr.close()
    status, all_s = wait_with_usage(process)
    assert status == 0, errors
    return read_record(out / "record.json")["cpu_s"], all_s


def test_all_processes_of_a_command_count(environment, tmp_path):
    script = BURNS + "for _ in range(3):\n    if os.fork() == 0:\n        burn(0.3)\n        os._exit(0)\n"
    script += "burn(0.2)\nfor _ in range(3):\n    os.wait()\n"
    cpu_s, all_s = cpu_seconds(environment, tmp_path, [*PYTHON, script])
    assert 1.1 - RESOLUTION_S <= cpu_s <= min(1.4, all_s)


def test_daemons_count_though_their_parents_have_ended(environment, tmp_path):
    daemon = f"""{BURNS}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while os.getppid() == os.getpgid(0):
            time.sleep(0.001)
        burn(0.5)
        open(sys.argv[1], "w").close()
    os._exit(0)
os.wait()
"""
    script = '"$@"; while ! [ -e "$0" ]; do sleep 0.05; done; sleep 0.1'
    command = ["sh", "-c", script, str(tmp_path / "done"), *PYTHON, daemon, str(tmp_path / "done")]
    cpu_s, all_s = cpu_seconds(environment, tmp_path / "out", command)
    assert 0.5 - RESOLUTION_S <= cpu_s <= min(0.9, all_s)


def test_torchruns_workers_count(environment, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(BURNS + "burn(1.0)\nopen(f'{sys.argv[0]}.{os.environ[\"RANK\"]}', 'w').close()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
    cpu_s, all_s = cpu_seconds({**environment, "OMP_NUM_THREADS": "1"}, tmp_path / "out", torchrun)
    assert sorted(path.suffix for path in tmp_path.glob("worker.py.*")) == [".0", ".1"]
    assert 2.0 - RESOLUTION_S <= cpu_s <= all_s
    assert cpu_s > all_s - 1.5  # of footprint itself


def test_the_recorder_is_nobodys_child(environment):
    with started(environment, SLEEPS) as process:
        (recorder,) = recorders(runtime(environment))
        assert recorder.ppid() != process.pid
        process.terminate()
        process.wait()


# --- GPUs of known power


@pytest.mark.parametrize(("visible", "watts"), [("0", 250), ("1", 260), (None, 510)])
def test_energy_of_gpus_is_their_power_by_the_time(with_gpus, tmp_path, visible, watts):
    if visible is not None:
        with_gpus["CUDA_VISIBLE_DEVICES"] = visible
    script = "import time; print(time.monotonic(), flush=True); time.sleep(2); print(time.monotonic())"
    before_s = time.monotonic()
    ended = run(with_gpus, [*PYTHON, script], "--out", str(tmp_path))
    after_s = time.monotonic()
    from_s, until_s = map(float, ended.stdout.split())
    record = read_record(tmp_path / "record.json")
    assert record["gpu_count"] == (2 if visible is None else 1)
    gpu_j = record["gpu_kwh"] * J_PER_KWH
    assert 0.99 * watts * (until_s - from_s) <= gpu_j <= 1.01 * watts * (after_s - before_s)
    assert gpu_j == pytest.approx(watts * record["duration_s"], abs=0.2 * watts)
    assert record["gpu_low_kwh"] * J_PER_KWH < gpu_j < record["gpu_high_kwh"] * J_PER_KWH
    assert "GPU " in ended.stderr and "[nvml:energy-counter]" in ended.stderr


def test_gpus_are_held_for_the_command(with_gpus, tmp_path):
    script = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 1.5"]
    command = [*QUICK, "--gpus", "1", "--out"]
    processes = [
        subprocess.Popen([*command, str(tmp_path / name), "--", *script], env=with_gpus, stdout=subprocess.PIPE)
        for name in "ab"
    ]
    shown = [process.communicate(timeout=60)[0].decode().strip() for process in processes]
    assert sorted(shown) == [f"GPU-0000000{number}-0000-0000-0000-000000000000" for number in range(2)]
    for name, uuid in zip("ab", shown, strict=True):
        record = read_record(tmp_path / name / "record.json")
        watts = {"GPU-00000000": 250, "GPU-00000001": 260}[uuid[:12]]
        assert record["gpu_count"] == 1
        assert record["gpu_kwh"] * J_PER_KWH == pytest.approx(watts * record["duration_s"], abs=0.2 * watts)
    assert with_gpus.get("CUDA_VISIBLE_DEVICES") is None


def test_more_gpus_than_there_are_is_one_line_and_nothing_runs(with_gpus):
    ended = run(with_gpus, ["echo", "it ran"], "--gpus", "3")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: --gpus=3: this machine has 2\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_waiting_for_gpus_may_be_stopped(with_gpus, number, status):
    with started(with_gpus, SLEEPS, "--gpus", "1") as holder:
        command = [*QUICK, "--gpus", "2", "--", "echo", "it ran"]
        waiting = subprocess.Popen(command, env=with_gpus, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        told = waiting.stderr.readline()
        assert told == f"WARNING: waiting for 2 free GPUs of 2: held by process {holder.pid}\n"
        waiting.send_signal(number)
        assert waiting.communicate(timeout=60) == ("", "")
        assert waiting.returncode == status
        holder.terminate()
        holder.wait()


def test_a_gpu_where_there_is_none_is_a_warning(environment):
    ended = run(environment, ["echo", "it ran"], "--gpus", "1")
    assert (ended.returncode, ended.stdout) == (0, "it ran\n")
    warning, line = ended.stderr.splitlines()
    assert warning == "WARNING: --gpus=1: no GPU was found to hold"
    the_line(line)


# --- signals


@pytest.mark.parametrize(
    ("number", "command", "status", "outcome"),
    [
        (signal.SIGTERM, SLEEPS, 143, "terminated"),
        (signal.SIGTERM, EXITS_ON_SIGNAL, 5, "terminated"),
        (signal.SIGINT, SLEEPS, 130, "interrupted"),
        (signal.SIGINT, EXITS_ON_SIGNAL, 5, "interrupted"),
        (signal.SIGUSR1, EXITS_ON_SIGNAL, 5, "failed"),
        (signal.SIGHUP, SLEEPS, 129, "failed"),
    ],
)
def test_signals_are_the_commands(environment, tmp_path, number, command, status, outcome):
    with started(environment, command, "--out", str(tmp_path)) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"; {outcome}" in the_line(errors)
    (attempt,) = read_journal(tmp_path / "journal.jsonl")
    assert attempt["outcome"] == outcome == read_record(tmp_path / "record.json")["outcome"]


def test_a_signal_that_comes_while_the_figures_are_written_cuts_nothing_short(environment, tmp_path):
    with started(environment, ["sh", "-c", "echo ready; sleep 0.5"], "--out", str(tmp_path)) as process:
        (command,) = psutil.Process(process.pid).children()
        while command.is_running() and process.poll() is None:
            time.sleep(0.001)
        while process.poll() is None:
            process.terminate()
            time.sleep(0.005)
    assert process.returncode == 0
    assert read_record(tmp_path / "record.json")["outcome"] == "ok"


def test_a_signal_that_is_ignored_stays_so(environment):
    """As under nohup."""
    script = ["sh", "-c", "echo ready; sleep 1; exit 3"]
    with started(environment, script, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 3


COUNTS_INTERRUPTS = """
import signal, time
interrupts = []
signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
print("ready", flush=True)
end_s = time.monotonic() + 1
while time.monotonic() < end_s:
    time.sleep(0.05)
print("interrupts", len(interrupts), flush=True)
"""


@pytest.mark.parametrize("from_terminal", [True, False])
def test_an_interrupt_reaches_the_command_once(environment, from_terminal):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*QUICK, "--", *PYTHON, COUNTS_INTERRUPTS], environment)
    with os.fdopen(terminal, "rb+", buffering=0) as stream:
        output = b""
        while b"ready" not in output:
            output += stream.read(1000)
        if from_terminal:
            stream.write(b"\x03")
        else:
            os.kill(pid, signal.SIGINT)
        with contextlib.suppress(OSError):  # a terminal without processes ends with EIO
            while chunk := stream.read(1000):
                output += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"interrupts 1" in output


def test_where_nobody_tells_who_sent_a_signal(monkeypatch):
    monkeypatch.delattr(signal, "sigwaitinfo")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert track._next_signal({signal.SIGUSR1})[0] == signal.SIGUSR1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("with_command", [True, False])
def test_killed_it_is_in_the_journal(environment, tmp_path, with_command):
    with started(environment, SLEEPS, "--out", str(tmp_path), start_new_session=True) as process:
        time.sleep(0.5)
        if with_command:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        (attempt,) = wait_for(lambda: read_journal(tmp_path / "journal.jsonl"))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert attempt["outcome"] == "killed"
    assert attempt["wasted_kwh"] == attempt["energy_kwh"] > 0
    assert 0.4 < attempt["duration_s"] < 10


def test_a_command_outlives_its_recorder(environment, tmp_path):
    command = ["sh", "-c", "echo ready; sleep 1.5; exit 3"]
    with started(environment, command, "--out", str(tmp_path), "--interval-s", "0.1") as process:
        time.sleep(0.8)
        (recorder,) = recorders(runtime(environment))
        recorder.kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "the recorder was gone when the job ended" in errors
    (attempt,) = read_journal(tmp_path / "journal.jsonl")
    assert attempt["outcome"] == "failed" and 0.3 < attempt["duration_s"] < 2


def test_what_was_killed_with_its_recorder_is_found_by_the_next_run(environment, tmp_path):
    with started(environment, SLEEPS, "--out", str(tmp_path), "--interval-s", "0.1", start_new_session=True) as process:
        time.sleep(0.5)
        (recorder,) = recorders(runtime(environment))
        recorder.kill()
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "journal.jsonl").exists()
    run(environment, ["true"], "--out", str(tmp_path))
    assert [attempt["outcome"] for attempt in read_journal(tmp_path / "journal.jsonl")] == ["killed", "ok"]


# --- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--zone", "Atlantis"], "unknown zone 'Atlantis'"),
        (["--interval-s", "99"], "--interval-s: 99 is not 0.1 to 10 seconds"),
        (["--interval-s", "nan"], "--interval-s: nan is not 0.1 to 10 seconds"),
        (["--interval-s", "often"], "--interval-s: invalid"),
        (["--gpus", "-1"], "--gpus: -1 is not a number of GPUs"),
        (["--gpus", "all"], "--gpus: all is not a number of GPUs"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_users_mistake_is_one_line_and_nothing_runs(environment, options, words):
    ended = run(environment, ["echo", "it ran"], *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["--"], ["--zone", "DE"]])
def test_no_command_is_one_line(environment, arguments):
    ended = subprocess.run([*TRACK, *arguments], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: footprint track: no command") and len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--out", "measured"]])
def test_without_a_place_for_a_recorder_the_command_is_metered_from_inside(environment, tmp_path, options):
    (tmp_path / "file").write_text("")
    environment["FOOTPRINT_RUNTIME_DIR"] = str(tmp_path / "file" / "runtime")
    ended = run(environment, [*PYTHON, f"{BURNS}burn(0.3); sys.exit(3)"], *options, cwd=tmp_path)
    assert ended.returncode == 3
    warning, line = ended.stderr.splitlines()
    assert "metered from inside" in warning
    the_line(line)
    if options:
        assert read_record(tmp_path / "measured" / "record.json")["cpu_s"] == pytest.approx(0.3, abs=RESOLUTION_S)


def test_from_inside_signals_still_reach_the_command(environment, tmp_path):
    (tmp_path / "file").write_text("")
    environment["FOOTPRINT_RUNTIME_DIR"] = str(tmp_path / "file" / "runtime")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with started(environment, EXITS_ON_SIGNAL) as process:
            process.send_signal(number)
            assert process.wait(60) == 5


def test_without_any_place_for_files_the_command_runs(environment, tmp_path):
    """Python takes the present folder where all usual ones refuse; there is none in an empty, read-only root."""
    script = "import tempfile; tempfile.tempdir = '/no/such'; from emissions.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", script, "track", "--", "sh", "-c", "exit 3"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3
    assert "the command runs without being metered: " in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_help_has_an_example(environment):
    ended = subprocess.run([*TRACK, "--help"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0
    assert "example: footprint track " in ended.stdout


# --- every joule once


def test_jobs_side_by_side_and_the_rest_are_the_node(with_gpus, tmp_path):
    """Of three commands, one of which encloses the others: shares, metering and rest are what the node used."""
    burn = [*PYTHON, f"{BURNS}burn(1.0)"]
    options = {"around": [], "one": ["--gpus", "1"], "two": []}
    with started(
        with_gpus, ["sh", "-c", "echo ready; cat"], "--out", str(tmp_path / "around"), stdin=subprocess.PIPE
    ) as around:
        inner = [
            subprocess.Popen([*QUICK, *options[name], "--out", str(tmp_path / name), "--", *burn], env=with_gpus)
            for name in ("one", "two")
        ]
        assert [process.wait(60) for process in inner] == [0, 0]
        around.stdin.close()
        assert around.wait(60) == 0
    records = {name: read_record(tmp_path / name / "record.json") for name in options}
    windows = [(record["started_at"], record["ended_at"]) for record in records.values()]
    assert all(begin < other_end for (begin, _), (_, other_end) in combinations(windows, 2))
    shares_kwh = sum(record["energy_kwh"] - record["startup_kwh"] for record in records.values())
    metering_kwh = sum(record["metering_kwh"] for record in records.values())
    node_kwh, rest_kwh = records["around"]["node_kwh"], records["around"]["rest_kwh"]
    assert node_kwh == pytest.approx(shares_kwh + metering_kwh + rest_kwh, rel=1e-6)
    assert node_kwh * J_PER_KWH > 510 * records["around"]["duration_s"]
    assert records["one"]["gpu_kwh"] * J_PER_KWH == pytest.approx(250 * records["one"]["duration_s"], abs=50)
    assert all(0 < record["cpu_kwh"] < node_kwh for record in records.values())
    assert records["one"]["cpu_s"] == pytest.approx(1.0, abs=RESOLUTION_S + 0.1)
    assert records["around"]["cpu_s"] < 0.2
