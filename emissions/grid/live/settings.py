"""Settings of live sources: the config's `carbon.live`, with base URLs and tokens from the environment.

A token is read when a request needs it, and handed to the transport only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class LiveSettings:
    """How live sources are asked.

    url: base URL in place of the source's own: a mirror, a test server.
    token_file: file that holds the token; for two secrets (WattTime) the user and the password, a line each.
    cache: folder of the cache; None: `latent-footprint/intensity` in the user's cache folder.
    max_age_h: how long an answer about recent hours or the future is used again without asking.
    timeout_s: without a byte from the server; every other wait is a multiple of it (see `http`).
    """

    url: str | None = None
    token_file: str | None = None
    cache: str | None = None
    max_age_h: float = 1.0
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("url", "token_file", "cache"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"carbon.live.{name} is {value!r}; expected text or null")
        for name in ("max_age_h", "timeout_s"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not (math.isfinite(value) and value > 0)
            ):
                raise ValueError(f"carbon.live.{name} is {value!r}; expected a number above 0")

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> LiveSettings:
        """The settings in the config's `carbon.live`. Raises ValueError naming the key that is unknown or wrong."""
        known = [field.name for field in fields(cls)]
        for key in section:
            if key not in known:
                raise ValueError(f"carbon.live.{key}: no such setting; there are {', '.join(known)}")
        return cls(**section)

    def base_url(self, source: str, public: str) -> str:
        """Where to ask a source: `url`, else FOOTPRINT_{SOURCE}_URL, else its public address; no slash at the end.

        Raises ValueError for one that is not http or https, or that carries a user, a query or a fragment: secrets
        do not belong there.
        """
        url = (self.url or os.environ.get(_variable(source, "URL")) or public).strip().rstrip("/")
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable or "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                f"{source}: the base URL (carbon.live.url or {_variable(source, 'URL')}) is not of the form "
                "https://host/path, without user or query"
            )
        return url

    def cache_folder(self) -> Path:
        """`cache`, else the user's: XDG_CACHE_HOME, or ~/.cache."""
        if self.cache:
            return Path(self.cache).expanduser()
        home = os.environ.get("XDG_CACHE_HOME")
        return (Path(home) if home else Path.home() / ".cache") / "latent-footprint" / "intensity"

    def secrets(self, source: str, names: Sequence[str]) -> tuple[str, ...]:
        """The values of a source's secrets: the lines of `token_file`, else FOOTPRINT_{SOURCE}_{NAME}.

        Raises ValueError saying what to set, and never what was found; OSError for a file that cannot be read.
        """
        variables = [_variable(source, name) for name in names]
        if self.token_file and names:
            lines = Path(self.token_file).expanduser().read_text(encoding="utf-8").split("\n")
            values = [line.strip() for line in lines if line.strip()]
            told = f"the file {self.token_file} (carbon.live.token_file)"
        else:
            values = [value for value in (os.environ.get(name, "").strip() for name in variables) if value]
            told = " and ".join(variables)
        if len(values) != len(names):
            wanted = "a token" if len(names) == 1 else f"{len(names)} secrets ({', '.join(names).lower()})"
            raise ValueError(
                f"needs {wanted}: {told} {'holds' if self.token_file else 'is not set: holds'} {len(values)}"
            )
        if not all(value.isascii() and value.isprintable() for value in values):
            raise ValueError(f"the token in {told} is not plain text of one line")
        return tuple(values)


def _variable(source: str, name: str) -> str:
    return f"FOOTPRINT_{source.upper()}_{name}"
