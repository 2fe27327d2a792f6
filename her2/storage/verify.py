"""Maintenance of the cache: verify every product, and find those no longer used."""

import json
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from her2.core.errors import UserError
from her2.core.files import digest, file_digest
from her2.storage.cache import Cache, Product
from her2.storage.features import open_store, read_attributes, read_coords, store_problems
from her2.storage.tiles import coords_digest, read_key, read_table


def broken_products(cache: Cache, *, threads: int = 1) -> tuple[int, list[tuple[Product, str]]]:
    """Verify every product; return the number of products, and the broken ones with problems."""
    products = list(cache.products())
    with ThreadPoolExecutor(threads) as pool:
        problems = list(pool.map(product_problem, products))
    broken = [(p, text) for p, text in zip(products, problems, strict=True) if text is not None]
    return len(products), broken


def forget(keys: Collection[str], results: Iterable[Path]) -> list[Path]:
    """Delete and return the entries files and cards with one of the keys: their jobs run again."""
    deleted = []
    for folder in results:
        for path in _entries_files(folder):
            if _named(path) & set(keys):
                path.unlink()
                deleted.append(path)
    return deleted


def product_problem(product: Product) -> str | None:
    """Return the problem of a product, or None if it is intact."""
    match product.kind:
        case "tiles":
            try:
                read_table(product.path)
                if read_key(product.path) != product.key:
                    return "contains the tiles of another key"
            except UserError as error:
                return str(error).removeprefix(f"{product.path}: ")
        case "qc":
            content = product.path.read_bytes()
            if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
                return "is not a complete JPEG"
        case "features":
            problems = store_problems(product.path) or _identity_problems(product)
            return "; ".join(problems) or None
        case "encoders":
            return _encoder_problem(product)
        case "models":
            return _model_problem(product)
    return None


def unused_products(cache: Cache, results: Iterable[Path]) -> list[Product]:
    """Return the products that no entries file below the results folders names.

    Raises:
        UserError: a folder has no entries file, so pruning by it would delete everything.
    """
    used: set[str] = set()
    for folder in results:
        keys = {key for path in _entries_files(folder) for key in _named(path)}
        if not keys:
            raise UserError(
                f"{folder}: has no entries files. Name the results folder of a run to keep."
            )
        used |= keys
    return [product for product in cache.products() if product.key not in used]


def _entries_files(folder: Path) -> list[Path]:
    stages = ("tiles", "encoders", "features", "models")
    return [path for stage in stages for path in sorted((folder / stage).rglob("*.json"))]


def _named(path: Path) -> set[str]:
    """Return the keys in an entries file or a card."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8")).values()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: is not a readable entries file ({error}), so the products it names are "
            "unknown. Delete it, run snakemake again, then prune."
        ) from None
    return {entry["key"] for entry in entries if isinstance(entry, dict) and entry.get("key")}


def _identity_problems(product: Product) -> list[str]:
    """Check that the store belongs to its key and its content to its identity."""
    found = read_attributes(product.path)
    if found.get("key") != product.key:
        return ["contains the features of another key"]
    identity = found.get("identity")
    if identity is None:  # a store from version 1 of the stage
        return []
    try:
        store = open_store(product.path)
        wrong = {
            "identity": digest(identity) != product.key,
            "fingerprint": identity["fingerprint"] != found["slide"]["fingerprint"],
            "encoder": identity["encoder"] != found["encoder"]["digest"],
            "precision": identity["precision"] != found["precision"],
            "type": identity["storage"] != store.chunks[0].dtype.name,
            "number of rows": found["tiles"] != len(store),
        }
        if found["failed_tiles"] == 0:
            level0_tile = found["slide"]["level0_tile"]
            where = read_coords(product.path)
            wrong["coordinates"] = identity["tiles"] != coords_digest(where, level0_tile)
    except (KeyError, TypeError) as error:
        return [f"has an incomplete identity ({error})"]
    return [f"has a different {name} than its key says" for name, bad in wrong.items() if bad]


def _encoder_problem(product: Product) -> str | None:
    from her2.encoders.stage import load_encoder  # imports torch

    try:
        _, card = load_encoder(product.path)
    except UserError as error:
        return str(error).removeprefix(f"{product.path}: ")
    if card.provenance.get("key") != product.key:
        return "contains the encoder of another key"
    return None


def _model_problem(product: Product) -> str | None:
    try:
        card = json.loads((product.path / "card.json").read_text(encoding="utf-8"))
        if card["key"] != product.key:
            return "contains the model of another key"
        for name, wanted in card["files"].items():
            if file_digest(product.path / name) != wanted:
                return f"has a changed file {name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"is not a trained fold ({error})"
    return None
