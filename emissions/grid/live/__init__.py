"""Carbon intensity from services on the network; the only part of the package that asks one.

    settings    the config's `carbon.live`, base URLs and tokens
    ask         history, forecast, and the tables in place of a source
    source      what a source is, and what its answer must be before it is believed
    http, cache one transport, one cache
    factors     generation by fuel to carbon intensity
    electricity_maps, uk, entsoe, eia, ember, watttime      one small file each
    command     `footprint intensity`

The names below are imported when they are used: httpx and pandas are slow to import, and `footprint track` needs
neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emissions.grid.live.ask import SOURCES, forecast, history, history_or_tables
    from emissions.grid.live.settings import LiveSettings
    from emissions.grid.live.source import SourceError

NAMES = ("electricity_maps", "uk", "entsoe", "eia", "ember", "watttime")

__all__ = ["NAMES", "SOURCES", "LiveSettings", "SourceError", "forecast", "history", "history_or_tables"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emissions.grid.live import ask

    return getattr(ask, name)
