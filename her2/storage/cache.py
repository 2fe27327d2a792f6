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

    @property
    def checksums(self) -> Path:
        """Return the folder of digests that were computed once, see `her2.core.checksums`."""
        return self.root / checksums.FOLDER

    def path(self, kind: Kind, key: str) -> Path:
        """Return the path that the product of a key has or would have."""
        return self.root / kind / key[:2] / f"{key}{SUFFIXES[kind]}"

    def find(self, kind: Kind, key: str) -> Path | None:
        """Return the path of a key's product, or None if it has not been made yet."""
        path = self.path(kind, key)
        return path if path.exists() else None

    @contextmanager
    def publish(self, kind: Kind, key: str, *, megabytes: float | None = None) -> Iterator[Path]:
        """Yield a temporary path (of a folder, for encoders and models) that becomes the product.

        The error on a full disk says that `megabytes` are needed.
        """
        target = self.path(kind, key)
        write = atomic_path if SUFFIXES[kind] else atomic_folder
        with write(target, megabytes=megabytes) as temporary:
            yield temporary

    def products(self) -> Iterator[Product]:
        """Yield every product in the cache, sorted by kind and key."""
        for kind, suffix in SUFFIXES.items():
            for path in sorted((self.root / kind).glob(f"[0-9a-f][0-9a-f]/*{suffix}")):
                key = path.name.removesuffix(suffix)
                if re.fullmatch(r"[0-9a-f]{64}", key):
                    yield Product(kind, key, path, size_bytes(path))

    def quarantine(self, product: Product) -> Path:
        """Move a product aside, so that it can be made again, and return its new path.

        Raises:
            UserError: this user may not move it.
        """
        target = self.root / QUARANTINE / product.kind / product.path.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                remove(target)
            product.path.rename(target)
        except FileNotFoundError:  # another job has just moved it
            return target
        except OSError as error:
            raise UserError(
                f"{product.path}: is broken and cannot be moved aside ({error.strerror}); let "
                "somebody who may write to the cache run `her2 cache verify --quarantine`."
            ) from None
        return target

    def quarantined(self) -> list[Path]:
        return sorted((self.root / QUARANTINE).glob("*/*"))

    def leftovers(self, *, older_than_seconds: float = STALE_SECONDS) -> list[Path]:
        """Return the temporary files and folders that killed jobs left behind."""
        limit = time.time() - older_than_seconds
        return sorted(
            path
            for kind in SUFFIXES
            for path in (self.root / kind).glob("[0-9a-f][0-9a-f]/.*.tmp.*")
            if path.stat().st_mtime < limit
        )


def remove(path: Path) -> None:
    """Delete a product or a leftover; a folder is renamed first, so none appears half deleted."""
    if path.is_dir():
        doomed = path.with_name(f".{os.getpid()}.tmp.{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Return the size of a file, or the total size of a folder's files."""
    if path.is_dir():
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    return path.stat().st_size
