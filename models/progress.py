"""How far a long loop is: a bar on a terminal, a line every few seconds in the log."""

import logging
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Progress with the time left.

    Args:
        name: shown first.
        total: units of work in all.
        done: units that an earlier attempt has done.
        unit: of work.
        every_s: seconds between lines in the log.
        quiet: tell nothing, as all but the first of several processes should.
    """

    def __init__(
        self, name: str, total: int, done: int = 0, unit: str = "image", every_s: float = 5.0, quiet: bool = False
    ) -> None:
        self.name, self.total, self.start, self.unit, self.every_s, self.quiet = name, total, done, unit, every_s, quiet
        self.opened = self.told = time.monotonic()
        # disable=None: the bar is for terminals only
        self.bar = tqdm(
            total=total, initial=done, desc=name, unit=f" {unit}s", disable=True if quiet else None, leave=False
        )

    def due(self) -> bool:
        """Whether it is time to tell again."""
        return time.monotonic() - self.told >= self.every_s

    def tell(self, done: int, note: str = "") -> None:
        """Say that `done` units are done."""
        self.told = time.monotonic()
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)
        if self.quiet:
            return
        per_s = (done - self.start) / max(1e-9, self.told - self.opened)
        left_s = (self.total - done) / max(1e-9, per_s)
        logger.info(
            "%s: %d of %d %ss, %s, %.1f %ss/s, %d:%02d left",
            self.name, done, self.total, self.unit, note, per_s, self.unit, left_s // 60, left_s % 60,
        )  # fmt: skip

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.bar.close()
