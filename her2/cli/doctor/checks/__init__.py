"""`her2 doctor`: the checks, one file each, found by listing this package."""

import pkgutil
from importlib import import_module

from her2.cli.doctor.base import Check


def all_checks() -> list[Check]:
    """Return the checks, in their order."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = [import_module(f"{__name__}.{name}").CHECK for name in names]
    return sorted(found, key=lambda check: check.order)
