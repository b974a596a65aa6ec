"""CPU time of a job: its process, all its descendants, and those of them that have ended.

Reads /proc, which costs the recorder a few file reads a process and no look at other processes; psutil where
/proc does not tell children.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import NamedTuple

MOST_WALKS = 5  # of one look: processes may end faster than they are read
OUTSIDE = 0  # no pid of a process


class Usage(NamedTuple):
    """CPU seconds of one process, and of the children that it has waited for."""

    parent: int
    started: int  # with the pid, the identity of a process
    own_s: float
    reaped_s: float


class ProcessTree:
    """A process and its descendants. `cpu_s()` never falls and counts each second once.

    Args:
        root: pid of the process.
        own: whether the root's own time counts, or only that of its descendants.
        without: pids whose processes, with their descendants, do not count: the metering's.

    A child's time moves into its parent's "waited-for children" when the parent reaps it. A process whose parent has
    died is adopted by another, so it is kept by its pid once it has been seen; its time is kept as it was last read
    when nobody of the tree reaps it. What a process used between the last look and such an end is not known.
    """

    def __init__(self, root: int, *, own: bool = True, without: frozenset[int] = frozenset()) -> None:
        self.root = root
        self._own = own
        self._without = without
        self._seen: dict[int, Usage] = {}  # parents before their children
        self._unreaped_s = 0.0  # of processes that have ended and that no process of the tree has reaped
        self._last_s = 0.0

    def cpu_s(self) -> float:
        """CPU seconds (user and system) since the processes began, as far as they have been seen."""
        now = self._look()
        self._unreaped_s += self._newly_unreaped_s(now)
        self._seen = now
        total_s = self._unreaped_s + sum(usage.own_s + usage.reaped_s for usage in now.values())
        self._last_s = max(total_s, self._last_s)
        return self._last_s

    def _look(self) -> dict[int, Usage]:
        """The processes that live, read so that the time of one that has ended is in whoever has reaped it.

        Whether a process that is missing from a walk was reaped before its parent was read, or just after, nobody
        can tell; another walk that misses no one finds it at its parent.
        """
        known = self._seen
        for _ in range(MOST_WALKS):
            found = self._walk(known)
            if known.keys() <= found.keys():
                break
            known = found
        return found

    def has(self, pid: int) -> bool:
        """Whether a process was of the tree at the last look."""
        return pid in self._seen

    def _walk(self, known: Iterable[int]) -> dict[int, Usage]:
        """Parents come before their children: a child that is reaped meanwhile is then not read at both places."""
        found: dict[int, Usage] = {}
        waiting = deque([self.root, *known])
        while waiting:
            pid = waiting.popleft()
            if pid in found or pid in self._without:
                continue
            usage = _system.usage(pid)
            before = self._seen.get(pid)
            if usage is None or (before and before.started != usage.started):
                continue  # ended, or its number belongs to another process by now
            found[pid] = usage if self._own or pid != self.root else usage._replace(own_s=0.0)
            waiting += _system.children(pid)
        return found

    def _newly_unreaped_s(self, now: dict[int, Usage]) -> float:
        """Time of the processes that have ended since the last look and that is in nobody's `reaped_s`."""
        ended_s: dict[int, float] = defaultdict(float)  # by the living process that should have reaped them
        for pid, usage in self._seen.items():
            if pid not in now:
                ended_s[self._living(usage.parent, now)] += usage.own_s + usage.reaped_s
        for pid, usage in reversed(now.items()):
            before_s = self._seen[pid].reaped_s if pid in self._seen else 0.0
            rest_s = ended_s.pop(pid, 0.0) - (usage.reaped_s - before_s)
            if rest_s > 0:  # orphans may have been reaped farther up
                ended_s[self._living(usage.parent, now)] += rest_s
        return ended_s[OUTSIDE]

    def _living(self, pid: int, now: dict[int, Usage]) -> int:
        """The process, or its next ancestor that lives, or `OUTSIDE` if that is not of the tree."""
        while pid not in now:
            if pid not in self._seen:
                return OUTSIDE
            pid = self._seen[pid].parent
        return pid


def started(pid: int) -> int | None:
    """What tells a process from a later one of the same pid; None where it has ended."""
    usage = _system.usage(pid)
    return None if usage is None or _system.is_zombie(pid) else usage.started


def age_s(pid: int) -> float:
    """Seconds since a process started; 0 where it has ended."""
    return _system.age_s(pid)


class _Proc:
    """Linux. Files are read without `open()`, which takes half of the time: a job may have hundreds of threads."""

    def __init__(self) -> None:
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")

    def usage(self, pid: int) -> Usage | None:
        stat = self._stat(pid)
        if stat is None:
            return None
        user, system, reaped_user, reaped_system = (int(ticks) * self._tick_s for ticks in stat[11:15])
        return Usage(int(stat[1]), int(stat[19]), user + system, reaped_user + reaped_system)

    def is_zombie(self, pid: int) -> bool:
        stat = self._stat(pid)
        return stat is not None and stat[0] in "ZX"

    def age_s(self, pid: int) -> float:
        usage = self.usage(pid)
        if usage is None:
            return 0.0
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - usage.started * self._tick_s, 0.0)

    def children(self, pid: int) -> list[int]:
        """Direct children, whichever thread started them."""
        try:
            threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
        except OSError:
            return []  # it has ended meanwhile
        children: list[int] = []
        for thread in threads:
            with contextlib.suppress(OSError):
                children += map(int, self._read(f"/proc/{pid}/task/{thread}/children").split())
        return children

    def _stat(self, pid: int) -> list[str] | None:
        """Fields of /proc/PID/stat from the state on: index 0 is field 3 of proc(5)."""
        try:
            # the name before it, in brackets, may hold blanks and brackets
            return self._read(f"/proc/{pid}/stat").rpartition(b")")[2].decode("ascii").split()
        except OSError:
            return None

    @staticmethod
    def _read(path: str) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = b""
            while part := os.read(descriptor, 1 << 16):  # the kernel gives a page at a time
                content += part
            return content
        finally:
            os.close(descriptor)


class _Psutil:
    """Other systems, and kernels that do not list the children of a process."""

    def usage(self, pid: int) -> Usage | None:
        import psutil  # 20 ms that a recorder on Linux need not spend

        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            reaped_s = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            return Usage(process.ppid(), round(process.create_time() * 1000), times.user + times.system, reaped_s)
        except psutil.Error:
            return None

    def is_zombie(self, pid: int) -> bool:
        import psutil

        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def age_s(self, pid: int) -> float:
        usage = self.usage(pid)
        return 0.0 if usage is None else max(time.time() - usage.started / 1000, 0.0)

    def children(self, pid: int) -> list[int]:
        import psutil

        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.Error:
            return []


_system = _Proc() if os.path.exists(f"/proc/self/task/{os.getpid()}/children") else _Psutil()  # noqa: PTH110
