"""Between the stages: the product that an entry names, even if the cache has lost it.

The file in `results/` under a slide's or fold's name is the product itself (a link, or a copy on
another disk). So a deleted cache is refilled from there instead of by new work, after the product
has been read completely and found to match its key.
"""

import logging
from pathlib import Path

from her2.core.errors import UserError
from her2.core.files import link
from her2.storage.cache import Cache, Kind, Product
from her2.storage.verify import product_problem

log = logging.getLogger(__name__)


def find_product(cache: Cache, kind: Kind, key: str, name: Path) -> Path:
    """Return the product of a key in the cache, restored from the results if necessary.

    Raises:
        UserError: it is in neither place, or damaged in the results.
    """
    path = cache.find(kind, key)
    if path is not None:
        return path
    problem = "does not exist"
    if name.exists():
        problem = product_problem(Product(kind, key, name, 0)) or ""
    if problem:
        raise UserError(
            f"{name.name}: its product ({kind}, {key[:12]}) is not in the cache {cache.root}, and "
            f"{name} {problem}. Delete the entries files (.json) in {name.parent} and run "
            "snakemake again."
        )
    with cache.publish(kind, key) as temporary:
        for item in sorted(name.iterdir()) if name.is_dir() else [name]:
            link(item, temporary / item.name if name.is_dir() else temporary)
    log.info("%s: restored to the cache", name)
    return cache.path(kind, key)
