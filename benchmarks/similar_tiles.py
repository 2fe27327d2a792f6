"""What similar tiles of `her2 view` cost, on drawn feature stores; see docs/viewer.md.

python benchmarks/similar_tiles.py --slides 400 --tiles 2000 --dimension 1536
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from her2.storage.features import write_rows
from her2.viewer.similar.search import read_query
from her2.viewer.similar.searches import SAMPLE_BYTES, Sample, Search
from her2.viewer.similar.stores import EmbeddedSlide
from tests.peak import peak_megabytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds, CPU seconds and memory of a sample and of both searches, of what was drawn."""

    slides: int
    tiles: int
    dimension: int
    sampled_tiles: int
    sample_mb: float
    build_s: tuple[float, float]
    search_s: tuple[float, float]
    all_s: tuple[float, float]
    all_gb: float
    all_memory_mb: float


def measure(
    folder: Path, *, slides: int, tiles: int, dimension: int, limit_bytes: int = SAMPLE_BYTES
) -> Cost:
    """Draw stores in float16 into a folder, and measure a sample and both searches.

    Stores of the same features are one file with several names, so that a disk is enough; a file
    that was just written is read from memory, which a real cohort is not.
    """
    made = _drawn(folder, slides, tiles, dimension)
    query = read_query(made, 0, 0)
    sample = Sample(made, dimension, limit_bytes)
    times = [_now()]
    sample.build(threading.Event())
    times.append(_now())
    sample.search(query)
    times.append(_now())
    before = peak_megabytes(anew=True)
    found = Search(made, query).run()
    times.append(_now())
    assert found is not None
    assert found.searched.tiles == slides * tiles
    build, search, everything = (
        (round(b - a, 3), round(d - c, 3)) for (a, c), (b, d) in itertools.pairwise(times)
    )
    return Cost(
        slides=slides,
        tiles=tiles,
        dimension=dimension,
        sampled_tiles=len(sample.rows),
        sample_mb=round(sample.size_bytes / 1e6, 1),
        build_s=build,
        search_s=search,
        all_s=everything,
        all_gb=round(slides * tiles * dimension * 2 / 1e9, 2),
        all_memory_mb=round(peak_megabytes() - before, 1),
    )


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _drawn(folder: Path, slides: int, tiles: int, dimension: int) -> list[EmbeddedSlide]:
    generator = np.random.default_rng(0)
    files = []
    for number in range(min(slides, 16)):
        path = folder / f"{number}.zarr.zip"
        rows = generator.normal(size=(tiles, dimension)).astype(np.float16)
        write_rows(
            path,
            [rows],
            rows.shape,
            rows.dtype,
            np.zeros((tiles, 2), np.int32),
            lambda: {"key": ""},
        )
        files.append(path)
    return [
        EmbeddedSlide("development", f"s{n}", f"p{n // 2}", tiles, "", (files[n % len(files)],))
        for n in range(slides)
    ]


def main() -> None:
    """Measure one cohort, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=400)
    parser.add_argument("--tiles", type=int, default=2000)
    parser.add_argument("--dimension", type=int, default=1536)
    parser.add_argument("--limit-mb", type=int, default=SAMPLE_BYTES >> 20)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="similar-"))
    try:
        cost = measure(
            folder,
            slides=given.slides,
            tiles=given.tiles,
            dimension=given.dimension,
            limit_bytes=given.limit_mb << 20,
        )
    finally:
        shutil.rmtree(folder)
    print(json.dumps(dataclasses.asdict(cost), indent=1))


if __name__ == "__main__":
    main()
