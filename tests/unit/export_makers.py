"""A results folder with features and a table of the cohort, made by hand, to export from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.core.files import digest
from her2.encoders.card import EncoderCard, write_card
from her2.storage.entries import FeatureEntry, write_entries
from tests.unit.products import write_store

SIZE = (40_000, 30_000)
"""Of every slide, in level-0 px."""

CARD = EncoderCard(
    source="random",
    library="timm",
    architecture="resnet10t",
    arguments={},
    feature="pooled",
    dimension=6,
    size=256,
    mpp=0.5,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    precision="auto",
    storage="float16",
    licence="",
    weights_sha256="0" * 64,
    provenance={},
)

PATIENTS = {"A-1": ("P1", "3+"), "B-1": ("P2", "0"), "A-2": ("P1", "3+"), "C-1": ("P3", None)}
"""Slide -> patient and label, so that slides of a patient do not follow each other."""


@dataclass
class Made:
    """The results folder, and the features (n, d) and coordinates (n, 2) of each slide."""

    root: Path
    features: dict[str, NDArray[Any]] = field(default_factory=dict)
    coords: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    entries: dict[str, FeatureEntry] = field(default_factory=dict)
    part: str = ""

    @property
    def folder(self) -> Path:
        return self.root / self.part / "features" / "mine"

    def store(self, slide_id: str) -> Path:
        return self.folder / f"{slide_id}.zarr.zip"

    def embed(self, slide_id: str, values: NDArray[Any], *, mpp: tuple[float, float] = (0.25, 0.25),
              encoder: str | None = None, source: str = "metadata") -> None:  # fmt: skip
        """Give a slide these features, of tiles of 256 px at 0.5 um/px."""
        rng = np.random.default_rng(len(slide_id))
        coords = np.stack([rng.permutation(len(values)) * 512, np.arange(len(values)) * 3], axis=1)
        coords = coords.astype(np.int32)
        content = hashlib.sha256(values.tobytes()).hexdigest()
        identity = {"of": slide_id, "values": content, "type": str(values.dtype)}
        attributes = {
            "key": digest(identity),
            "identity": identity,
            "failed_tiles": 0,
            "encoder": {"digest": encoder or CARD.digest},
            "target": {"mpp": 0.5, "px": 256},
            "slide": {
                "fingerprint": digest(slide_id),
                "mpp": list(mpp),
                "mpp_source": source,
                "level0_tile": [256 * 0.5 / mpp[0], 256 * 0.5 / mpp[1]],
                "size_px": list(SIZE),
            },
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_store(self.store(slide_id), values, coords, attributes)
        self.features[slide_id], self.coords[slide_id] = values, coords
        self.enter(slide_id, FeatureEntry("ok", None, digest(identity), len(values), 0, 6))

    def take(self, slide_id: str, values: NDArray[Any], **facts: Any) -> None:
        """Give a slide features that another program computed, of which only these facts are known.

        `facts` are parts of the attribute `slide`, and of `target` and `given` under these names.
        """
        target, given = facts.pop("target", {}), facts.pop("given", {})
        unknown = dict.fromkeys(("mpp", "mpp_source", "level0_tile", "size_px"))
        attributes = {
            "key": digest([slide_id, facts, target, given]),
            "encoder": {"digest": CARD.digest},
            "target": {"mpp": None, "px": None} | target,
            "slide": {"fingerprint": digest(slide_id)} | unknown | facts,
            "given": {"computed": "elsewhere", "level": "tile", "positions": True} | given,
        }
        coords = np.zeros((len(values), 2), np.int32)
        write_store(self.store(slide_id), values, coords, attributes)
        self.features[slide_id], self.coords[slide_id] = values, coords
        entry = FeatureEntry("ok", None, attributes["key"], len(values), 0, 6)
        self.enter(slide_id, entry)

    def enter(self, slide_id: str, entry: FeatureEntry) -> None:
        self.entries[slide_id] = entry
        write_entries(self.folder / "0000-of-0001.json", self.entries)

    def tabulate(self, rows: Mapping[str, tuple[str, str | None]] = PATIENTS) -> None:
        columns = ("slide_id", "patient_id", "label_her2", "grid")
        values = [(slide, *row, grid) for slide, row in rows.items() for grid in ("a", "b")]
        path = self.root / self.part / "cohort" / "slides.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(values, schema=dict.fromkeys(columns, pl.String), orient="row").write_parquet(
            path
        )


def matrix(seed: int, rows: int, kind: str = "float16") -> NDArray[Any]:
    """Features (rows, 6) whose bits all matter."""
    return np.random.default_rng(seed).normal(size=(rows, 6)).astype(kind)


def make(root: Path, kind: str = "float16", *, part: str = "", **changed: Any) -> Made:
    """Results of the encoder `mine` with three slides, and one that could not be embedded."""
    made = Made(root / "results", part=part)
    (made.root / "encoders" / "mine").mkdir(parents=True, exist_ok=True)
    write_card(made.root / "encoders" / "mine", CARD)
    for seed, slide_id in enumerate(("A-1", "B-1", "A-2")):
        made.embed(slide_id, matrix(seed, 5 + seed, kind), **changed)
    made.enter("C-1", FeatureEntry("excluded", "too little tissue"))
    made.tabulate()
    return made
