"""What `her2 view` costs, for a demo and at the largest: seconds in Chromium, and memory.

    python benchmarks/viewer.py [--slides 20000] [--tiles 100000] [--side 100000] [--squares 4000]

Draws a run with so many slides, one of which has so many tiles and px, starts `her2 view` on it,
and looks at it as people do. The slide is a TIFF of a few MB whose tiles are all the same few
JPEGs. Prints a table for docs/viewer.md, and the same as JSON in the last line.
"""

import argparse
import io
import json
import math
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from her2.config import load_config
from her2.config.jobs import CohortSpec, HeatmapSpec, ReportSpec, dump
from her2.core.files import digest, write_json
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, FoldEntry, write_entries
from tests.browser import Tab, browser
from tests.unit.products import reseal, write_store
from tests.viewing import Viewing, viewing

TILE_PX = 240
MPP = 0.25
JPEG_PX = 512
BUCKET, CHUNK, ENCODER, HEAD = "0000-of-0001", "r0f0-r0f0", "plain", "abmil"
CLASSES = ("low", "high")
FIRST = "s-000000"
"""The slide that has a file."""
ONE_BY_ONE = 50
"""Squares whose time is measured; the others come four at a time, as for a browser."""
PAGE = f"/slides/development/{FIRST}"
CARDS = "document.querySelectorAll('.card .id').length > 0"
PICTURE = "document.querySelectorAll('.leaflet-tile-loaded').length > 0"
OVERLAY = "[...document.querySelectorAll('img.cells')].some((one) => one.naturalWidth > 0)"


@dataclass(frozen=True)
class Size:
    """How large a run is drawn."""

    slides: int
    tiles: int
    side_px: int


@dataclass(frozen=True)
class Cost:
    """What looking at a run costs: seconds until something is seen, and memory in MB.

    `start` is from the command to its address, `cohort_again` with the table in memory, `square`
    the median of one square with its reading, `memory` that of the server before and after each
    quarter of them.
    """

    slides: int
    tiles: int
    side_px: int
    start: float
    cohort: float
    cohort_again: float
    slide: float
    overlay: float
    square: float
    squares: int
    memory: tuple[float, ...]


def draw_slide(path: Path, side: int) -> None:
    """Write a tiled TIFF with a pyramid, whose tiles are a few JPEGs; each level is a quarter."""
    generator = np.random.default_rng(1)
    jpegs = [_jpeg(generator) for _ in range(8)]
    with path.open("wb") as stream:
        stream.write(b"II*\0" + bytes(4))
        places = []
        for jpeg in jpegs:
            places.append((stream.tell(), len(jpeg)))
            stream.write(jpeg + bytes(len(jpeg) % 2))
        link, level = 4, 0
        while not level or side > 1024:
            if level:
                side = math.ceil(side / 4)
            stream.write(bytes(-stream.tell() % 4))
            link = _directory(stream, link, side, places, reduced=level > 0)
            level += 1


def _jpeg(generator: np.random.Generator) -> bytes:
    """Return a square like H&E: pink, with dark nuclei."""
    yy, xx = np.mgrid[:JPEG_PX, :JPEG_PX]
    image = np.full((JPEG_PX, JPEG_PX, 3), (232, 190, 214), np.float64)
    for x, y in generator.uniform(0, JPEG_PX, (150, 2)):
        inside = (xx - x) ** 2 + (yy - y) ** 2 < generator.uniform(6, 12) ** 2
        image[inside] = (96, 60, 132)
    image += generator.normal(0, 6, image.shape)
    stream = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
        stream, "JPEG", quality=80, subsampling=0
    )
    return stream.getvalue()


def _directory(
    stream: io.BufferedWriter,
    link: int,
    side: int,
    places: Sequence[tuple[int, int]],
    *,
    reduced: bool,
) -> int:
    """Append a level, link it where the one before says, and return where the next is linked."""
    count = math.ceil(side / JPEG_PX) ** 2
    chosen = [places[(7 * index) % len(places)] for index in range(count)]
    offsets = stream.tell()
    stream.write(struct.pack(f"<{count}I", *(start for start, _ in chosen)))
    lengths = stream.tell()
    stream.write(struct.pack(f"<{count}I", *(length for _, length in chosen)))
    bits, resolution = stream.tell(), stream.tell() + 8
    stream.write(struct.pack("<4H", 8, 8, 8, 0))
    stream.write(struct.pack("<2I", round(10_000 / MPP), 1))  # px per cm
    entries = [
        (254, 4, 1, int(reduced)), (256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, bits),
        (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3), (282, 5, 1, resolution),
        (283, 5, 1, resolution), (284, 3, 1, 1), (296, 3, 1, 3), (322, 4, 1, JPEG_PX),
        (323, 4, 1, JPEG_PX), (324, 4, count, offsets if count > 1 else chosen[0][0]),
        (325, 4, count, lengths if count > 1 else chosen[0][1]), (530, 3, 2, 1 | 1 << 16),
    ]  # fmt: skip
    here = stream.tell()
    stream.write(struct.pack("<H", len(entries)))
    stream.writelines(struct.pack("<HHII", *entry) for entry in entries)
    following = stream.tell()
    stream.write(bytes(4))
    stream.seek(link)
    stream.write(struct.pack("<I", here))
    stream.seek(0, io.SEEK_END)
    return following


def draw_run(folder: Path, size: Size) -> None:
    """Write what a finished run leaves, as far as the viewer reads it."""
    names = [f"s-{number:06d}" for number in range(size.slides)]
    patients = [f"p-{number // 2:06d}" for number in range(size.slides)]
    generator = np.random.default_rng(2)
    high = generator.uniform(size=size.slides)
    target = (generator.uniform(size=size.slides) < high).astype(np.int32)
    sites = [("north", "south", "east", "west")[number % 4] for number in range(size.slides)]
    (folder / "slides").mkdir(parents=True)
    draw_slide(folder / "slides" / f"{FIRST}.tif", size.side_px)
    labels = [("1+", "3+")[one] for one in target]
    own = {"slide_id": names, "patient_id": patients, "site": sites}
    paths = [f"slides/{name}.tif" for name in names]
    pl.DataFrame({**own, "path": paths, "her2": labels}).write_csv(folder / "slides.csv")
    (folder / "config.yaml").write_text(yaml.safe_dump(_config()))
    results = folder / "results"
    for name in ("cohort", "folds", f"features/{ENCODER}", "stamps/draw_heatmaps/score/plain"):
        (results / name).mkdir(parents=True)
    pl.DataFrame(
        {
            **own,
            "label_her2": labels,
            "scanner": [None] * size.slides,
            "grid": load_config(folder / "config.yaml").encoders[ENCODER].grid,
            "status": ["failed" if number % 50 == 49 else "ok" for number in range(size.slides)],
            "reason": ["cannot be read" if number % 50 == 49 else None
                       for number in range(size.slides)],
            "tiles": generator.integers(500, 20_000, size.slides),
            "tissue_mm2": generator.uniform(10, 400, size.slides).round(1),
            "mpp_x": MPP, "mpp_y": MPP, "rejected_pen": 3, "rejected_fold": 9, "brown": 0.0,
        },
        schema_overrides={"scanner": pl.String},
    ).write_parquet(results / "cohort/slides.parquet")  # fmt: skip
    evaluation = results / "evaluation/score" / ENCODER / HEAD
    evaluation.mkdir(parents=True)
    said = pl.DataFrame(
        {
            "slide_id": names, "patient_id": patients, "target": target,
            "predicted": (high > 0.5).astype(np.int32), "prob_low": 1 - high, "prob_high": high,
        }
    )  # fmt: skip
    said.write_parquet(evaluation / "slides.parquet")
    zero = {name: pl.lit(0, pl.Int32) for name in ("repeat", "fold", "seed")}
    rows = said.drop("predicted").with_columns(**zero, role=pl.lit("test"))
    rows.write_parquet(evaluation / "predictions.parquet")
    _draw_attention(folder, size)


def _config() -> dict[str, object]:
    return {
        "cohort": {"slides": "slides.csv", "synthetic": True},
        "tasks": {"score": {"label": "her2", "classes": {"low": ["1+"], "high": ["3+"]}}},
        "encoders": {
            ENCODER: {"source": "random", "model": "timm/resnet10t", "mpp": MPP, "size": TILE_PX}
        },
        "heads": {HEAD: {}},
        "report": {"title": "A drawn run"},
    }


def _draw_attention(folder: Path, size: Size) -> None:
    """Write the first slide's features, its fold and the attention to its tiles."""
    config, cache = load_config(folder / "config.yaml"), Cache(folder / "cache")
    results = folder / "results"
    columns = min(size.side_px // TILE_PX, math.ceil(math.sqrt(size.tiles * 1.6)))
    index = np.arange(size.tiles)
    coords = (np.stack([index % columns, index // columns], axis=1) * TILE_PX).astype(np.int32)
    assert coords.max() + TILE_PX <= size.side_px, "the slide has no room for so many tiles"
    key = digest(["drawn", size.tiles])
    with cache.publish("features", key) as path:
        attributes = {
            "key": key,
            "slide": {
                "fingerprint": digest("drawn"), "mpp": [MPP, MPP], "mpp_source": "metadata",
                "level0_tile": [float(TILE_PX)] * 2, "size_px": [size.side_px] * 2,
            },
            "target": {"mpp": MPP, "px": TILE_PX},
        }  # fmt: skip
        write_store(path, np.ones((size.tiles, 8), np.float16), coords, attributes)
    entry = FeatureEntry("ok", None, key, size.tiles, 0, 8)
    write_entries(results / "features" / ENCODER / f"{BUCKET}.json", {FIRST: entry})
    pl.DataFrame(
        {"slide_id": [FIRST], "patient_id": ["p-000000"], "label": [0], "repeat": [0],
         "fold": [0], "role": ["test"]},
        schema_overrides=dict.fromkeys(("label", "repeat", "fold"), pl.Int32),
    ).write_parquet(results / "folds/score.parquet")  # fmt: skip
    x, y = coords.T / size.side_px
    attention = np.exp(-20 * ((x - 0.4) ** 2 + (y - 0.2) ** 2)).astype(np.float32)
    attention /= attention.sum()
    fold = digest("fold")
    with cache.publish("models", fold) as made:
        pl.DataFrame(
            {"slide_id": [FIRST], "attention": [attention.tolist()]},
            schema_overrides={"attention": pl.List(pl.Float32)},
        ).write_parquet(made / "attention.parquet")
        pl.DataFrame(
            {"slide_id": [FIRST], "patient_id": ["p-000000"], "prob_low": [0.2], "prob_high": [0.8]}
        ).write_parquet(made / "predictions.parquet")
        reseal(made, key=fold, outputs=list(CLASSES))
    models = results / "models/score" / ENCODER / HEAD
    models.mkdir(parents=True)
    write_entries(models / f"{CHUNK}.json", {"r0f0": FoldEntry(fold, 1, 1, 1, 0, 1, 0.5)})
    heatmaps = HeatmapSpec(
        task=config.tasks["score"], chunks=(CHUNK,), buckets=(BUCKET,), slides=1,
        formats=("png",), seed=1, synthetic=True,
    )  # fmt: skip
    report = ReportSpec(config=config, software="drawn", buckets=(BUCKET,), chunks=(CHUNK,))
    cohort = CohortSpec(
        rows="drawn", buckets=(BUCKET,), grids=tuple(config.grids), labels=("her2",)
    )
    for name, spec in (
        ("tabulate_cohort", dump(cohort)),
        ("build_report", dump(report)),
        (f"draw_heatmaps/score/{ENCODER}/{HEAD}", dump(heatmaps)),
    ):
        stamp = {"job": name, "spec": json.loads(spec), "read": {}, "made": {}}
        write_json(results / "stamps" / f"{name}.json", stamp)


def look(folder: Path, size: Size, squares: int) -> Cost:
    """Start `her2 view` on a run that was drawn, and look at it."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        browser(Path(profile)) as tab,
    ):
        began = time.monotonic()
        with viewing(folder, "results") as found:
            start = time.monotonic() - began
            # A browser has its connections and Leaflet, but no page of the run yet.
            tab.open(f"{found.url('/leaflet/leaflet.js')}?token={found.token}")
            seen = [
                _seconds(tab, found.url(path), what)
                for path, what in (
                    ("/", CARDS),
                    ("/", CARDS),
                    (PAGE, PICTURE),
                    (f"{PAGE}?layers=attention:0.7", OVERLAY),
                )
            ]
            times, memory = _fetch(found, squares)
    return Cost(
        **asdict(size),
        start=round(start, 2),
        **dict(zip(("cohort", "cohort_again", "slide", "overlay"), seen, strict=True)),
        square=round(float(np.median(times)), 4),
        squares=squares,
        memory=tuple(memory),
    )


def _seconds(tab: Tab, address: str, seen: str) -> float:
    """Return the time from asking for a page until something is seen."""
    began = time.monotonic()
    tab.open(address)
    tab.wait_for(seen, 60)
    assert not tab.errors, tab.errors
    return round(time.monotonic() - began, 3)


def _fetch(found: Viewing, squares: int) -> tuple[list[float], list[float]]:
    """Ask for squares of full resolution, none twice: seconds, and memory after each quarter."""
    facts = found.get(f"/api{PAGE}").json()
    zoom = facts["zoom"]
    columns = facts["size_px"][0] // zoom["tile_px"]

    def fetch(number: int) -> float:
        began = time.monotonic()
        place = f"{number % columns}_{number // columns}"
        answer = found.get(f"{PAGE}/zoom/{zoom['levels'] - 1}/{place}.webp")
        assert answer.status == 200, answer.text
        return time.monotonic() - began

    memory = [_megabytes(found)]
    times = [fetch(number) for number in range(ONE_BY_ONE)]
    with ThreadPoolExecutor(4) as pool:
        for quarter in range(4):
            first = max(ONE_BY_ONE, squares * quarter // 4)
            list(pool.map(fetch, range(first, squares * (quarter + 1) // 4)))
            memory.append(_megabytes(found))
    return times, memory


def _megabytes(found: Viewing) -> float:
    """Return the resident memory of the server, without what starts it."""
    return round(
        max(one.memory_info().rss for one in psutil.Process(found.process.pid).children()) / 1e6
    )


def main() -> None:
    """Print the table and its JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--slides", type=int, default=20_000)
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--squares", type=int, default=4_000)
    asked = parser.parse_args()
    largest = Size(asked.slides, asked.tiles, asked.side)
    costs = []
    for size, squares in ((Size(80, 250, 4_000), 200), (largest, asked.squares)):
        with tempfile.TemporaryDirectory() as folder:
            draw_run(Path(folder), size)
            costs.append(look(Path(folder), size, squares))
    print("| | " + " | ".join(f"{one.slides:,} slides" for one in costs) + " |")
    print("| --- |" + " --- |" * len(costs))
    for words, row in (
        ("the slide, px a side", [f"{one.side_px:,}" for one in costs]),
        ("its tiles", [f"{one.tiles:,}" for one in costs]),
        ("s from the command to the address", [f"{one.start:.1f}" for one in costs]),
        ("s to the first cards of the cohort", [f"{one.cohort:.2f}" for one in costs]),
        ("s to them again", [f"{one.cohort_again:.2f}" for one in costs]),
        ("s to the first part of the slide", [f"{one.slide:.2f}" for one in costs]),
        ("s to the slide with its attention", [f"{one.overlay:.2f}" for one in costs]),
        ("ms a square of full resolution", [f"{1000 * one.square:.0f}" for one in costs]),
        ("MB of the server before, and after each quarter of the squares",
         [f"{', '.join(f'{mb:,.0f}' for mb in one.memory)} ({one.squares:,})" for one in costs]),
    ):  # fmt: skip
        print(f"| {words} | {' | '.join(row)} |")
    print(json.dumps([asdict(one) for one in costs]))


if __name__ == "__main__":
    main()
