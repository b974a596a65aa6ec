"""The transport of all live sources: patient with a server that is busy, short with one that is wrong.

Every wait is a multiple of `timeout_s`, 10 s unless set otherwise: a try ends without a byte for `timeout_s` or
without its end for 3 of them; tries are 1/10 of it apart, twice as long each time, with jitter, or as long as
`Retry-After` says, up to 3; requests to one host start at least 1/50 apart; and all of it ends after 30.

Tokens are kept out of everything that is printed: messages are our own, what a server says is cleaned of them, and
httpx logs addresses without their query.
"""

from __future__ import annotations

import email.utils
import json
import logging
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, urlsplit

import httpx

from emissions.grid.live.source import SourceError

TRIES = 4
LARGEST_BYTES = 64 * 2**20
WHOLE_ANSWER, LONGEST_RETRY_AFTER, DEADLINE = 3, 3, 30  # x timeout_s
FIRST_BACK_OFF, PAUSE = 1 / 10, 1 / 50  # x timeout_s
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

Read = TypeVar("Read")
_next_turn_s: dict[str, float] = {}  # by host
_turns = threading.Lock()


class _WithoutQuery(logging.Filter):
    """httpx logs the address of every request, and some services want their key in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                argument.copy_with(query=None) if isinstance(argument, httpx.URL) else argument
                for argument in record.args
            )
        return True


logging.getLogger("httpx").addFilter(_WithoutQuery())


class _TryError(Exception):
    """A try has failed. text: for a person; passing: it may be gone at the next try; wait_s: that the server wants."""

    def __init__(self, text: str, status: int | None = None, passing: bool = False, wait_s: float | None = None):
        super().__init__(text)
        self.text, self.status, self.passing, self.wait_s = text, status, passing, wait_s


@cache
def _certificates() -> ssl.SSLContext:
    """The certificates that servers are checked against; reading them takes longer than a request."""
    return httpx.create_ssl_context()


class Connection:
    """Requests of one question to one service. Close it, or use it in a `with`.

    secrets: never shown; a source takes them from here.
    """

    def __init__(self, *, source: str, zone: str, url: str, secrets: Sequence[str], timeout_s: float):
        self.source, self.zone, self.secrets = source, zone, tuple(secrets)
        self._url, self._timeout_s = url, timeout_s
        self._deadline_s = time.monotonic() + DEADLINE * timeout_s
        self._hidden = [secret for secret in self.secrets if secret]
        self._client = httpx.Client(
            timeout=timeout_s, headers={"user-agent": "latent-footprint"}, verify=_certificates()
        )

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def hide(self, secret: str) -> None:
        """Keep a secret that came later, such as a session's token, out of all messages."""
        self._hidden.append(secret)

    def failure(self, what: str, status: int | None = None) -> SourceError:
        """What to raise: one line with the source, the zone and what happened, without secrets."""
        return SourceError(self.source, self.zone, self._clean(what), status)

    def json(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> Any:
        """The JSON that a GET answers. Raises SourceError."""
        return self._get(path, params, headers, auth, (), lambda status, body: json.loads(body))

    def text(
        self, path: str, params: Mapping[str, Any], read: Callable[[int, str], Read], accept: Sequence[int] = ()
    ) -> Read:
        """What `read` makes of the status and text that a GET answers; its ValueError means "not whole".

        accept: statuses that are answers too. Raises SourceError.
        """
        return self._get(path, params, None, None, accept, lambda status, body: read(status, body.decode("utf-8")))

    def _get(
        self,
        path: str,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        auth: tuple[str, str] | None,
        accept: Sequence[int],
        read: Callable[[int, bytes], Read],
    ) -> Read:
        request = self._client.build_request("GET", self._url + path, params=params, headers=headers)
        for tried in range(1, TRIES + 1):
            self._wait_s(self._turn_s())
            try:
                return self._try(request, httpx.BasicAuth(*auth) if auth else None, accept, read)
            except _TryError as error:
                problem = error
            if not problem.passing:
                break
            if tried < TRIES:
                self._wait_s(self._back_off_s(tried, problem), problem)
        after = f" after {tried} tries" if problem.passing else ""
        # outside the `except`: what httpx raised has the address in it, and must not come along
        raise self.failure(problem.text + after, problem.status)

    def _try(
        self, request: httpx.Request, auth: httpx.Auth | None, accept: Sequence[int], read: Callable[[int, bytes], Read]
    ) -> Read:
        try:
            response = self._client.send(request, auth=auth, stream=True)
            try:
                body = self._body(response)
            finally:
                response.close()
        except httpx.TimeoutException:
            raise _TryError(f"no answer within {self._timeout_s:g} s", passing=True) from None
        except httpx.RemoteProtocolError:
            raise _TryError("the answer was cut off", passing=True) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _TryError(f"no connection ({type(error).__name__})", passing=True) from None
        if response.status_code != 200 and response.status_code not in accept:
            raise self._refused(response, body)
        try:
            return read(response.status_code, body)
        except ValueError:  # also of JSON and of UTF-8
            raise _TryError("the answer was cut off or is not in the documented form", passing=True) from None

    def _body(self, response: httpx.Response) -> bytes:
        ends_s = time.monotonic() + WHOLE_ANSWER * self._timeout_s
        parts, size = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > LARGEST_BYTES:
                raise _TryError(f"the answer is larger than {LARGEST_BYTES // 2**20} MiB")
            if time.monotonic() > ends_s:
                raise _TryError(f"the answer was not whole after {WHOLE_ANSWER * self._timeout_s:g} s")
        return b"".join(parts)

    def _refused(self, response: httpx.Response, body: bytes) -> _TryError:
        status = response.status_code
        said = _said(body)
        text = f"HTTP {status}" + (f" ({said})" if said else "")
        if status in (401, 403):
            text += ": the token is wrong, has expired or does not cover this"
        elif response.is_redirect:
            text += ": redirects are not followed, since they would carry the token elsewhere"
        return _TryError(text, status, status in PASSING, _retry_after_s(response.headers.get("retry-after")))

    def _back_off_s(self, tried: int, problem: _TryError) -> float:
        longest_s = LONGEST_RETRY_AFTER * self._timeout_s
        if problem.wait_s is not None and problem.wait_s > longest_s:
            raise self.failure(f"{problem.text}: to be asked again in {problem.wait_s:.0f} s", problem.status)
        back_off_s = FIRST_BACK_OFF * self._timeout_s * 2 ** (tried - 1) * random.uniform(0.5, 1.5)
        return max(back_off_s, problem.wait_s or 0.0)

    def _wait_s(self, seconds: float, problem: _TryError | None = None) -> None:
        if time.monotonic() + seconds > self._deadline_s:
            after = f" after {problem.text}" if problem else ""
            raise self.failure(f"given up{after}: not done within {DEADLINE * self._timeout_s:g} s")
        if seconds > 0:
            time.sleep(seconds)

    def _turn_s(self) -> float:
        """How long to wait for the next turn at this host, which is taken."""
        host = urlsplit(self._url).netloc
        with _turns:
            now_s = time.monotonic()
            turn_s = max(now_s, _next_turn_s.get(host, now_s))
            _next_turn_s[host] = turn_s + PAUSE * self._timeout_s
        return turn_s - now_s

    def _clean(self, text: str) -> str:
        for secret in self._hidden:
            for spelling in {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}:
                text = text.replace(spelling, "***")
        return " ".join(text.split())


def _said(body: bytes) -> str:
    """What a refusal says for itself, in one line, or nothing."""
    text = body[:20_000].decode("utf-8", errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        match = re.search(r"<text>([^<]*)</text>", text)
        found = match.group(1) if match else ""
    while isinstance(found, dict):
        found = next((found[key] for key in ("error", "message", "detail") if found.get(key)), "")
    return " ".join(found.split())[:160] if isinstance(found, str) else ""


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that `Retry-After` asks for: a number, or a date."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
