"""An encoder library is one file; the tests add one to a copy of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import her2.libraries
from her2.libraries import NAMES, Library, library

LIBRARY = '''
"""Colours: a library whose published encoder is the mean colour of a patch."""

from her2.libraries import Library

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.75)


class Colours(Library):
    domain = "ihc"

    def names(self):
        return ["mean-colour", "mean-colour-of-unknown-authors"]

    def build(self, architecture, *, feature, arguments, pretrained):
        import torch
        from torch import nn

        layer = nn.Linear(3, 3)
        if pretrained:
            layer.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)

    def arguments(self, architecture, *, feature, size_px):
        return {}

    def normalisation(self, architecture):
        return (MEAN, STD) if architecture == "mean-colour" else None

    def licence(self, architecture):
        return "public domain"


LIBRARY = Colours()
'''

EMBEDS = """
import json, sys
from pathlib import Path
import numpy as np
import tifffile
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import EncoderSection, TilingSection
from her2.config.jobs import EmbedSpec, EncoderSpec, TileSpec
from her2.embedding.stage import embed_bucket
from her2.encoders.stage import materialise_encoder
from her2.storage.cache import Cache
from her2.storage.features import open_store, read_coords
from her2.tiling.stage import tile_bucket

root = Path(sys.argv[1])
bucket = "0000-of-0001"
tables, features = (root / name / f"{bucket}.json" for name in ("tiles", "features"))
pixels = np.full((512, 512, 3), 240, np.uint8)
pink = np.random.default_rng(1).integers((150, 60, 130), (220, 140, 200), (320, 320, 3), np.uint8)
pixels[64:384, 64:384] = pink
tifffile.imwrite(root / "a.tif", pixels, tile=(64, 64), photometric="rgb")
cohort = Cohort((SlideRow("a", "a.tif", "a", {}, 1.0),), root)
section = EncoderSection(
    source="colours", model="mean-colour", mpp=1.0, size=64, precision="float32", storage="float32"
)
card = materialise_encoder(EncoderSpec(encoder=section, seed=1), root / "encoder")
tiling = TilingSection(min_tiles=1)
spec = TileSpec(bucket=bucket, rows="", mpp=1.0, size=64, tiling=tiling)
cache = Cache(root / "cache")
tile_bucket(spec, cohort, cache, tables)
entry = embed_bucket(
    EmbedSpec(bucket=bucket, rows="", max_failed_tiles=0.0), cohort, cache,
    tiles=tables, encoder=root / "encoder", output=features,
    batch_size=4, threads=1,
)["a"]
path = cache.path("features", entry.key)
tiles = [pixels[y : y + 64, x : x + 64].tolist() for x, y in read_coords(path).tolist()]
print(json.dumps({
    "domain": section.domain, "licence": card.licence, "tiles": tiles,
    "features": open_store(path).features.tolist(),
}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the package that has one more library."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(her2.__file__).parent, folder / "her2", ignore=ignored)
    (folder / "her2" / "libraries" / "colours.py").write_text(LIBRARY, encoding="utf-8")
    return folder


def python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_library_of_one_file_materialises_and_embeds(package: Path, tmp_path: Path) -> None:
    done = python(package, "-c", EMBEDS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["domain"], found["licence"]) == ("ihc", "public domain")
    colours = np.array(found["tiles"]).mean(axis=(1, 2)) / 255
    assert len(colours) >= 16
    expected = (colours - [0.5, 0.25, 0.125]) / [0.25, 0.5, 0.75]
    np.testing.assert_allclose(found["features"], expected, atol=1e-5)


def encoder(package: Path, out: Path, **values: object) -> subprocess.CompletedProcess[str]:
    """Run `her2 encoder` in the copy."""
    section = {"source": "random", "mpp": 1.0, "size": 64} | values
    spec = json.dumps({"encoder": section, "seed": 1})
    return python(package, "-m", "her2", "encoder", "--spec", spec, "--out", str(out))


def test_what_a_library_does_not_know_is_a_named_error(package: Path, tmp_path: Path) -> None:
    wrong = encoder(package, tmp_path, model="colours/mean-color")
    assert "colours has no model 'mean-color'. Similar names: mean-colour." in wrong.stderr
    model = "colours/mean-colour-of-unknown-authors"
    silent = encoder(package, tmp_path, model=model)
    assert "colours does not say how patches are normalised" in silent.stderr
    assert "set `mean` and `std`" in silent.stderr
    assert list(tmp_path.iterdir()) == []
    stated = encoder(package, tmp_path, model=model, mean=[0.5] * 3, std=[0.5] * 3)
    assert stated.returncode == 0, stated.stderr
    assert json.loads((tmp_path / "card.json").read_text())["mean"] == [0.5] * 3


def test_the_libraries_are_the_files_of_the_package() -> None:
    files = {path.stem for path in Path(her2.libraries.__file__).parent.glob("*.py")}
    assert {"timm", "torchvision"} <= set(NAMES) == files - {"__init__"}
    assert all(isinstance(library(name), Library) for name in NAMES)
