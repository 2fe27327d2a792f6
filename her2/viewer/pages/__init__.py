"""`her2 view`: what browsers can ask for, one file for each page and each panel of a slide.

Every module of this package is found by listing it, and has `ROUTES`. Its script is in `static/`.
"""

import pkgutil
from importlib import import_module

from starlette.routing import Route


def all_routes() -> tuple[Route, ...]:
    """Return the routes of all modules of the package."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(route for name in names for route in import_module(f"{__name__}.{name}").ROUTES)
