"""Fixtures of all tests: tiny slides, configs and manifests, made by code."""

import copy
import csv
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import settings
from numpy.typing import NDArray

from her2.storage.cache import DEFAULT
from her2.synthetic import draw_slide

# A deadline measures the machine's other users, not the code.
settings.register_profile("her2", deadline=None)
settings.load_profile("her2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse what `make test-all` would not find: it runs the files that say `mark.alone`."""
    for item in items:
        if item.get_closest_marker("alone") and "mark.alone" not in item.path.read_text():
            raise pytest.UsageError(f"{item.nodeid}: write `pytest.mark.alone` into its file")


_CACHE = Path.cwd() / DEFAULT
_HAD_CACHE = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note what was there before the first fixture, see `own_cache`."""
    item.stash[_HAD_CACHE] = _CACHE.exists()


def pytest_collection_finish() -> None:
    """Take what the imports have made out of garbage collection, which visits it at every pass.

    A full pass takes 0.6 s otherwise, and statsmodels asks for one in each call of a function.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Do not wait for the disk: no test cuts the power, and they write thousands of small files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a cache in the folder where pytest was started."""
    yield
    clean = request.node.stash[_HAD_CACHE] or not _CACHE.exists()
    assert clean, f"{_CACHE}: a test wrote it; give it a cache of its own, and delete this one"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Give torch one thread: with more, small matrices are slower, above all on a busy machine."""
    import torch  # here, since most tests do without it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


WriteSlide = Callable[..., Path]
WriteManifest = Callable[..., Path]


@pytest.fixture(scope="session")
def drawn_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo slide (SVS) of 768 x 768 px at 0.5 um/px, about half of it tissue."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_slide(
        slide_id="demo-001-a",
        patient_id="demo-001",
        her2="2+",
        site="north",
        seed=7,
        slide_path=folder / "drawn.svs",
        mask_path=folder / "drawn.png",
        side_px=768,
    )
    return folder / "drawn.svs"


@pytest.fixture(scope="session")
def write_slide() -> WriteSlide:
    """Writes images as the levels of a tiled TIFF that OpenSlide opens."""

    def write(
        path: Path,
        *levels: NDArray[np.uint8],
        mpp: tuple[float, float] | None = None,
        compression: str = "zlib",
        tile_px: int = 64,
    ) -> Path:
        scale: dict[str, Any] = {}
        if mpp is not None:
            scale = {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
        with tifffile.TiffWriter(path) as tiff:
            for number, level in enumerate(levels):
                tiff.write(
                    level,
                    tile=(tile_px, tile_px),
                    photometric="rgb",
                    compression=compression,
                    metadata=None,
                    subfiletype=int(number > 0),
                    **(scale if number == 0 else {}),
                )
        return path

    return write


@pytest.fixture
def config_values() -> dict[str, Any]:
    """The least that a config has to say; a copy for each test."""
    return copy.deepcopy(
        {
            "cohort": {"slides": "slides.csv"},
            "tasks": {
                "score": {
                    "label": "her2",
                    "classes": {"0": ["0"], "1+": ["1+"], "2+": ["2+"], "3+": ["3+"]},
                }
            },
            "encoders": {
                "tiny": {"source": "random", "model": "timm/resnet18", "mpp": 0.5, "size": 224}
            },
            "heads": {"abmil": {}},
        }
    )


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteManifest:
    """Writes rows (columns: those of the first) as a manifest."""

    def write(rows: Sequence[Mapping[str, object]], name: str = "slides.csv") -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write
