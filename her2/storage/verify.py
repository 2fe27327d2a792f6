"""Whether products are intact, and what their keys say that they are."""

from concurrent.futures import ThreadPoolExecutor

from her2.core.errors import UserError, first_line, problem_list
from her2.core.files import digest, file_digest
from her2.core.reading import read_json
from her2.core.sharing import denied, unreadable
from her2.encoders.card import IDENTITY_NAME
from her2.storage.cache import Cache, Product
from her2.storage.features import is_sealed, open_store, seal_holds, store_problems
from her2.storage.fold_files import fold_problem
from her2.storage.pictures import picture_problem
from her2.storage.tiles import read_table, rows_digest


def broken_products(cache: Cache, *, threads: int = 1) -> tuple[int, list[tuple[Product, str]]]:
    """Verify every product; return the number of products, and the broken ones with problems.

    Raises:
        UserError: products may not be read, so that nothing can be said of them.
    """
    products = list(cache.products())
    closed = [path for path in (unreadable(product.path) for product in products) if path]
    if closed:
        raise problem_list(
            f"{len(closed)} of {len(products)} products in {cache.root} may not be read",
            [str(denied(path)) for path in closed],
        )
    with ThreadPoolExecutor(threads) as pool:
        problems = list(pool.map(product_problem, products))
    broken = [(p, text) for p, text in zip(products, problems, strict=True) if text is not None]
    return len(products), broken


def product_problem(product: Product) -> str | None:
    """Read all of a product; return its problem, or None if it is intact and that of its key.

    Products of older versions have no seal and less of an identity; what they have is compared. No
    product stops the others.
    """
    try:
        return _problem(product)
    except UserError as error:
        return str(error).removeprefix(f"{product.path}: ")
    except Exception as error:
        return f"cannot be verified ({type(error).__name__}: {first_line(error)})"


def _problem(product: Product) -> str | None:
    match product.kind:
        case "tiles":
            problem = _table_problem(product)
        case "qc":
            problem = picture_problem(product.path, product.key)
        case "features":
            problem = "; ".join(store_problems(product.path) or _store_problems(product)) or None
        case "encoders":
            problem = _encoder_problem(product)
        case "models":
            problem = fold_problem(product.path, product.key)
    return problem


def _table_problem(product: Product) -> str | None:
    try:
        table = read_table(product.path, product.key)
        facts, identity = table.facts, table.identity
        if identity is None:  # a table of an older version
            return None
        if digest(identity) != product.key or identity["fingerprint"] != facts.fingerprint:
            return "has another identity than its key says"
        if identity.get("checksum", facts.checksum) != facts.checksum:
            return "has another checksum than its key says"
    except KeyError as error:
        return f"has an incomplete identity ({error})"
    except UserError as error:
        return str(error).removeprefix(f"{product.path}: ")
    return None


def _store_problems(product: Product) -> list[str]:
    """Check that the store belongs to its key and its content to its identity and its seal."""
    try:
        store = open_store(product.path)
    except UserError as error:
        return [str(error).removeprefix(f"{product.path}: ")]
    found = store.attributes
    if found.get("key") != product.key:
        return ["contains the features of another key"]
    if is_sealed(store) and not seal_holds(store):
        return ["was edited after it was made"]
    identity = found.get("identity")
    if identity is None:  # a store from version 1 of the stage
        return []
    try:
        wrong = {
            "fingerprint": identity["fingerprint"] != found["slide"]["fingerprint"],
            "checksum": identity.get("checksum") not in (None, found["slide"].get("checksum")),
            "encoder": identity["encoder"] != found["encoder"]["digest"],
            "precision": identity["precision"] != found["precision"],
            "type": identity["storage"] != store.chunks[0].dtype.name,
            "number of rows": found["tiles"] != len(store),
        }
        if found["failed_tiles"] == 0:
            wrong["coordinates"] = identity["tiles"] != rows_digest(store)
    except (KeyError, TypeError) as error:
        return [f"has an incomplete identity ({error})"]
    return [f"has a different {name} than its key says" for name, bad in wrong.items() if bad]


def _encoder_problem(product: Product) -> str | None:
    from her2.encoders.stage import read_encoder  # imports torch

    _, card = read_encoder(product.path)
    if card.provenance.get("key") != product.key:
        return "contains the encoder of another key"
    if not (product.path / IDENTITY_NAME).exists():
        return None
    try:
        stated = read_json(product.path / IDENTITY_NAME)
        for name, wanted in stated["files"].items():
            if file_digest(product.path / name) != wanted:
                return f"has a changed file {name}"
        identity = stated["identity"]
        wrong = {
            "identity": digest(identity) != product.key,
            "model": identity["model"] != [card.library, card.architecture, card.feature],
            "um/px or size": identity["target"] != [card.mpp, card.size],
            "precision or type": identity["card"] != [card.precision, card.storage],
        }
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"has an incomplete identity ({error})"
    problems = [f"has another {name} than its key says" for name, bad in wrong.items() if bad]
    return "; ".join(problems) or None
