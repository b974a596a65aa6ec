"""A real SLURM on this machine for as long as a block runs: Debian's `slurm-wlm` and `munge`, on loopback.

It needs no systemd, no installed configuration and, without cgroups, no root; it leaves nothing but its folder. Its
nodes have more CPUs than the machine, and GPUs that only SLURM knows of (`hardware.standin_environment` has those of
NVML). It keeps no accounts, so `sacct` has nothing to tell, and enforces no memory.

    with Slurm(folder) as slurm:
        job = slurm.sbatch("#!/bin/sh\\nexec python train.py", "--gres=gpu:1")
        assert slurm.wait(job) == "COMPLETED", slurm.output(job)
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

PACKAGES = {
    "munge": ("munged",),
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun"),
}
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")  # of daemons, which are on no user's PATH
CPUS, MEMORY_MB = 4, 8000  # of each node, whatever this machine has
GPU_DEVICES = ("/dev/null", "/dev/zero")  # SLURM wants device files here, and opens none of them
KILL_WAIT_S = 2  # between SIGTERM and SIGKILL of a job whose time is over
TIME_LIMITS_S = 30  # the time between SLURM's looks at them, which no setting changes
PORTS = range(20_000, 32_000)  # below those that the kernel gives to outgoing connections
LONGEST_FOLDER = 50  # Unix sockets in it have paths of at most 107 bytes
START_S = STOP_S = 30.0
POLL_S = 0.1
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)

CONFIGURATION = """
ClusterName=standin
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/{tracking}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1,bf_yield_interval=100000
ReturnToService=2
MinJobAge=300
KillWait={kill_wait_s}
SlurmdTimeout=4
GresTypes=gpu
SlurmdParameters=config_overrides
"""


def missing_packages() -> list[str]:
    """Debian's packages that `Slurm` needs and that are not installed here."""
    return [package for package, names in PACKAGES.items() if not all(_found(name) for name in names)]


class Slurm:
    """A cluster of some nodes in one partition, of which the first has the GPUs.

    Args:
        folder: of its own, in /tmp; gets the configuration, logs, and what jobs print.
        nodes: how many.
        gpus: of the first node, 0 to 2.
        cgroups: whether a job is all that is in its cgroup, which ends as a whole; this needs root. Without it a job
            is what descends from its script: what the script leaves behind when it ends, SLURM loses sight of.

    Raises RuntimeError on entering, naming the packages that are missing, or telling what did not start.
    """

    def __init__(self, folder: Path, nodes: int = 1, gpus: int = 2, cgroups: bool = False) -> None:
        self.folder = folder.absolute()
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise ValueError(f"{folder}: sockets in it need a path of at most {LONGEST_FOLDER} characters")
        tag = secrets.token_hex(3)  # the cgroups of clusters on one machine are named after their nodes
        self.nodes = [f"{tag}-n{number}" for number in range(1, nodes + 1)]
        self._gpus = gpus
        self._cgroups = cgroups
        self._daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    # --- for tests

    def environment(self, base: Mapping[str, str] = os.environ) -> dict[str, str]:
        """`base`, changed so that SLURM's commands, and whoever calls them, find this cluster.

        The `srun` that is first on its PATH finds it where SLURM_CONF is not passed on, too: in Snakemake's jobs.
        """
        # a job of another cluster may be running the tests
        others = {name: value for name, value in base.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        path = os.pathsep.join([str(self._bin), *filter(None, [base.get("PATH")]), *SYSTEM_FOLDERS])
        return others | {"SLURM_CONF": str(self._configuration), "PATH": path}

    def sbatch(self, script: str, *options: str, environment: Mapping[str, str] = os.environ) -> int:
        """Submit a job that gets `environment`, with this cluster's; returns its id."""
        command = ["sbatch", "--parsable", f"--output={self.folder}/job-%j.out", *options]
        return int(self.run(*command, environment=environment, text=script).split(";")[0])

    def state(self, job: int) -> str:
        """What SLURM says of a job, as RUNNING."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()

    def wait(self, job: int, timeout_s: float = 60.0) -> str:
        """The state that a job ended in, as soon as it has. Raises TimeoutError telling the state it is in."""
        _until(lambda: self.state(job) in ENDED, timeout_s, lambda: f"job {job} is {self.state(job)}")
        return self.state(job)

    def end_time_limit(self, job: int) -> None:
        """Let the time limit of a running job be over, for SLURM counts it in minutes.

        SLURM notices in up to `TIME_LIMITS_S`, sends SIGTERM, and SIGKILL some seconds after `KILL_WAIT_S`.
        """
        self.run("scontrol", "update", f"JobId={job}", "EndTime=now+1")

    def output(self, job: int) -> str:
        """What a job has printed."""
        path = self.folder / f"job-{job}.out"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def run(self, *command: str, environment: Mapping[str, str] = os.environ, text: str = "") -> str:
        """Run a command of SLURM's with `text` as its input; returns what it prints. Raises RuntimeError telling why
        it failed."""
        ended = subprocess.run(
            [_found(command[0]) or command[0], *command[1:]],
            env=self.environment(environment),
            input=text,
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.stderr.strip()}")
        return ended.stdout

    def processes(self) -> list[psutil.Process]:
        """All processes of this cluster and its jobs, whoever is their parent by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get("SLURM_CONF") == str(self._configuration)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    # --- start and end

    def __enter__(self) -> Slurm:
        if missing := missing_packages():
            raise RuntimeError(f"SLURM is not installed here; on Debian: apt-get install {' '.join(missing)}")
        try:
            self._configure()
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # the daemons would leave behind what still runs
            self.run("scancel", f"--user={_user()}")
            _until(lambda: not self.run("squeue", "--noheader"), STOP_S, lambda: self.run("squeue"))
        finally:
            self._stop()

    @property
    def _configuration(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def _bin(self) -> Path:
        return self.folder / "bin"

    @property
    def _freezer(self) -> Path:
        return self.folder / "cgroup" / "freezer"

    def _configure(self) -> None:
        for folder in (self.folder / "state", self._bin, self._freezer, *(self.folder / name for name in self.nodes)):
            folder.mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        host, ports = platform.node().split(".")[0], free_ports(1 + len(self.nodes))
        text = CONFIGURATION.format(
            folder=self.folder,
            host=host,
            port=ports.pop(),
            user=_user(),
            tracking="cgroup" if self._cgroups else "linuxproc",
            kill_wait_s=KILL_WAIT_S,
        )
        for name, port in zip(self.nodes, ports, strict=True):
            text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            text += f"CPUs={CPUS} RealMemory={MEMORY_MB}"
            text += f" Gres=gpu:{self._gpus}\n" if self._gpus and name == self.nodes[0] else "\n"
        # LLN: a job goes where least is going on, or the second node would get none
        text += f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES LLN=YES State=UP\n"
        self._configuration.write_text(text)
        gpus = [f"NodeName={self.nodes[0]} Name=gpu File={device}\n" for device in GPU_DEVICES[: self._gpus]]
        (self.folder / "gres.conf").write_text("".join(gpus))
        # a version has to be named even where nothing asks for it
        cgroup = f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self._freezer.parent}\n"
        (self.folder / "cgroup.conf").write_text(cgroup)
        srun = self._bin / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self._configuration} exec {_found("srun")} "$@"\n')
        srun.chmod(0o755)

    def _start(self) -> None:
        if self._cgroups:
            # all that tracking by cgroups needs, and of version 1, which machines with version 2 have as well
            mounting = ["mount", "-t", "cgroup", "-o", "freezer", "none", str(self._freezer)]
            mounted = subprocess.run(mounting, capture_output=True, text=True)
            if mounted.returncode:
                raise RuntimeError(f"SLURM with cgroups needs root and the freezer: {mounted.stderr.strip()}")
        munge = self.folder / "munge.socket"
        files = {name: f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")}
        # --force: it dislikes folders that only their owner may enter
        self._daemon("munged", "--foreground", "--force", f"--socket={munge}", *files.values())
        _until(munge.is_socket, START_S, self._logs)
        self._daemon("slurmctld", "-D")
        for name in self.nodes:
            self._daemon("slurmd", "-D", "-N", name)
        _until(self._all_idle, START_S, self._logs)

    def _all_idle(self) -> bool:
        for name, daemon in self._daemons:
            if daemon.poll() is not None:
                raise RuntimeError(f"{name} has ended with status {daemon.returncode}:\n{self._logs()}")
        try:
            states = self.run("sinfo", "--noheader", "--Node", "--format=%T").split()
        except RuntimeError:
            return False  # slurmctld does not listen yet
        return states == ["idle"] * len(self.nodes)

    def _daemon(self, name: str, *options: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            daemon = subprocess.Popen(
                [_found(name) or name, *options],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which then end the daemons in their order
            )
        self._daemons.append((name, daemon))

    def _stop(self) -> None:
        """End the daemons, the last first since munged serves all others, and what jobs have left."""
        while self._daemons:
            _end(self._daemons.pop()[1], STOP_S)
        for number, timeout_s in ((signal.SIGTERM, 1.0), (signal.SIGKILL, STOP_S)):
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                _until(lambda: not self.processes(), timeout_s, str)
        if self._freezer.is_mount():
            for name in self.nodes:
                for cgroup, _, _ in os.walk(self._freezer / f"slurm_{name}", topdown=False):
                    os.rmdir(cgroup)  # noqa: PTH106 - of strings, as `os.walk` gives them
            subprocess.run(["umount", str(self._freezer)], check=True)

    def _logs(self) -> str:
        """The end of each log."""
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("*.log"))


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that nobody has now."""
    found: list[int] = []
    with contextlib.ExitStack() as held:  # all at once, so that they differ
        while len(found) < count:
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", random.choice(PORTS)))
                found.append(listener.getsockname()[1])
    return found


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name  # whatever USER says


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS]))


def _end(daemon: subprocess.Popen[bytes], timeout_s: float) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(timeout_s)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _until(happened: Callable[[], bool], timeout_s: float, otherwise: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"after {timeout_s:.0f} s: {otherwise()}")
        time.sleep(POLL_S)
