"""Durations, times and numbers as they are written on a command line."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta

from emissions.records import parse_utc

UNITS = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def duration(text: str) -> timedelta:
    """A duration above zero: 90min, 24h, 7d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(min|h|d)", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration above zero: write it as 90min, 24h or 7d")
    return float(match[1]) * UNITS[match[2]]


def moment(text: str) -> datetime:
    """A time with its zone, in UTC."""
    try:
        return parse_utc(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write it as 2026-11-25T08:00Z") from None


def number(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least zero")
    return value
