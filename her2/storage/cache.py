"""Between the stages: the content-addressed cache, key -> product.

A product's key is the SHA-256 of everything that determines its bits, and nothing else; see
`her2.config.jobs` for what that is. A product is one file (or, for a trained fold, one folder),
written beside its place and renamed into it, so a name that exists is a product that is whole.
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
"""Folder of broken products: no key leads there."""
STALE_SECONDS = 7 * 24 * 3600
"""A temporary file older than this belongs to no living job."""


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

    def path(self, kind: Kind, key: str) -> Path:
        """Where the product of a key is, or would be."""
        return self.root / kind / key[:2] / f"{key}{SUFFIXES[kind]}"

    def find(self, kind: Kind, key: str) -> Path | None:
        """The product of a key, None when nobody has made it yet."""
        path = self.path(kind, key)
        return path if path.exists() else None

    @contextmanager
    def publish(self, kind: Kind, key: str, *, megabytes: float | None = None) -> Iterator[Path]:
        """A temporary path that becomes the product when all went well.

        Encoders and models are folders. `megabytes` is what it takes, for the error of a full disk.
        """
        target = self.path(kind, key)
        write = atomic_path if SUFFIXES[kind] else atomic_folder
        with write(target, megabytes=megabytes) as temporary:
            yield temporary

    def products(self) -> Iterator[Product]:
        """Everything in the cache, sorted by kind and key."""
        for kind, suffix in SUFFIXES.items():
            for path in sorted((self.root / kind).glob(f"[0-9a-f][0-9a-f]/*{suffix}")):
                key = path.name.removesuffix(suffix)
                if re.fullmatch(r"[0-9a-f]{64}", key):
                    yield Product(kind, key, path, size_bytes(path))

    def quarantine(self, product: Product) -> Path:
        """Move a product aside, so that its key is free to be made anew; where it is then."""
        target = self.root / QUARANTINE / product.kind / product.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            remove(target)
        product.path.rename(target)
        return target

    def quarantined(self) -> list[Path]:
        """What was moved aside."""
        return sorted((self.root / QUARANTINE).glob("*/*"))

    def leftovers(self, *, older_than_seconds: float = STALE_SECONDS) -> list[Path]:
        """Temporary files and folders that a killed job left behind."""
        limit = time.time() - older_than_seconds
        return sorted(
            path
            for kind in SUFFIXES
            for path in (self.root / kind).glob("[0-9a-f][0-9a-f]/.*.tmp.*")
            if path.stat().st_mtime < limit
        )


def remove(path: Path) -> None:
    """Delete a product or a leftover; a folder is renamed first, so that none is seen half."""
    if path.is_dir():
        doomed = path.with_name(f".{os.getpid()}.tmp.{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Of a file, or of all files of a folder."""
    if path.is_dir():
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    return path.stat().st_size
