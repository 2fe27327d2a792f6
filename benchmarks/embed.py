"""Speed of stage 1's embedding, compared with its limits in the same run.

    python benchmarks/embed.py [--quick] [--threads 2] [--encoders resnet50 vit_small_patch16_224]

For each encoder (random weights) and material it prints

- read: tiles/s of reading alone, with all threads, in the embedder's way
- encode: patches/s of the encoder alone, with patches in memory, in the fastest arrangement
- combined: 1 / (1/read + 1/encode), the limit of a CPU, whose cores do both
- end-to-end: patches/s of the whole `her2 embed` command, including the start of Python, loading
  the model and publishing
- inside: the same from the first tile to the last store
- /limit: the figure before it as a share of the smaller of read and encode
- CPU: CPU seconds of the encoder as a share of those of the whole command, which other programs on
  the machine hardly change
- cores: average number of cores that the command had (below --threads on a busy machine)
- idle: share of the time in which the device had nothing to do (CPU: cores that did not encode)
- RSS: peak memory of the command

Material: a generated JPEG pyramid, a real SVS if one is found, and cohorts of 20 slides of 100
tiles and of one slide of 2,000. A busy machine changes all figures of a run, so compare ratios.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from her2.cohort.manifest import Cohort, SlideRow, bucket_of  # noqa: E402
from her2.config import EncoderSection, TilingSection  # noqa: E402
from her2.config.jobs import EmbedSpec, EncoderSpec, TileSpec, dump  # noqa: E402
from her2.core.hardware import allowed_cpus  # noqa: E402
from her2.embedding.inference import batch_limit, prepare  # noqa: E402
from her2.embedding.reading import PendingSlide, TileQueue, read_part  # noqa: E402
from her2.encoders.device import DTYPES, pick_device, resolve_precision  # noqa: E402
from her2.encoders.stage import materialise_encoder, read_encoder  # noqa: E402
from her2.slides.slide import Slide  # noqa: E402
from her2.storage.cache import Cache  # noqa: E402 the project of this folder, installed or not
from her2.storage.entries import TileEntry, read_entries  # noqa: E402
from her2.storage.features import read_attributes  # noqa: E402
from her2.storage.spool import RowSpool  # noqa: E402
from her2.storage.tiles import TileTable, read_table  # noqa: E402
from her2.synthetic import slide_generator, slide_params  # noqa: E402
from her2.synthetic.tissue import draw_region  # noqa: E402
from her2.tiling.stage import tile_bucket  # noqa: E402

BUCKET = "0000-of-0001"
MPP = 0.5
REAL = ROOT.parent / "shared" / "slides" / "cmu-1-small-region.svs"
JPEG_PX = 256


@dataclass(frozen=True)
class Material:
    """A cohort of slides, tiled on a grid."""

    name: str
    folder: Path
    cohort: Cohort

    @property
    def tiles(self) -> Path:
        return self.folder / "tiles" / f"{BUCKET}.json"

    @property
    def cache(self) -> Cache:
        return Cache(self.folder / "cache")

    def tables(self) -> list[tuple[Path, TileTable]]:
        found = read_entries(self.tiles, TileEntry)
        return [
            (
                self.cohort.file(row),
                read_table(self.cache.path("tiles", str(found[row.slide_id].key))),
            )
            for row in self.cohort.rows
        ]


def drawn(side_px: int) -> np.ndarray:
    """Return drawn tissue with a scanner's noise and without glass."""
    params = slide_params(slide_id="s", patient_id="p", her2="2+", site="north", seed=1)
    image, _ = draw_region(slide_generator(1, "p", "s"), params, 3072, MPP)
    first = (3072 - side_px) // 2
    image = image[first : first + side_px, first : first + side_px].astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_pyramid(path: Path, patch: np.ndarray, width: int, height: int) -> None:
    """Write a tiled TIFF (JPEG 4:2:0, levels of 1/2) whose tiles repeat those of `patch`."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        level = 0
        while min(width, height) >= JPEG_PX and len(patch) >= JPEG_PX:
            count = len(patch) // JPEG_PX
            encoded = [
                imagecodecs.jpeg8_encode(
                    np.ascontiguousarray(
                        patch[y * JPEG_PX : (y + 1) * JPEG_PX, x * JPEG_PX : (x + 1) * JPEG_PX]
                    ),
                    level=80,
                )
                for y in range(count)
                for x in range(count)
            ]
            rows, columns = math.ceil(height / JPEG_PX), math.ceil(width / JPEG_PX)
            tiff.write(
                (
                    encoded[y % count * count + x % count]
                    for y in range(rows)
                    for x in range(columns)
                ),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(JPEG_PX, JPEG_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                metadata=None,
                subfiletype=int(level > 0),
                resolution=(1e4 / MPP * 2**-level, 1e4 / MPP * 2**-level),
                resolutionunit="CENTIMETER",
            )
            width, height, level = width // 2, height // 2, level + 1
            patch = cv2.resize(patch, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def materials(folder: Path, size: int, height: int) -> Iterator[Material]:
    """Write and tile the slides to embed."""
    patch = drawn(2048)
    side = 25_000
    write_pyramid(folder / "pyramid.tif", patch, side, height)
    yield tiled(folder, "pyramid", {"pyramid": folder / "pyramid.tif"}, size)
    if REAL.exists():
        yield tiled(folder, "real SVS", {"real": REAL}, size)
    one = folder / "one.tif"
    slides = {}
    for number in range(20):
        path = folder / f"small-{number:02d}.tif"
        # A grid of 10 x 10 tiles. All files differ, else the cache would serve all but the first.
        write_pyramid(path, np.roll(patch, 37 * number, axis=1), 10 * size, 10 * size)
        slides[path.stem] = path
    write_pyramid(one, patch, 50 * size, 40 * size)
    yield tiled(folder, "20 x 100 tiles", slides, size)
    yield tiled(folder, "1 x 2000 tiles", {"one": one}, size)


def tiled(folder: Path, name: str, slides: dict[str, Path], size: int) -> Material:
    """Tile slides at `size` px, as a cohort of one bucket."""
    rows = tuple(SlideRow(key, str(path), key, {}) for key, path in sorted(slides.items()))
    assert all(bucket_of(row.slide_id, 1) == BUCKET for row in rows)
    made = Material(name, folder / name.replace(" ", "-") / str(size), Cohort(rows, folder))
    tiling = TilingSection(min_tissue=0.0, min_tiles=1)
    spec = TileSpec(bucket=BUCKET, rows="", mpp=MPP, size=size, tiling=tiling)
    tile_bucket(spec, made.cohort, made.cache, made.tiles, threads=allowed_cpus())
    manifest = "slide_id,path,patient_id\n" + "".join(
        f"{row.slide_id},{row.path},{row.slide_id}\n" for row in rows
    )
    (made.folder / "slides.csv").write_text(manifest)
    return made


def in_threads(count: int, work: Callable[[], None]) -> float:
    """Return the seconds until `count` threads have all done `work`."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def read_alone(material: Material, threads: int, limit: int) -> float:
    """Return tiles/s of reading in the embedder's way, over at most `limit` tiles."""
    passages = [
        PendingSlide(
            str(path), path, table, "", RowSpool(len(table), 1, "float16", material.folder)
        )
        for path, table in material.tables()
    ]
    queue, done = TileQueue(passages), [0]
    size = passages[0].table.grid.tile_px

    def work() -> None:
        images = np.empty((16, size, size, 3), np.uint8)
        while done[0] < limit and (parts := queue.take(16, across=False)):
            ((slide, rows),) = parts
            read_part(slide, rows, images)
            done[0] += len(rows)

    seconds = in_threads(threads, work)
    return done[0] / seconds


def read_ways(path: Path, table: TileTable, limit: int = 400) -> dict[str, float]:
    """Return tiles/s per core: by read_region, by super-tiles of 4 x 4, and from the JPEG tiles."""
    grid = table.grid
    passage = PendingSlide("", path, table, "", RowSpool(1, 1, "float16", path.parent))
    rows = passage.order[:limit]
    width, height, px = grid.level0_width, grid.level0_height, grid.tile_px
    found = {}
    for name in ("read_region", "super-tile 4 x 4", "JPEG tiles"):
        with Slide(path) as slide:
            if name == "JPEG tiles" and not slide.decode_directly(0, 0, width, height):
                continue
            begin = time.thread_time()
            if name.startswith("super"):
                corners = table.coords[rows[(table.coords[rows] // (4 * width) * 0 == 0).all(1)]]
                blocks = sorted(
                    {(int(x // (4 * width)), int(y // (4 * height))) for x, y in corners}
                )
                blocks = [
                    (x, y)
                    for x, y in blocks
                    if (x + 1) * 4 * width <= table.facts.width_px
                    and (y + 1) * 4 * height <= table.facts.height_px
                ][: max(1, limit // 16)]
                for x, y in blocks:
                    slide.region(
                        x * 4 * width, y * 4 * height, 4 * width, 4 * height, (4 * px, 4 * px)
                    )
                count = 16 * len(blocks)
            else:
                for x, y in table.coords[rows]:
                    slide.region(float(x), float(y), width, height, (px, px))
                count = len(rows)
            if count:
                found[name] = count / (time.thread_time() - begin)
    return found


def encode_alone(
    folder: Path, threads: int, batch_size: int, seconds: float, *, all_ways: bool
) -> tuple[dict[str, float], str, str, float]:
    """Measure the encoder alone, with patches in memory.

    Returns:
        Patches/s by arrangement, the device, the precision, and CPU seconds per patch of the first
        arrangement, which is the embedder's.
    """
    device = pick_device(threads)
    encoder, card = read_encoder(folder)
    precision = resolve_precision(card.precision, device)
    prepare(encoder, device, precision)
    dtype = DTYPES[precision]

    def forward(patches: torch.Tensor) -> None:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            encoder(patches)

    def patches(count: int) -> torch.Tensor:
        shape = (count, card.size, card.size, 3)
        return torch.randint(0, 255, shape, dtype=torch.uint8, device=device)

    found = {}
    if device.type == "cuda":
        batch = patches(batch_size)
        forward(batch)
        torch.cuda.synchronize()
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            for _ in range(5):
                forward(batch)
                count += len(batch)
            torch.cuda.synchronize()
        found[f"batches of {batch_size}"] = count / (time.perf_counter() - begin)
        return found, torch.cuda.get_device_name(device), precision, math.nan
    cost = math.nan
    small = batch_limit(card.size, batch_size, device)
    ways = (
        (f"{threads} x 1 thread, {small}", threads, patches(small)),
        (f"1 x {threads} threads, {small}", 1, patches(small)),
        (f"1 x {threads} threads, {batch_size}", 1, patches(batch_size)),
    )
    for name, crew, batch in ways if all_ways else ways[:1]:
        torch.set_num_threads(threads // crew)
        forward(batch)
        counts: list[int] = []

        def work(batch: torch.Tensor = batch, crew: int = crew, counts: list[int] = counts) -> None:
            torch.set_num_threads(threads // crew)
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds:
                forward(batch)
                counts.append(len(batch))

        busy = time.process_time()
        took = in_threads(crew, work)
        if math.isnan(cost):
            cost = (time.process_time() - busy) / sum(counts)
        found[name] = sum(counts) / took
    return found, f"CPU, {threads} threads", precision, cost


@dataclass(frozen=True)
class Run:
    """Figures of one call of `her2 embed`."""

    seconds: float
    inside_seconds: float
    patches: int
    idle: float
    peak_mb: float
    cpu_seconds: float


def whole_command(
    material: Material, encoder: Path, threads: int, batch_size: int, compiling: str
) -> Run:
    """Run `her2 embed` with none of the material's features in the cache."""
    out = material.folder / "features" / f"{time.time_ns()}" / f"{BUCKET}.json"
    spec = EmbedSpec(bucket=BUCKET, rows="", max_failed_tiles=0.05)
    command = [
        sys.executable, "-m", "her2", "embed", "--spec", dump(spec),
        "--slides", str(material.folder / "slides.csv"), "--cache", str(material.cache.root),
        "--tiles", str(material.tiles), "--encoder", str(encoder), "--out", str(out),
        "--batch-size", str(batch_size), "--threads", str(threads), "--compile", compiling,
    ]  # fmt: skip
    for product in material.cache.products():
        if product.kind == "features":
            product.path.unlink()
    with tempfile.TemporaryFile("w+") as log:
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)  # for the child's peak memory and CPU time
        seconds = time.perf_counter() - begin
        log.seek(0)
        text = log.read()
    if status:
        sys.exit(text)
    inside = next(line for line in text.splitlines() if "INFO embedding: " in line)
    stores = [p.path for p in material.cache.products() if p.kind == "features"]
    receipts = [read_attributes(path)["receipt"] for path in stores]
    workers = receipts[0]["workers"]
    elapsed = float(inside.split(" in ")[1].split()[0])
    encoding = sum(receipt["seconds_encoding"] for receipt in receipts)
    return Run(
        seconds,
        elapsed,
        sum(read_attributes(path)["tiles"] for path in stores),
        max(0.0, 1 - encoding / workers / elapsed),
        usage.ru_maxrss / 1024,
        usage.ru_utime + usage.ru_stime,
    )


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller pyramid, less time")
    parser.add_argument("--height", type=int, help="height of the pyramid in px; width 25,000")
    parser.add_argument("--threads", type=int, default=allowed_cpus())
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compile", default="auto", choices=("auto", "never", "always"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=None, help="time for each encoder alone")
    parser.add_argument("--encoders", nargs="+", default=["resnet50", "vit_small_patch16_224"])
    parser.add_argument("--only", nargs="+", default=None, help="names of the materials")
    options = parser.parse_args()
    seconds = options.seconds or (4.0 if options.quick else 10.0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = [
            material
            for material in materials(
                folder, options.size, options.height or (3_000 if options.quick else 25_000)
            )
            if options.only is None or material.name in options.only
        ]
        print(f"load of the machine at the start: {os.getloadavg()[0]:.1f}")
        path, table = made[0].tables()[0]
        ways = read_ways(path, table)
        print("reading, tiles/s per core:", ", ".join(f"{k} {v:.0f}" for k, v in ways.items()))
        for name in options.encoders:
            encoder = folder / "encoders" / name
            section = EncoderSection(
                source="random", model=f"timm/{name}", mpp=MPP, size=options.size
            )
            materialise_encoder(EncoderSpec(encoder=section, seed=1), encoder)
            runs: dict[str, Run] = {}
            for material in made:
                options_ = (encoder, options.threads, options.batch_size)
                read = read_alone(material, options.threads, 4000)
                alone, device, precision, cost = encode_alone(*options_, seconds, all_ways=not runs)
                if not runs:
                    print(f"\n{name}, {options.size} px, {precision}, {device}; encoder alone:")
                    print("  " + "; ".join(f"{key}: {value:.1f}" for key, value in alone.items()))
                    print(
                        "material        patches  read/s encode/s combined/s end-to-end  /limit"
                        "   inside  /limit   CPU cores  idle  RSS MB"
                    )
                run = runs[material.name] = whole_command(material, *options_, options.compile)
                # Repeated afterwards, as on a shared machine the limit changes during the command.
                after, _, _, cost_after = encode_alone(*options_, seconds, all_ways=False)
                encode = statistics.mean([max(alone.values()), max(after.values())])
                busy = (cost + cost_after) / 2 * run.patches / run.cpu_seconds
                end, inside = run.patches / run.seconds, run.patches / run.inside_seconds
                print(
                    f"{material.name:15} {run.patches:7} {read:7.0f} {encode:8.1f} "
                    f"{1 / (1 / read + 1 / encode):9.1f} {end:10.1f} "
                    f"{end / min(read, encode):7.2f} {inside:8.1f} "
                    f"{inside / min(read, encode):7.2f} {busy:5.2f} "
                    f"{run.cpu_seconds / run.seconds:5.2f} {run.idle:5.1%} {run.peak_mb:6.0f}",
                    flush=True,
                )
            if {"20 x 100 tiles", "1 x 2000 tiles"} <= set(runs):
                many, one = runs["20 x 100 tiles"], runs["1 x 2000 tiles"]
                print(
                    "speed on 20 slides of 100 tiles relative to one slide of 2,000: "
                    f"{one.inside_seconds / many.inside_seconds:.2f} by wall time, "
                    f"{one.cpu_seconds / many.cpu_seconds:.2f} by CPU time"
                )
        print(json.dumps({"torch": torch.__version__, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
