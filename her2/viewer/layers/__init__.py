"""`her2 view`: what can be laid over a slide, one file each.

Every module of this package whose name does not begin with an underscore is a layer, found by
listing the package. It ends with `LAYER`. No other code, script or page names one.
"""

import pkgutil
from importlib import import_module

from her2.viewer.overlay.layer import Layer


def all_layers() -> tuple[Layer, ...]:
    """Return the layers of the package, by their order.

    Raises:
        TypeError: a module does not end with a `LAYER` of its name, or two have one order.
    """
    found = [_layer(m.name) for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    orders = [one.order for one in found]
    if twice := sorted(one.name for one in found if orders.count(one.order) > 1):
        raise TypeError(f"{__name__}: {' and '.join(twice)} have the same order")
    return tuple(sorted(found, key=lambda one: one.order))


def _layer(name: str) -> Layer:
    found = getattr(import_module(f"{__name__}.{name}"), "LAYER", None)
    if not isinstance(found, Layer) or found.name != name:
        raise TypeError(f"{__name__}.{name} does not define LAYER, a Layer of this name")
    return found
