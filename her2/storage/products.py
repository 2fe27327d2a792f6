"""Between the stages: the product of a key, believed only if it says that it is.

What a file is called proves nothing. So each reader compares the identity inside with the key that
it asked for, and a product that is another one, or was edited, is moved to the quarantine and made
again. The features of a store are read completely for that only if its file is not in the state in
which it was last found to be intact.

The file in `results/` under a slide's or fold's name is the product itself (a link, or a copy on
another disk). So a deleted cache is refilled from there instead of by new work, after the product
has been read completely and found to match its key.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from her2.core import checksums
from her2.core.errors import UserError
from her2.core.files import link
from her2.core.reading import MAKE_AGAIN
from her2.storage.cache import Cache, Kind, Product
from her2.storage.features import is_sealed, open_store, read_attributes, seal_holds
from her2.storage.fold_files import fold_problem
from her2.storage.verify import product_problem
from her2.storage.views import FOLDER as VIEWS

log = logging.getLogger(__name__)

LookUp = Callable[[Cache, Kind, str], Path | None]
"""Returns the product of a key, see `trusted` and `intact`."""


def trusted(cache: Cache, kind: Kind, key: str, *, whole: bool = True) -> Path | None:
    """Return the product of a key, or None if it has to be made; a wrong one is moved aside.

    Without `whole`, only the card of a fold is read, and whoever reads its files checks them.

    Raises:
        UserError: a wrong product cannot be moved aside.
    """
    path = cache.find(kind, key)
    if path is None:
        return None
    product = Product(kind, key, path, 0)
    problem = _problem(cache, product, whole=whole)
    if problem is None:
        return path
    problem = problem.removesuffix(f" {MAKE_AGAIN}").removesuffix(".")  # it is made again now
    log.warning("%s: %s; it is moved to %s", path, problem, cache.quarantine(product))
    return None


def intact(cache: Cache, kind: Kind, key: str) -> Path | None:
    """Return the product of a key, or None if there is none or a wrong one, and change nothing."""
    path = cache.find(kind, key)
    if path is None or _problem(cache, Product(kind, key, path, 0), whole=True) is not None:
        return None
    return path


FindProduct = Callable[[Cache, Kind, str, Path], Path]
"""Returns the product of a key, or raises; see `find_product`."""


def present_product(cache: Cache, kind: Kind, key: str, name: Path) -> Path:
    """Return the product of a key in the cache or the results, for one who changes neither.

    Of a store or fold, only what says which it is is read; whoever reads more of it checks that.

    Raises:
        UserError: it is in neither place, or is another one.
    """
    found = cache.find(kind, key)
    path = name if found is None and name.exists() else found
    if path is None:
        raise UserError(
            f"{name.name}: is neither in the cache {cache.root} nor in {name.parent}; run "
            "snakemake again."
        )
    if kind == "features":
        read_attributes(path, key)
    elif problem := _problem(cache, Product(kind, key, path, 0), whole=False):
        raise UserError(f"{path}: {problem}. {MAKE_AGAIN}")
    return path


def note_intact(cache: Cache, key: str) -> None:
    """Note that a store was just published, so that nobody needs to read it again for that."""
    path = cache.path("features", key)
    seal = str(open_store(path).attributes.get("seal"))
    checksums.keep(cache.checksums, path, checksums.state_of([path], changes=False), seal)


def find_product(cache: Cache, kind: Kind, key: str, name: Path) -> Path:
    """Return the product of a key in the cache, restored from the results if necessary.

    Raises:
        UserError: it is in neither place, or damaged in the results.
    """
    stored = cache.find(kind, key)
    path = trusted(cache, kind, key, whole=False)
    if path is not None:
        return path
    place = f"is not in the cache {cache.root}"
    if stored is not None:
        place = f"was not what its key says and is in the quarantine of the cache {cache.root}"
    problem = "does not exist"
    if name.exists():
        problem = product_problem(Product(kind, key, name, 0)) or ""
    if problem:
        entries = name.parent.parent if name.parent.name == VIEWS else name.parent
        raise UserError(
            f"{name.name}: its product ({kind}, {key[:12]}) {place}, and "
            f"{name} {problem}. Delete the entries files (.json) in {entries} and run "
            "snakemake again."
        )
    with cache.publish(kind, key) as temporary:
        for item in sorted(name.iterdir()) if name.is_dir() else [name]:
            link(item, temporary / item.name if name.is_dir() else temporary)
    log.info("%s: restored to the cache", name)
    return cache.path(kind, key)


def _problem(cache: Cache, product: Product, *, whole: bool) -> str | None:
    match product.kind:
        case "features":
            return _store_problem(cache, product)
        case "models" if not whole:
            return fold_problem(product.path, product.key, [])
        case _:
            return product_problem(product)


def _store_problem(cache: Cache, product: Product) -> str | None:
    """Return the problem of a store: of its key and identity always, of its features if needed."""
    path = product.path
    try:
        store = open_store(path, product.key)
        if not is_sealed(store):
            return None
        state = checksums.state_of([path], changes=False)
        if checksums.recall(cache.checksums, path, state) == store.attributes["seal"]:
            return None
        if not seal_holds(store):
            return "was edited after it was made"
        checksums.keep(cache.checksums, path, state, store.attributes["seal"])
    except (OSError, UserError) as error:
        return str(error).removeprefix(f"{path}: ")
    return None
