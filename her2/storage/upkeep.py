"""Maintenance of the cache: have products made again, and find those no longer used."""

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2.core.errors import UserError, problem_list
from her2.core.reading import MAKE_AGAIN, read_json
from her2.core.sharing import check_readable, denied
from her2.storage.cache import SUFFIXES, Cache, Kind, Product, remove
from her2.storage.features import read_attributes
from her2.storage.fold_files import CARD_NAME, rows_read
from her2.storage.tiles import read_key
from her2.storage.views import FOLDER as VIEWS
from her2.storage.views import view_links

_NAMES: dict[str, dict[Kind, str]] = {
    "tiles": {"tiles": ".parquet", "qc": ".qc.jpg"},
    "features": {"features": ".zarr.zip"},
}
"""Folder of the results -> kinds of a slide's products, and how their names there end."""


_STORE = SUFFIXES["features"]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget_slides` deleted: products of the cache, and entries files of the results."""

    products: tuple[Path, ...]
    entries: tuple[Path, ...]


def forget(keys: Collection[str], results: Iterable[Path]) -> list[Path]:
    """Delete and return the entries files and cards with one of the keys: their jobs run again."""
    deleted = []
    for folder in results:
        for path in _entries_files(folder):
            if _named(_read(path)) & set(keys):
                path.unlink()
                deleted.append(path)
    return deleted


def forget_slides(cache: Cache, slides: Collection[str], results: Collection[Path]) -> Forgotten:
    """Delete the tile tables, pictures and stores of slides, so that they are made again.

    The entries files that have the slides are deleted too, since only then their jobs run again.
    The other slides of these jobs stay in the cache. A fold finds out by itself whether its slides
    have other tiles than before; folds of older versions, which cannot tell, leave the cache.

    Raises:
        UserError: a slide is in no entries file of the results.
    """
    products: set[Path] = set()
    names, entries, found = [], [], set()
    for folder in results:
        for stage, kinds in _NAMES.items():
            for path in sorted((folder / stage).glob("*/*.json")):
                content = _read(path)
                mine = [name for name in slides if name in content]
                for name in mine:
                    for key in _keys(content[name]):
                        products |= {cache.path(kind, key) for kind in kinds}
                    names += view_links(path.parent, name)
                    names += [path.parent / f"{name}{suffix}" for suffix in kinds.values()]
                entries += [path] if mine else []
                found.update(mine)
        for path in _entries_files(folder, "models"):
            folds = {cache.path("models", key) for key in _named(_read(path))}
            products |= {fold for fold in folds if fold.exists() and rows_read(fold) is None}
    if missing := [name for name in slides if name not in found]:
        folders = ", ".join(map(str, results))
        raise problem_list(
            f"{len(missing)} slide(s) are in no entries file of {folders}; nothing was forgotten",
            [f"{name}: see the column slide_id of the manifest" for name in missing],
        )
    existing = tuple(sorted(path for path in products if path.exists()))
    for path in (*existing, *names, *entries):
        remove(path)
    return Forgotten(existing, tuple(entries))


def unused_products(cache: Cache, results: Iterable[Path]) -> list[Product]:
    """Return the products that nothing below the results folders names.

    An entries file is absent while its job is to run again (after a quarantine, or because it
    failed), and the products of its other slides are still needed. The files under the slides'
    names beside it say which those are.

    Raises:
        UserError: a folder names nothing, so pruning by it would delete everything.
    """
    used: set[str] = set()
    for folder in results:
        keys = {key for path in _entries_files(folder) for key in _named(_read(path))}
        keys.update(_linked(folder))
        if not keys:
            raise UserError(
                f"{folder}: has no entries files. Name the results folder of a run to keep."
            )
        used |= keys
    return [product for product in cache.products() if product.key not in used]


def _linked(folder: Path) -> Iterator[str]:
    """Yield the keys inside the products under their names in a results folder."""
    for path in (folder / "tiles").glob(f"*/*{SUFFIXES['tiles']}"):
        yield from filter(None, [read_key(path)])
    stores = folder / "features"
    for path in (*stores.glob(f"*/*{_STORE}"), *stores.glob(f"*/{VIEWS}/*{_STORE}")):
        try:
            yield read_attributes(path)["key"]
        except (UserError, KeyError):  # broken, so no product to keep
            continue
    for path in (folder / "models").rglob(CARD_NAME):
        try:
            yield read_json(path)["key"]
        except (UserError, KeyError, TypeError):
            continue


def _entries_files(folder: Path, *stages: str) -> list[Path]:
    """Return the entries files and cards of some stages; default: of all.

    Raises:
        UserError: a folder may not be read; `rglob` would pass over it, and pruning delete what
            its files name.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise denied(Path(error.filename)) from None

    found = []
    for stage in stages or ("tiles", "encoders", "features", "models"):
        for parent, _, names in os.walk(folder / stage, onerror=refuse):
            found += [Path(parent, name) for name in names if name.endswith(".json")]
    return sorted(found)


def _read(path: Path) -> dict[str, Any]:
    """Read an entries file or a card.

    Raises:
        UserError: it is neither, or may not be read.
    """
    check_readable(path)
    try:
        content = read_json(path)
        problem = None if isinstance(content, dict) else "it is not a JSON object"
    except UserError as error:
        problem = str(error).removeprefix(f"{path}: ").removesuffix(f". {MAKE_AGAIN}")
    if problem is not None:
        raise UserError(
            f"{path}: is not a readable entries file ({problem}), so the products it names are "
            "unknown. Delete it, run snakemake again, then prune."
        )
    return dict(content)


def _named(content: dict[str, Any]) -> set[str]:
    """Return the keys in the content of an entries file or a card."""
    return {key for entry in content.values() for key in _keys(entry)}


def _keys(entry: Any) -> Iterator[str]:
    """Yield the keys in an entry or a card: that of the product, and of a slide's views."""
    if isinstance(entry, dict):
        yield from filter(None, [entry.get("key"), *entry.get("views", ())])
