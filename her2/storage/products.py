"""Between the stages: the product that a manifest names, also when the cache has lost it.

What stands in `results/` under a slide's or fold's name is the product itself (a link, or a copy on
another disk). So a cache that was deleted is filled from there, not by new work, once the product
has been read whole and found to be that of its key.
"""

import logging
from pathlib import Path

from her2.core.errors import UserError
from her2.core.files import link
from her2.storage.cache import Cache, Kind, Product
from her2.storage.verify import product_problem

log = logging.getLogger(__name__)


def find_product(cache: Cache, kind: Kind, key: str, name: Path) -> Path:
    """The product of a key in the cache; taken back from its name in the results if need be.

    Raises:
        UserError: it is in neither place, or not sound there.
    """
    path = cache.find(kind, key)
    if path is not None:
        return path
    problem = "is not there"
    if name.exists():
        problem = product_problem(Product(kind, key, name, 0)) or ""
    if problem:
        raise UserError(
            f"{name.name}: its product ({kind}, {key[:12]}) is not in the cache {cache.root}, and "
            f"{name} {problem}; delete the manifests (.json) in {name.parent} and run snakemake "
            "again."
        )
    with cache.publish(kind, key) as temporary:
        for item in sorted(name.iterdir()) if name.is_dir() else [name]:
            link(item, temporary / item.name if name.is_dir() else temporary)
    log.info("%s: taken back into the cache", name)
    return cache.path(kind, key)
