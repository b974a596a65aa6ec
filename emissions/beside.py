"""CodeCarbon beside an attempt, in a process of its own, as the recorder sees it.

The recorder must never wait for it: it writes to it, and looks at what it prints when there is something.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from emissions.meters.codecarbon import disagreements

logger = logging.getLogger(__name__)


class CodeCarbonBeside:
    """One run of CodeCarbon over (nearly) the window of an attempt. Its failure is a warning."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.running = False
        self.done = False
        self._reads_rapl = False
        self.result: dict[str, Any] | None = None
        self.warnings: list[str] = []
        self._begun_j: tuple[float, float, float] | None = None  # seconds, CPU and GPU joules at its start
        self._between_j: tuple[float, float, float] | None = None  # the same, between its start and its stop
        self._buffer = b""
        command = [sys.executable, "-P", "-m", "emissions.meters.codecarbon", json.dumps(settings)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)

    def read(self, at: tuple[float, float, float]) -> None:
        """Take what it has printed. at: seconds, and joules of the node's CPU and of the job's GPUs, by now."""
        try:
            chunk = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return
        if not chunk:
            self._ended()
            return
        self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._take(json.loads(line), at)

    def _take(self, message: Mapping[str, Any], at: tuple[float, float, float]) -> None:
        if "started" in message:
            self.running, self._begun_j = True, at
            self._reads_rapl = message["cpu_is_rapl"]
        elif "result" in message:
            self.result, self.done = dict(message["result"]), True
        else:
            self.warnings.append(f"CodeCarbon {message.get('failed', 'gave no result')}")
            self.done = True

    def stop(self, at: tuple[float, float, float]) -> None:
        """Ask for its figures; they come as output. Where it has not begun by now, it has none. at: as in `read`."""
        if self._begun_j is None:
            self.done = True
            self._process.kill()
            return
        self._between_j = (at[0] - self._begun_j[0], at[1] - self._begun_j[1], at[2] - self._begun_j[2])
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _ended(self) -> None:
        if not self.done:
            self.warnings.append("CodeCarbon ended without a result")
        self.done = True

    def node_j(self) -> float | None:
        """What our meters read in its window, of what it reads: the node's CPU, the job's GPUs, the RAM as told."""
        if self._between_j is None or self.result is None:
            return None
        return self._between_j[1] + self._between_j[2] + self.settings["ram_w"] * self._between_j[0]

    def disagreements(self) -> list[str]:
        """Warnings where it contradicts our own readings of the same window."""
        if self._between_j is None or self.result is None:
            return []
        seconds, cpu_j, gpu_j = self._between_j
        return disagreements(
            self.result,
            window_s=seconds,
            cpu_j=cpu_j if self._reads_rapl and self.settings["cpu_tdp_w"] is None else None,
            gpu_j=gpu_j,
            ram_w=self.settings["ram_w"],
        )

    def give_up(self, seconds: float) -> None:
        """It has not answered for so long."""
        self.warnings.append(f"CodeCarbon gave no result in {seconds:.0f} s")
        self.done = True
        self._process.kill()

    def close(self) -> None:
        """Nothing more is read from it; the number of its output may be another file's from now on."""
        self.output = -1
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def has_ended(self) -> bool:
        """Whether the process is gone; its CPU time is then among that of the recorder's children."""
        return self._process.poll() is not None
