"""Stage 1, tile: the installed artefact filters."""

import pkgutil
import re
from importlib import import_module

from her2 import filters
from her2.filters.base import AreaFilter, Filter, TileFilter

_NOT_FILTERS = {"base", "registry"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _installed() -> list[Filter]:
    """Return the filter of each module in the package."""
    found: list[Filter] = []
    for module in pkgutil.iter_modules(filters.__path__):
        if module.name in _NOT_FILTERS:
            continue
        one = getattr(import_module(f"{filters.__name__}.{module.name}"), "FILTER", None)
        if not isinstance(one, AreaFilter | TileFilter):
            raise TypeError(f"{filters.__name__}.{module.name} does not define FILTER as a filter")
        if one.name != module.name or not _NAME.fullmatch(one.name):
            raise TypeError(
                f"{filters.__name__}.{module.name}: the filter's name {one.name!r} must be its "
                "module's name, in lower case"
            )
        found.append(one)
    return found


LISTED: tuple[Filter, ...] = tuple(sorted(_installed(), key=lambda one: (one.listing, one.name)))
"""All filters, in the order of lists for people."""
AREA_FILTERS: tuple[AreaFilter, ...] = tuple(
    sorted((one for one in LISTED if isinstance(one, AreaFilter)), key=lambda one: one.where)
)
TILE_FILTERS: tuple[TileFilter, ...] = tuple(one for one in LISTED if isinstance(one, TileFilter))
FILTERS: tuple[Filter, ...] = (*AREA_FILTERS, *TILE_FILTERS)
"""All filters, in the order in which they run; a tile is rejected by the first that applies."""
