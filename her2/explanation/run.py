"""Stage 2, heatmap: attention over the thumbnails of some held-out slides.

Each slide is painted by the one model of the first repeat that never saw its patient.
"""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from her2.cache import Cache
from her2.cohort import Cohort
from her2.errors import UserError
from her2.files import atomic_path, write_json
from her2.manifest import FeatureEntry, FoldEntry, read_manifests
from her2.products import find_product
from her2.slide import RGB, Scale, Slide, SlideError, TileError
from her2.specs import HeatmapSpec
from her2.store import read_attributes, read_coords

log = logging.getLogger(__name__)

_SIDE_PX = 640
_GAP_PX = 12


def draw_heatmaps(
    spec: HeatmapSpec,
    cohort: Cohort,
    cache: Cache,
    *,
    folds: Path,
    models: Path,
    features: Path,
    masks: Path | None,
    output: Path,
) -> list[dict[str, object]]:
    """Draw the chosen slides and write `heatmaps.json` last.

    Args:
        spec: the job.
        cohort: where the slides are.
        cache: holds attention and features.
        folds: the task's folds table.
        models: the folder of the chunks' manifests.
        features: the encoder's folder of feature manifests.
        masks: folder of `{slide_id}.png` to draw beside, white = positive; None: none.
        output: `heatmaps.json`; the pictures go beside it.
    """
    entries = read_manifests(features, spec.buckets, FeatureEntry)
    held_out = _held_out(spec, pl.read_parquet(folds), entries)
    fold_entries = read_manifests(models, spec.chunks, FoldEntry)
    rows = {row.slide_id: row for row in cohort.rows}
    drawn: list[dict[str, object]] = []
    for slide_id, label, fold in held_out:
        run = f"r0f{fold}"
        model = find_product(cache, "models", fold_entries[run].key, models / run)
        entry = entries[slide_id]
        if entry.key is None:
            continue
        store = find_product(cache, "features", entry.key, features / f"{slide_id}.zarr.zip")
        mask = masks / f"{slide_id}.png" if masks is not None else None
        try:
            picture, facts = _draw(
                cohort.file(rows[slide_id]), store, _attention(model, slide_id), mask
            )
        except (SlideError, TileError) as error:
            log.warning("%s: no heatmap: %s", slide_id, error)
            drawn.append({"slide_id": slide_id, "reason": str(error)})
            continue
        with atomic_path(output.parent / f"{slide_id}.png") as path:
            cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        drawn.append(
            {
                "slide_id": slide_id,
                "label": spec.task.class_names[label],
                "fold": fold,
                "picture": f"{slide_id}.png",
                **facts,
            }
        )
        log.info("%s: heatmap drawn", slide_id)
    write_json(output, drawn)
    return drawn


def overlay(thumbnail: RGB, boxes: NDArray[np.float64], values: NDArray[np.float32]) -> RGB:
    """Colour tiles by the rank of their attention within the slide.

    Args:
        thumbnail: (h, w, 3).
        boxes: (n, 4) left, top, right, bottom in thumbnail px.
        values: (n,).
    """
    ranks = np.argsort(np.argsort(values)) / max(1, len(values) - 1)
    heat = np.zeros(thumbnail.shape[:2], np.float32)
    seen = np.zeros(thumbnail.shape[:2], bool)
    for (left, top, right, bottom), rank in zip(np.round(boxes).astype(int), ranks, strict=True):
        heat[top:bottom, left:right] = rank
        seen[top:bottom, left:right] = True
    colour = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    mixed = (0.45 * thumbnail + 0.55 * colour).astype(np.uint8)
    return np.where(seen[..., None], mixed, thumbnail).astype(np.uint8)


def _held_out(
    spec: HeatmapSpec, folds: pl.DataFrame, entries: dict[str, FeatureEntry]
) -> list[tuple[str, int, int]]:
    """(slide, label, fold): a seeded choice, the classes in turn so that each gets its share."""
    usable = [name for name, entry in entries.items() if entry.status == "ok"]
    table = folds.filter(
        (pl.col("repeat") == 0) & (pl.col("role") == "test") & pl.col("slide_id").is_in(usable)
    ).sort("slide_id")
    generator = np.random.default_rng(spec.seed)
    order = generator.permutation(len(table))
    by_class: dict[int, list[tuple[str, int, int]]] = {}
    for slide_id, label, fold in table[order].select("slide_id", "label", "fold").iter_rows():
        by_class.setdefault(label, []).append((slide_id, label, fold))
    chosen: list[tuple[str, int, int]] = []
    while len(chosen) < spec.slides and any(by_class.values()):
        for label in sorted(by_class):
            if by_class[label] and len(chosen) < spec.slides:
                chosen.append(by_class[label].pop(0))
    return sorted(chosen, key=lambda item: (item[1], item[0]))


def _attention(model: Path, slide_id: str) -> NDArray[np.float32]:
    table = pl.read_parquet(model / "attention.parquet").filter(pl.col("slide_id") == slide_id)
    if len(table) != 1:
        raise UserError(f"{slide_id}: has no attention in {model}; train the fold again.")
    return np.asarray(table["attention"][0].to_numpy(), np.float32)


def _draw(
    path: Path, store: Path, attention: NDArray[np.float32], mask: Path | None
) -> tuple[RGB, dict[str, object]]:
    """Thumbnail, overlay and (where there is one) the mask, side by side."""
    attributes, coords = read_attributes(store), read_coords(store)
    facts = attributes["slide"]
    scale = Scale(facts["mpp"][0], facts["mpp"][1], facts["mpp_source"])
    width, height = facts["size_px"]
    with Slide(path) as slide:
        mpp = max(width * scale.mpp_x, height * scale.mpp_y) / _SIDE_PX
        thumbnail = slide.thumbnail(mpp, scale)
    to_px = np.array([thumbnail.shape[1] / width, thumbnail.shape[0] / height])
    boxes = np.concatenate([coords * to_px, (coords + facts["level0_tile"]) * to_px], axis=1)
    panels = [thumbnail, overlay(thumbnail, boxes, attention)]
    if mask is not None:
        truth = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
        if truth is None:
            log.warning("%s: the mask %s cannot be read", path.stem, mask)
        else:
            panels.append(_outline(thumbnail, truth.astype(np.uint8)))
    gap = np.full((thumbnail.shape[0], _GAP_PX, 3), 255, np.uint8)
    joined = [part for panel in panels for part in (panel, gap)][:-1]
    return np.concatenate(joined, axis=1), {
        "panels": len(panels),
        "tiles": len(coords),
        "um_per_px": round(mpp, 3),
    }


def _outline(thumbnail: RGB, truth: NDArray[np.uint8]) -> RGB:
    size = (thumbnail.shape[1], thumbnail.shape[0])
    inside = cv2.resize(truth, size, interpolation=cv2.INTER_AREA) > 127
    tint = np.array([255, 196, 0])
    mixed = np.where(inside[..., None], 0.5 * thumbnail + 0.5 * tint, 0.5 * thumbnail + 127)
    return mixed.astype(np.uint8)


def read_heatmaps(path: Path) -> list[dict[str, object]]:
    """Read `heatmaps.json`."""
    found: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return found
