"""Embedding jobs that are killed, run twice or short of disk space; used by test_embed_trust.py.

    python -m tests.unit.embed_nursery FOLDER

torch is loaded once and jobs are forks of this process, so a job that takes a second can
be killed twenty times in half a minute. Prints JSON.
"""

import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
import torch
import zarr.storage  # noqa: F401 loaded before the first fork, as her2.embedding

import her2.embedding.session
import her2.storage.spool
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import EncoderSection
from her2.config.jobs import EmbedSpec
from her2.core.errors import UserError
from her2.core.files import digest
from her2.embedding.stage import embed_bucket
from her2.slides.fingerprint import fingerprint
from her2.storage.cache import Cache
from her2.storage.entries import TileEntry, write_entries
from her2.storage.tiles import TileTable, write_table
from her2.storage.verify import product_problem
from tests.unit.products import materialise
from tests.unit.tile_makers import slide_facts, tile_grid

BUCKET = "0000-of-0001"
TILE, KILLS, SEED = 64, 20, 2411
TILES_A_SIDE = (8, 7, 6, 5, 5, 4, 4, 3, 3, 2)


@dataclass(frozen=True)
class Material:
    """Make slides of noise, their tile tables and an encoder."""

    folder: Path

    @property
    def cohort(self) -> Cohort:
        names = sorted(path.stem for path in (self.folder / "slides").glob("*.tif"))
        rows = tuple(SlideRow(name, f"{name}.tif", name, {}) for name in names)
        return Cohort(rows, self.folder / "slides")

    def fresh(self, name: str) -> Cache:
        """Return a cache that holds only the tile tables."""
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.folder / "cache", root)
        return Cache(root)

    def embed(self, cache: Cache, out: str, threads: int = 2) -> None:
        embed_bucket(
            EmbedSpec(bucket=BUCKET, rows="", max_failed_tiles=0.0),
            self.cohort,
            cache,
            tiles=self.folder / "tiles.json",
            encoder=self.folder / "encoder",
            output=self.folder / out / f"{BUCKET}.json",
            batch_size=8,
            threads=threads,
        )


def make(folder: Path) -> Material:
    generator = np.random.default_rng(SEED)
    cache, entries = Cache(folder / "cache"), {}
    (folder / "slides").mkdir(parents=True)
    for number, side in enumerate(TILES_A_SIDE):
        name = f"slide-{number}"
        image = generator.integers(0, 255, (side * TILE, side * TILE, 3), np.uint8)
        path = folder / "slides" / f"{name}.tif"
        tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", compression="zlib")
        y, x = np.mgrid[:side, :side] * TILE
        coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
        facts = slide_facts(
            fingerprint=fingerprint(path), width_px=side * TILE, height_px=side * TILE
        )
        key = digest(name)
        with cache.publish("tiles", key) as temporary:
            table = TileTable(coords, np.ones(len(coords), np.float32), facts, tile_grid(TILE))
            write_table(temporary, table, key)
        entries[name] = TileEntry(status="ok", key=key, tiles=len(coords))
    write_entries(folder / "tiles.json", entries)
    section = EncoderSection(source="random", model="timm/resnet10t", mpp=0.5, size=TILE)
    materialise(section, 1, folder / "encoder")
    return Material(folder)


def fork(work: Callable[[], None], log: Path) -> int:
    """Start `work` in a child that logs to a file, and return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        logging.basicConfig(level=logging.INFO, filename=log, filemode="a", force=True)
        work()
        code = 0
    except UserError as error:
        logging.getLogger().error("UserError: %s", error)
    except BaseException:
        logging.getLogger().exception("failed")
    finally:
        os._exit(code)
    raise AssertionError


def broken(cache: Cache) -> list[str]:
    """Return the problems of the feature stores."""
    found = [product_problem(p) for p in cache.products() if p.kind == "features"]
    return [problem for problem in found if problem is not None]


def stores(cache: Cache) -> dict[str, tuple[int, int]]:
    """Return each store's inode and time of writing, which change if it is written again."""
    found = {}
    for product in cache.products():
        if product.kind == "features":
            stat = product.path.stat()
            found[product.key] = (stat.st_ino, stat.st_mtime_ns)
    return found


def wait_for_store(cache: Cache, number: int, child: int) -> None:
    """Wait until the cache holds a number of stores, or the child has ended."""
    while len(list((cache.root / "features").glob("*/*.zarr.zip"))) < number:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.0005)


def kills(material: Material) -> dict[str, object]:
    """Kill the job at seeded moments until it has been killed often enough."""
    chance = random.Random(SEED)
    log = material.folder / "kills.log"
    begin = time.monotonic()
    os.waitpid(fork(lambda: material.embed(material.fresh("warm"), "warm"), log), 0)
    whole_run = time.monotonic() - begin
    log.unlink()
    number, at_stake, problems, redone, cohorts = 0, 0, [], 0, 0
    cache = material.fresh("killed")
    while number < KILLS or len(stores(cache)) < len(TILES_A_SIDE):
        before = stores(cache)
        child = fork(partial(material.embed, cache, "killed-out"), log)
        if number < KILLS:
            if number % 2:  # anywhere, loading and looking up included
                time.sleep(chance.uniform(0, whole_run))
            else:  # about when some slide is published
                wait_for_store(cache, len(before) + chance.randrange(3) + 1, child)
                time.sleep(chance.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        number += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
            raise SystemExit(log.read_text())
        after = stores(cache)
        problems += broken(cache)
        redone += sum(after[key] != value for key, value in before.items())
        at_stake += 0 < len(after) < len(TILES_A_SIDE)
        if len(after) == len(TILES_A_SIDE):
            lines = Counter(
                line.split(":")[2]
                for line in log.read_text().splitlines()
                if "patches embedded" in line
            )
            redone += sum(count - 1 for count in lines.values())
            cohorts += 1
            log.unlink()
            if number < KILLS:
                cache = material.fresh("killed")
    return {
        "kills": number, "partial": at_stake, "problems": problems, "redone": redone,
        "cohorts": cohorts, "left": len(cache.leftovers(older_than_seconds=-60)),
    }  # fmt: skip


def twins(material: Material) -> dict[str, object]:
    """Run two jobs at the same time on the same slides and cache."""
    cache = material.fresh("twins")
    log = material.folder / "twins.log"
    children = [fork(partial(material.embed, cache, out), log) for out in ("a", "b")]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    manifests = {(material.folder / out / f"{BUCKET}.json").read_bytes() for out in ("a", "b")}
    return {
        "codes": codes, "manifests": len(manifests), "problems": broken(cache),
        "stores": len(stores(cache)), "left": len(cache.leftovers(older_than_seconds=-60)),
        "embedded": log.read_text().count("patches embedded"),
    }  # fmt: skip


def starved(material: Material, *, spooled: bool) -> dict[str, object]:
    """Run with a limit on file sizes that suits only a small slide, then without it."""
    cache, log = material.fresh("starved"), material.folder / f"starved-{spooled}.log"

    def work() -> None:
        if spooled:
            her2.storage.spool.SPOOL_BYTES = 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        material.embed(cache, "starved-out")

    code = os.waitstatus_to_exitcode(os.waitpid(fork(work, log), 0)[1])
    problems, left = broken(cache), len(cache.leftovers(older_than_seconds=-60))
    again = fork(lambda: material.embed(cache, "starved-out"), material.folder / "again.log")
    return {
        "code": code, "problems": problems, "left": left, "log": log.read_text(),
        "again": os.waitstatus_to_exitcode(os.waitpid(again, 0)[1]), "stores": len(stores(cache)),
        "root": str(cache.root),
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)  # a pool of OpenMP's would not survive a fork
    material = make(Path(sys.argv[1]))
    print(
        json.dumps(
            {
                "slides": len(TILES_A_SIDE),
                "kills": kills(material),
                "twins": twins(material),
                "starved": starved(material, spooled=False),
                "starved spool": starved(material, spooled=True),
            }
        )
    )


if __name__ == "__main__":
    main()
