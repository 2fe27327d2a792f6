"""Cohorts of which there are feature files, with and without slides."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2.cohort.manifest import Cohort, SlideRow
from her2.config.jobs import DescribeSpec, TakeSpec
from her2.config.names import bucket_name
from her2.encoders.card import EncoderCard
from her2.exchange.describe import describe_features
from her2.exchange.take import take_features
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, TileEntry, read_entries
from her2.storage.features import FeatureStore, open_store

IDENTITY = "UNI, TRIDENT 0.3.1"
BUCKET = bucket_name(0, 1)


def row(slide_id: str, path: str = "", mpp: float | None = None) -> SlideRow:
    return SlideRow(slide_id, path, f"p-{slide_id}", {}, mpp=mpp)


@dataclass(frozen=True)
class Taken:
    """What taking a bucket in left behind."""

    entries: dict[str, FeatureEntry]
    tiles: dict[str, TileEntry]
    cache: Cache

    def store(self, slide_id: str) -> FeatureStore:
        key = self.entries[slide_id].key
        assert key is not None
        return open_store(self.cache.path("features", key), key)

    def reason(self, slide_id: str) -> str:
        entry, tile = self.entries[slide_id], self.tiles[slide_id]
        assert (entry.status, entry.reason, entry.key) == (tile.status, tile.reason, None)
        return f"{entry.status}: {entry.reason}"


@dataclass(frozen=True)
class World:
    """A folder with feature files in `files`, and an encoder and cache beside them."""

    root: Path
    rows: tuple[SlideRow, ...]

    @property
    def files(self) -> Path:
        folder = self.root / "files"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def cohort(self) -> Cohort:
        return Cohort(self.rows, self.root)

    @property
    def folders(self) -> str:
        return json.dumps([str(self.root / "files")])

    def describe(self, **said: Any) -> EncoderCard:
        spec = DescribeSpec(identity=said.pop("identity", IDENTITY), **said)
        return describe_features(spec, self.cohort, self.folders, self.root / "encoders/uni")

    def take(self, *, again: bool = False, min_tiles: int = 1, **said: Any) -> Taken:
        """Write the card, unless it is there already, and take the only bucket in."""
        if not again:
            self.describe(**said)
        said.pop("identity", None)
        spec = TakeSpec(bucket=BUCKET, rows="", min_tiles=min_tiles, **said)
        cache = Cache(self.root / "cache")
        places = {"tiles": self.root / "tiles/0.json", "output": self.root / "features/0.json"}
        entries = take_features(
            spec, self.cohort, cache,
            folders=self.folders, encoder=self.root / "encoders/uni", **places,
        )  # fmt: skip
        assert read_entries(places["output"], FeatureEntry) == entries
        return Taken(entries, read_entries(places["tiles"], TileEntry), cache)
