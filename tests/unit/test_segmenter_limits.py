"""Segmenters on unusual slides, by networks that fail, and in several threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection
from her2.config.jobs import SegmenterSpec, TileSpec
from her2.core.errors import UserError
from her2.segmenters.base import Segmenter
from her2.slides.slide import Scale
from her2.storage.cache import Cache
from her2.storage.entries import TileEntry
from her2.storage.tiles import read_table
from her2.tiling.segmentation import SegmenterNetwork
from her2.tiling.segmenter import fetch_segmenter
from her2.tiling.stage import tile_bucket
from tests.unit import test_artefact_segmenters as of_artefacts
from tests.unit.segmenter_makers import put
from tests.unit.test_segmenters import (
    BUCKET,
    convolutions,
    on_its_own,
    picture,
    save_weights,
    small,
)

pytestmark = pytest.mark.usefixtures("one_thread")

GLASS, TISSUE = 240, (190, 90, 160)


@pytest.fixture(autouse=True)
def small_hest(monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    """In place of hest a network of two layers with windows of 48 px."""
    one = small()
    put(monkeypatch, one)
    return one


def weights(folder: Path, network: nn.Module | None = None) -> Path:
    path = save_weights(folder / "weights.ckpt", network=network)
    fetch_segmenter(SegmenterSpec(segmenter="hest", weights=path), folder / "segmenter")
    return folder / "segmenter"


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", **options)
    return path


def glass(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), GLASS, np.uint8)


def entries(
    root: Path, *rows: SlideRow, segmenter: Path, threads: int = 1, size: int = 32
) -> dict[str, TileEntry]:
    tiling = TilingSection(segmenter="hest", min_tiles=1, min_tissue_um=10)
    spec = TileSpec(bucket=BUCKET, rows="", mpp=1.0, size=size, tiling=tiling)
    output = root / "tiles" / f"{BUCKET}.json"
    cache = Cache(root / "cache")
    return tile_bucket(
        spec, Cohort(rows, root), cache, output, segmenter=segmenter, threads=threads
    )


def row(name: str, mpp: float | None = 1.0, **more: str) -> SlideRow:
    return SlideRow(name, f"{name}.tif", name, {}, mpp, **more)


# ----------------------------------------------------------------------------- slides


@pytest.mark.parametrize("value", [255, GLASS, 0])
def test_a_slide_of_glass_alone_is_left_out_with_a_reason(tmp_path: Path, value: int) -> None:
    """Of one colour, so that no window is given to the network, or of noise."""
    save(tmp_path / "a.tif", np.full((300, 300, 3), value, np.uint8))
    noise = np.random.default_rng(1).integers(235, 255, (300, 300, 3)).astype(np.uint8)
    save(tmp_path / "b.tif", noise)
    found = entries(tmp_path, row("a"), row("b"), segmenter=weights(tmp_path))
    assert {entry.status for entry in found.values()} == {"excluded"}
    assert all("tissue" in (entry.reason or "") for entry in found.values())


@pytest.mark.parametrize("side", [(33, 33), (20, 300), (300, 20), (1, 1), (47, 49)])
def test_a_slide_that_is_smaller_than_a_window_is_seen_whole(
    tmp_path: Path, side: tuple[int, int]
) -> None:
    pixels = glass(*side)
    pixels[:, side[0] // 2 :] = TISSUE
    network, slide = on_its_own(save(tmp_path / "a.tif", pixels), kept_px=1, margin_px=8)
    with slide:
        found = network.find(slide, slide.scale(), (side[1], side[0])).astype(bool)
    expected = pixels[..., 1] < 200
    inner = np.abs(np.arange(side[0]) - side[0] // 2) > 3  # the network looks at 5 x 5 px
    inner &= np.arange(side[0]) < side[0] - 3 if side[0] > 6 else True
    rows = slice(3, -3) if side[1] > 6 else slice(None)
    assert (found[rows][:, inner] == expected[rows][:, inner]).all()


@pytest.mark.parametrize("excess", range(-2, 3))
def test_no_column_is_lost_where_a_last_window_begins(tmp_path: Path, excess: int) -> None:
    """Windows of 48 px with margins of 8 begin every 32 px."""
    width = 3 * 32 + excess
    pixels = np.full((70, width, 3), TISSUE, np.uint8)
    network, slide = on_its_own(save(tmp_path / "a.tif", pixels), kept_px=1)
    with slide:
        found = network.find(slide, slide.scale(), (70, width)).astype(bool)
    assert found[4:-4, 4:-4].all()


def test_px_that_are_not_square_are_put_where_they_are(tmp_path: Path) -> None:
    pixels = picture(470, 390)
    flat = save(tmp_path / "flat.tif", pixels)
    tall = save(tmp_path / "tall.tif", np.repeat(pixels, 2, axis=0))
    network, slide = on_its_own(flat)
    with slide:
        expected = network.find(slide, slide.scale(), (195, 235))
    network, slide = on_its_own(tall)
    with slide:
        scale = Scale(1.0, 0.5, slide.scale().source)
        found = network.find(slide, scale, (195, 235))
    assert (found == expected).mean() > 0.98


def test_a_slide_without_a_scale_is_left_out_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.tif", picture(300, 300))
    found = entries(tmp_path, row("a", None), row("b"), segmenter=weights(tmp_path))
    assert (found["a"].status, found["b"].status) == ("excluded", "ok")
    assert "um/px" in (found["a"].reason or "")


def test_a_damaged_slide_fails_alone(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", picture(600, 600), compression="jpeg")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    save(tmp_path / "b.tif", picture(300, 300))
    found = entries(tmp_path, row("a"), row("b"), segmenter=weights(tmp_path))
    assert (found["a"].status, found["b"].status) == ("failed", "ok")
    assert found["a"].reason


def test_a_masked_slide_and_one_that_the_network_sees_are_in_one_job(tmp_path: Path) -> None:
    pixels = picture(300, 300)
    for name in ("a", "b"):
        save(tmp_path / f"{name}.tif", pixels)
    cv2.imwrite(str(tmp_path / "m.png"), np.full((30, 30), 255, np.uint8))
    found = entries(tmp_path, row("a", mask="m.png"), row("b"), segmenter=weights(tmp_path))
    sources = [entry.facts.tissue_source for entry in found.values() if entry.facts]
    assert sources[0] == "mask file"
    assert sources[1].startswith("segmenter hest, weights ")
    assert found["a"].key != found["b"].key


def test_slides_are_tiled_alike_in_any_number_of_threads(tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(3)]
    for number, name in enumerate(names):
        save(tmp_path / f"{name}.tif", np.roll(picture(300, 260), 40 * number, axis=1))
    folder = weights(tmp_path)
    one = entries(tmp_path / "one", *(_elsewhere(tmp_path, n) for n in names), segmenter=folder)
    more = entries(
        tmp_path / "more", *(_elsewhere(tmp_path, n) for n in names), segmenter=folder, threads=4
    )
    for name in names:
        tables = [
            read_table(Cache(tmp_path / at / "cache").path("tiles", found[name].key or ""))
            for at, found in (("one", one), ("more", more))
        ]
        np.testing.assert_array_equal(tables[0].coords, tables[1].coords)
        assert one[name].key == more[name].key


def _elsewhere(folder: Path, name: str) -> SlideRow:
    return SlideRow(name, str(folder / f"{name}.tif"), name, {}, 1.0)


# ----------------------------------------------------------------------------- networks


def broken(how: str) -> nn.Module:
    """Return a network whose finite weights give values that are not."""
    network = convolutions()
    if how == "overflow":
        with torch.no_grad():
            network[1].weight.fill_(3e38)
            network[0].weight.mul_(1e6)
        return network
    norm = nn.BatchNorm2d(3)
    norm.running_var.fill_(-1.0)
    return nn.Sequential(norm, *network)


@pytest.mark.parametrize("tissue_class", [0, 1])
@pytest.mark.parametrize("how", ["overflow", "variance"])
def test_a_network_that_finds_no_numbers_is_an_error_and_not_tissue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, tissue_class: int
) -> None:
    """The largest of values that are not numbers is the first class, which may be tissue."""
    put(monkeypatch, small(build=lambda: broken(how), tissue_class=tissue_class))
    save(tmp_path / "a.tif", picture(300, 300))
    folder = weights(tmp_path, broken(how))
    with pytest.raises(UserError, match="finds values that are not finite on cpu") as caught:
        entries(tmp_path, row("a"), segmenter=folder)
    assert "`segmenter_weights` under `tiling`" in str(caught.value)


@pytest.mark.parametrize("how", ["overflow", "variance"])
def test_a_network_that_finds_no_numbers_is_an_error_and_no_artefact(how: str) -> None:
    """Nor is the slide taken for one without artefacts."""
    one = of_artefacts.small()
    network = SegmenterNetwork(one, broken(how).eval(), "f" * 64, torch.device("cpu"))
    with pytest.raises(UserError, match="finds values that are not finite on cpu") as caught:
        network.classify([picture(one.window_px, one.window_px)])
    assert "`artefact_segmenter_weights` under `tiling`" in str(caught.value)


def test_weights_that_are_not_finite_are_refused_before_a_slide_is_read(tmp_path: Path) -> None:
    network = convolutions()
    with torch.no_grad():
        network[0].bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"(?s)not finite.*0\.bias"):
        weights(tmp_path, network)


def test_several_threads_may_ask_one_network(tmp_path: Path) -> None:
    pixels = picture(470, 390)
    network, slide = on_its_own(save(tmp_path / "a.tif", pixels))
    with slide:
        expected = network.find(slide, slide.scale(), (195, 235))
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(lambda _: network.find(slide, slide.scale(), (195, 235)), range(4))
            )
    assert all((one == expected).all() for one in found)
