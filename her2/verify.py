"""Upkeep of the cache: read every product again, and find those that nobody uses."""

import json
from collections.abc import Iterable
from pathlib import Path

from her2.cache import Cache, Product
from her2.errors import UserError
from her2.files import file_digest
from her2.store import read_attributes, store_problems
from her2.tiling import read_table


def broken_products(cache: Cache) -> tuple[int, list[tuple[Product, str]]]:
    """Read everything: how many products there are, and each broken one with its problem."""
    count, broken = 0, []
    for product in cache.products():
        count += 1
        if (problem := product_problem(product)) is not None:
            broken.append((product, problem))
    return count, broken


def product_problem(product: Product) -> str | None:
    """What is wrong with a product, None when it is sound."""
    match product.kind:
        case "tiles":
            try:
                read_table(product.path)
            except UserError as error:
                return str(error).removeprefix(f"{product.path}: ")
        case "qc":
            content = product.path.read_bytes()
            if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
                return "is not a whole JPEG"
        case "features":
            problems = store_problems(product.path)
            if not problems and read_attributes(product.path).get("key") != product.key:
                problems = ["holds the features of another key"]
            return "; ".join(problems) or None
        case "encoders":
            return _encoder_problem(product)
        case "models":
            return _model_problem(product)
    return None


def unused_products(cache: Cache, results: Iterable[Path]) -> list[Product]:
    """Products that no manifest below the results folders names.

    Raises:
        UserError: a folder holds no manifest at all; pruning by it would delete everything.
    """
    used: set[str] = set()
    for folder in results:
        keys = _keys(folder)
        if not keys:
            raise UserError(f"{folder}: holds no manifests; name a results folder to keep.")
        used |= keys
    return [product for product in cache.products() if product.key not in used]


def _keys(folder: Path) -> set[str]:
    found = set()
    for stage in ("tiles", "encoders", "features", "models"):
        for path in (folder / stage).rglob("*.json"):
            try:
                entries = json.loads(path.read_text(encoding="utf-8")).values()
            except (OSError, ValueError, AttributeError) as error:
                raise UserError(
                    f"{path}: is not a readable manifest ({error}), so what it names is unknown; "
                    "delete it, run snakemake again, then prune."
                ) from None
            found |= {
                entry["key"] for entry in entries if isinstance(entry, dict) and entry.get("key")
            }
    return found


def _encoder_problem(product: Product) -> str | None:
    from her2.encoders.materialise import load_encoder  # torch, only when there is one to read

    try:
        _, card = load_encoder(product.path)
    except UserError as error:
        return str(error).removeprefix(f"{product.path}: ")
    if card.provenance.get("key") != product.key:
        return "holds the encoder of another key"
    return None


def _model_problem(product: Product) -> str | None:
    try:
        card = json.loads((product.path / "card.json").read_text(encoding="utf-8"))
        if card["key"] != product.key:
            return "holds the model of another key"
        for name, wanted in card["files"].items():
            if file_digest(product.path / name) != wanted:
                return f"{name} was changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"is not a trained fold ({error})"
    return None
