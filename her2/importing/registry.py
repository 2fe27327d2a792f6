"""The installed sources of cohorts."""

import pkgutil
from functools import cache
from importlib import import_module

from her2.importing import sources
from her2.importing.found import Source


def source_names() -> tuple[str, ...]:
    """Return the names of all sources, sorted, without importing them."""
    return tuple(
        sorted(one.name.replace("_", "-") for one in pkgutil.iter_modules(sources.__path__))
    )


@cache
def find_source(name: str) -> Source:
    """Return a source by its name.

    Raises:
        TypeError: its module defines no `SOURCE` of this name.
    """
    place = f"{sources.__name__}.{name.replace('-', '_')}"
    found = getattr(import_module(place), "SOURCE", None)
    if not isinstance(found, Source) or found.name != name:
        raise TypeError(f"{place} does not define SOURCE with the name {name!r}")
    return found
