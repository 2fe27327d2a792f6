"""Between the stages: the content-addressed cache, key -> product.

A product's key is the SHA-256 of everything that determines its bits, and nothing else; see
`her2.config.jobs`. A product is one file (or, for an encoder or a trained fold, one folder). It is
written under a temporary name and then renamed, so a product that exists is complete.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from her2.core import checksums
from her2.core.errors import UserError
from her2.core.files import atomic_folder, atomic_path
from her2.core.paths import user_path
from her2.core.sharing import check_readable, denied, make_folder

Kind = Literal["tiles", "qc", "encoders", "features", "models"]
SUFFIXES: dict[Kind, str] = {
    "tiles": ".parquet",
    "qc": ".jpg",
    "encoders": "",
    "features": ".zarr.zip",
    "models": "",
}
QUARANTINE = "quarantine"
"""Folder of broken products, which no key refers to."""
DEFAULT = "her2-cache"
"""Folder that is the cache where none is given."""
STALE_SECONDS = 7 * 24 * 3600
"""A temporary file older than this belongs to no running job."""


@dataclass(frozen=True, slots=True)
class Product:
    """One thing in the cache."""

    kind: Kind
    key: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of products: `{kind}/{first two digits}/{key}{suffix}`."""

    root: Path

    @classmethod
    def given(cls, root: "Cache | Path | str | None" = None) -> "Cache":
        """Return a cache; None is that of HER2_CACHE, else `her2-cache` in the working folder.

        Raises:
            UserError: HER2_CACHE is not a usable path.
        """
        if isinstance(root, Cache):
            return root
        if root is not None:
            return cls(Path(root))
        shared = os.environ.get("HER2_CACHE", "")
        try:
            return cls(user_path(shared) if shared.strip() else Path(DEFAULT))
        except ValueError as problem:
            raise UserError(f"the environment variable HER2_CACHE: {problem}") from None

    @property
    def checksums(self) -> Path:
        """Return the folder of digests that were computed once, see `her2.core.checksums`."""
        return self.root / checksums.FOLDER

    def path(self, kind: Kind, key: str) -> Path:
        """Return the path that the product of a key has or would have."""
        return self.root / kind / key[:2] / f"{key}{SUFFIXES[kind]}"

    def find(self, kind: Kind, key: str) -> Path | None:
        """Return the path of a key's product, or None if it has not been made yet.

        Raises:
            UserError: the product is there or could be, and this user may not read it.
        """
        path = self.path(kind, key)
        check_readable(path)
        return path if path.exists() else None

    @contextmanager
    def publish(self, kind: Kind, key: str, *, megabytes: float | None = None) -> Iterator[Path]:
        """Yield a temporary path (of a folder, for encoders and models) that becomes the product.

        Its files are read-only, so that nobody who opens a link in `results/` changes the cache.
        The error on a full disk says that `megabytes` are needed.
        """
        target = self.path(kind, key)
        if SUFFIXES[kind]:
            with atomic_path(target, megabytes=megabytes, product=True) as temporary:
                yield temporary
        else:
            with atomic_folder(target, megabytes=megabytes) as temporary:
                yield temporary

    def products(self) -> Iterator[Product]:
        """Yield every product in the cache, sorted by kind and key.

        Raises:
            UserError: a folder of the cache may not be read.
        """
        for kind, suffix in SUFFIXES.items():
            for path in self._items(kind):
                key = path.name.removesuffix(suffix)
                if path.name.endswith(suffix) and re.fullmatch(r"[0-9a-f]{64}", key):
                    yield Product(kind, key, path, size_bytes(path))

    def quarantine(self, product: Product) -> Path:
        """Move a product aside, so that it can be made again, and return its new path.

        Raises:
            UserError: this user may not move it.
        """
        target = self.root / QUARANTINE / product.kind / product.path.name
        try:
            make_folder(target.parent)
            if target.exists():
                remove(target)
            product.path.rename(target)
        except FileNotFoundError:  # another job has just moved it
            return target
        except OSError:
            raise denied(product.path, "moved") from None
        return target

    def quarantined(self) -> list[Path]:
        return [path for kind in SUFFIXES for path in _listed(self.root / QUARANTINE / kind)]

    def leftovers(self, *, older_than_seconds: float = STALE_SECONDS) -> list[Path]:
        """Return the temporary files and folders that killed jobs left behind."""
        limit = time.time() - older_than_seconds
        hidden = [
            path
            for kind in SUFFIXES
            for path in (*_listed(self.root / kind), *self._items(kind))
            if _is_hidden(path)
        ]
        return [path for path in hidden if path.lstat().st_mtime < limit]

    def _items(self, kind: Kind) -> list[Path]:
        """Return all that is in the folders of a kind, sorted."""
        folders = [path for path in _listed(self.root / kind) if _PREFIX.fullmatch(path.name)]
        return [path for folder in folders for path in _listed(folder)]


_PREFIX = re.compile("[0-9a-f]{2}")


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") and ".tmp." in path.name


def _listed(folder: Path) -> list[Path]:
    """Return the content of a folder, sorted; a closed one is an error, as it seems empty else."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise denied(folder) from None


def remove(path: Path) -> None:
    """Delete a product or a leftover; a folder is renamed first, so none appears half deleted.

    Raises:
        UserError: it may not be deleted.
    """
    try:
        if path.is_dir():
            doomed = path.with_name(f".{os.getpid()}.tmp.{path.name}")
            path.rename(doomed)
            shutil.rmtree(doomed)
        else:
            path.unlink(missing_ok=True)
    except PermissionError:
        raise denied(path, "deleted") from None


def size_bytes(path: Path) -> int:
    """Return the size of a file, or the total size of a folder's files."""
    if path.is_dir():
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    return path.stat().st_size
