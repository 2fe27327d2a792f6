"""Stage 1, tile: the artefact filters that are installed."""

import pkgutil
import re
from importlib import import_module

from her2 import filters
from her2.filters.base import AreaFilter, Filter, TileFilter

_NOT_FILTERS = {"base", "registry"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _installed() -> list[Filter]:
    """Read the filter of each module of the package.

    Raises:
        TypeError: a module does not define `FILTER`, or by a name that is not its own.
    """
    found: list[Filter] = []
    for module in pkgutil.iter_modules(filters.__path__):
        if module.name in _NOT_FILTERS:
            continue
        one = getattr(import_module(f"{filters.__name__}.{module.name}"), "FILTER", None)
        if not isinstance(one, AreaFilter | TileFilter):
            raise TypeError(f"{filters.__name__}.{module.name} does not define FILTER, a filter")
        if one.name != module.name or not _NAME.fullmatch(one.name):
            raise TypeError(
                f"{filters.__name__}.{module.name}: the filter's name {one.name!r} must be that of "
                "its module, in lower case"
            )
        found.append(one)
    return found


LISTED: tuple[Filter, ...] = tuple(sorted(_installed(), key=lambda one: (one.listing, one.name)))
"""All filters, as they are listed for people."""
AREA_FILTERS: tuple[AreaFilter, ...] = tuple(
    sorted((one for one in LISTED if isinstance(one, AreaFilter)), key=lambda one: one.where)
)
TILE_FILTERS: tuple[TileFilter, ...] = tuple(one for one in LISTED if isinstance(one, TileFilter))
FILTERS: tuple[Filter, ...] = (*AREA_FILTERS, *TILE_FILTERS)
"""All filters, as they run: a tile with several faults counts under the first."""
