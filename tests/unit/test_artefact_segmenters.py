"""Artefact segmenters: the network, its weights, and the tiles that it rejects."""

import hashlib
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import tifffile
import torch
from torch import nn
from torchvision.transforms.functional import normalize, to_tensor

from her2.cohort.audit import table_cautions, tabulate_cohort
from her2.cohort.cautions import sentences
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection, parse_section
from her2.config.jobs import CohortSpec, SegmenterSpec, TileSpec
from her2.core.errors import TileError, UserError
from her2.core.files import canonical_json, digest
from her2.filters.base import CLASS_PREFIX
from her2.filters.registry import LISTED
from her2.pipeline.job_table import planned_jobs
from her2.report.results import read_results
from her2.report.sections import gallery, licences
from her2.report.sections.cohort import _rejected
from her2.report.sections.paper import methods
from her2.segmenters import ARTEFACT_NAMES, artefact_segmenter, class_filters
from her2.segmenters.base import ArtefactSegmenter
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.entries import TileEntry
from her2.storage.tiles import read_table
from her2.tiling.one_slide import tile
from her2.tiling.segmentation import SegmenterNetwork
from her2.tiling.segmenter import fetch_segmenter
from her2.tiling.segmenter_card import read_segmenter_card
from her2.tiling.stage import tile_bucket, tile_identity
from tests.unit.report_maker import Cohort as Made
from tests.unit.segmenter_makers import offline, put
from tests.unit.test_plan import plan
from tests.unit.tile_makers import slide_facts

BUCKET = "0000-of-0001"
CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHORT = ["fold", "dark_spot", "pen", "edge", "out_of_focus"]
NAMES = [CLASS_PREFIX + name for name in SHORT]
TISSUE, PEN, FOCUS, GLASS = 1, 4, 6, 7
"""Classes of GrandQC's network."""


# ----- the network


def test_grandqc_is_the_unet_of_segmentation_models_pytorch() -> None:
    """The same names and shapes, and with the same weights the same logits."""
    import segmentation_models_pytorch as smp

    own = artefact_segmenter("grandqc").build().eval()
    theirs = smp.create_model(
        "unet", encoder_name="timm-efficientnet-b0", encoder_weights=None, in_channels=3,
        classes=8, activation=None,
    ).eval()  # fmt: skip
    assert sum(one.numel() for one in own.parameters()) == 6_252_484  # the published file has 25 MB
    assert len(own.state_dict()) == 420
    theirs.load_state_dict(own.state_dict(), strict=True)
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = artefact_segmenter("grandqc").logits(own, batch)
        assert torch.equal(found, theirs(batch))
    assert found.shape == (2, 8, 64, 64)


def test_a_window_is_seen_as_the_published_inference_code_sees_it() -> None:
    """Not compressed as JPEG, ImageNet's normalisation, and the most probable class."""
    network = fitted()
    window = picture(128, 128, red=(20, 30, 60, 50))
    with torch.no_grad():
        logits = network(normalize(to_tensor(window), MEAN, STD)[None])
    classes = logits.softmax(dim=1).argmax(dim=1)[0].numpy()
    assert {TISSUE, PEN, GLASS} <= set(np.unique(classes))
    found = running(artefact_segmenter("grandqc"), network).classify([window])[0]
    expected = np.where((classes >= 2) & (classes <= 6), classes - 1, 0)
    assert (found == expected).mean() > 0.999


@pytest.mark.parametrize("name", ARTEFACT_NAMES)
def test_an_artefact_segmenter_agrees_with_itself(name: str) -> None:
    one = artefact_segmenter(name)
    inner = one.window_px - 2 * one.margin_px
    assert inner > 0
    assert inner % one.kept_px == 0
    assert (one.sha256 is None) == (one.unpinned is not None)
    assert len(set(one.finds.values())) == len(one.artefacts)
    colours = [other.colour for other in (*LISTED, *one.artefacts)]
    assert len({*colours, (0, 150, 90), (40, 90, 200), (0, 0, 0)}) == len(colours) + 3
    assert len({other.legend for other in (*LISTED, *one.artefacts)}) == len(colours)
    for artefact in one.artefacts:
        assert re.fullmatch(rf"{CLASS_PREFIX}[a-z_]+", artefact.name)
        assert artefact.name != "artefact_source"
        assert 0 <= artefact.limit <= 1
    assert not [own for own in LISTED if own.name.startswith(CLASS_PREFIX)]


def test_grandqc_rejects_nothing_for_its_doubtful_class_unless_asked() -> None:
    tiling = TilingSection(artefact_segmenter="grandqc")
    limits = {one.short: one.limit_in(tiling) for one in class_filters(tiling)}
    assert limits == {
        "fold": 0.2, "dark_spot": 0.2, "pen": 0.05, "edge": 0.2, "out_of_focus": 1,
    }  # fmt: skip
    asked = TilingSection(artefact_segmenter="grandqc", artefact_limits={"out_of_focus": 0.5})
    found = {one.short: one.limit_in(asked) for one in class_filters(asked)}
    assert found == limits | {"out_of_focus": 0.5}


def test_without_its_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"artefact_segmenter: grandqc is built by .*pip install"):
        artefact_segmenter("grandqc").build()


# ----- slides, and GrandQC's own network with a last layer that tells red ink from tissue


def picture(width: int, height: int, *, red: tuple[int, int, int, int]) -> np.ndarray:
    """Return tissue in pink with glass at its left, and red ink on it at (x, y, width, height).

    The ink has the colour of blood, which no filter on the thumbnail takes for pen.
    """
    generator = np.random.default_rng(3)
    pixels = np.full((height, width, 3), 240, np.uint8)
    pixels[:, 16:] = generator.integers((150, 60, 130), (220, 140, 200), (height, width - 16, 3))
    x, y, w, h = red
    pixels[y : y + h, x : x + w] = generator.integers((170, 20, 30), (210, 50, 60), (h, w, 3))
    return pixels


@cache
def fitted() -> nn.Module:
    """Return GrandQC's network with drawn weights, whose last layer was fitted by least squares."""
    network = artefact_segmenter("grandqc").build().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.ndim > 1:
                nn.init.kaiming_normal_(weights, generator=generator)
            elif name.endswith("bias"):
                weights.zero_()
        image = picture(256, 256, red=(100, 60, 90, 120))
        truth = np.full((256, 256), GLASS)
        truth[:, 16:] = TISSUE
        truth[60:180, 100:190] = PEN
        seen = normalize(to_tensor(image), MEAN, STD)[None]
        features = network.decoder(network.encoder(seen))
        around = nn.functional.unfold(features, 3, padding=1)[0].T[::7].double()
        around = torch.cat([around, torch.ones(len(around), 1)], dim=1)
        wanted = nn.functional.one_hot(torch.from_numpy(truth.ravel()[::7]), 8).double()
        solved = torch.linalg.lstsq(around, wanted, driver="gelsd").solution
        last = network.segmentation_head[0]
        last.weight.copy_(solved[:-1].T.reshape(last.weight.shape))
        last.bias.copy_(solved[-1])
    return network


def running(one: ArtefactSegmenter, network: nn.Module) -> SegmenterNetwork:
    return SegmenterNetwork(one, network, "f" * 64, CPU)


def colours() -> nn.Module:
    """Return a network of real convolutions: red is pen, blue is out of focus, the rest tissue."""
    network = nn.Conv2d(3, 3, 5, padding=2, padding_mode="replicate")
    by_colour = torch.tensor([[0.0, 0, 0], [1, -0.5, -0.5], [-0.5, -0.5, 1]])
    with torch.no_grad():
        network.weight.copy_((by_colour / 25)[:, :, None, None].expand(3, 3, 5, 5))
        network.bias.copy_(torch.tensor([0.0, -0.33, -0.33]))
    return network


def small(**changed: object) -> ArtefactSegmenter:
    """Return GrandQC's declaration with that network, and with windows of 48 px."""
    one = artefact_segmenter("grandqc")
    channels = {"artefact_pen": 1, "artefact_out_of_focus": 2}
    values = {
        "window_px": 48, "margin_px": 8, "kept_px": 2, "mean": (0.0,) * 3, "std": (1.0,) * 3,
        "build": colours, "logits": lambda net, x: net(x),
        "artefacts": tuple(
            replace(a, channel=channels[a.name]) for a in one.artefacts if a.name in channels
        ),
    }  # fmt: skip
    return replace(one, **{**values, **changed})


@pytest.fixture
def small_one(monkeypatch: pytest.MonkeyPatch) -> ArtefactSegmenter:
    one = small()
    put(monkeypatch, one)
    return one


RED, BLUE = (192, 64, 96, 64), (64, 224, 64, 96)
"""x, y, width and height of what is drawn on tissue, on the tiles' grid of 32 px."""


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    """Return a slide with glass, tissue, and tissue in the two colours."""
    pixels = picture(448, 416, red=RED)
    x, y, w, h = BLUE
    blue = np.random.default_rng(4).integers((110, 40, 190), (140, 70, 230), (h, w, 3))
    pixels[y : y + h, x : x + w] = blue
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb")
    return path


PLAIN = {
    "min_tiles": 1, "min_tissue_um": 10, "max_pen": 1.0, "max_fold": 1.0, "max_blur": 1.0,
    "thumbnail_mpp": 4.0,
}  # fmt: skip


def section(**changed: object) -> TilingSection:
    values = PLAIN | {"artefact_segmenter": "grandqc"} | changed
    return parse_section(TilingSection, values, name="tiling")


def tiled(root: Path, tiling: TilingSection, row: SlideRow | None = None, **options: object):
    row = row or SlideRow("a", "a.tif", "a", {}, 1.0)
    spec = TileSpec(bucket=BUCKET, rows="", mpp=1.0, size=32, tiling=tiling)
    output = root / "tiles" / "g" / f"{BUCKET}.json"
    cache = Cache(root / "cache")
    entry = tile_bucket(spec, Cohort((row,), root), cache, output, **options)["a"]
    return entry, cache, output


@pytest.fixture
def folder(small_one: ArtefactSegmenter, tmp_path: Path) -> Path:
    torch.save(colours().state_dict(), tmp_path / "w.pth")
    spec = SegmenterSpec(segmenter="grandqc", artefacts=True, weights=tmp_path / "w.pth")
    fetch_segmenter(spec, tmp_path / "fetched")
    return tmp_path / "fetched"


def share_of(coords: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the share of each tile of 32 px in a box."""
    x, y, w, h = box
    across = np.minimum(coords[:, 0] + 32, x + w) - np.maximum(coords[:, 0], x)
    down = np.minimum(coords[:, 1] + 32, y + h) - np.maximum(coords[:, 1], y)
    return across.clip(0) * down.clip(0) / 32**2


def test_grandqc_finds_red_ink_that_colour_takes_for_tissue(tmp_path: Path) -> None:
    """The declared network, windows and limits, from a file of weights to the kept tiles."""
    red = (160, 96, 128, 96)
    tifffile.imwrite(
        tmp_path / "a.tif", picture(384, 384, red=red), tile=(64, 64), photometric="rgb"
    )
    torch.save(fitted().state_dict(), tmp_path / "GrandQC_MPP1_state_dict.pth")
    own = {"min_tiles": 1, "min_tissue_um": 10, "max_blur": 1.0, "max_fold": 1.0}
    path = tmp_path / "GrandQC_MPP1_state_dict.pth"
    with_it = own | {"artefact_segmenter": "grandqc", "artefact_segmenter_weights": path}
    with Slide(tmp_path / "a.tif", mpp=1.0) as slide:
        plain = tile(slide, 1.0, 32, tiling=own, cache=tmp_path / "cache")
        found = tile(slide, 1.0, 32, tiling=with_it, cache=tmp_path / "cache")
    inside = share_of(plain.coords, red)
    assert (inside == 1).sum() == 12  # no filter on the thumbnail sees the ink
    assert share_of(found.coords, red).max() == 0
    rejected = found.table.facts.rejected
    assert rejected["artefact_pen"] >= 12
    assert len(found) >= (share_of(plain.coords, (144, 80, 160, 128)) == 0).sum()  # far from it
    assert len(found) + sum(rejected.values()) == len(plain) + sum(
        plain.table.facts.rejected.values()
    )
    assert {*NAMES} <= set(found.table.quality)
    assert not {*NAMES} & set(plain.table.quality)


def test_tiles_are_rejected_for_each_artefact_and_counted_everywhere(
    slide_file: Path, folder: Path
) -> None:
    root = slide_file.parent
    limits = {"pen": 0.5, "out_of_focus": 0.5}
    plain, cache, _ = tiled(root, TilingSection.model_validate(PLAIN))
    before = read_table(cache.path("tiles", plain.key), plain.key)
    assert not [name for name in plain.columns() if "artefact" in name]
    entry, cache, output = tiled(root, section(artefact_limits=limits), artefact_segmenter=folder)
    red, blue = share_of(before.coords, RED), share_of(before.coords, BLUE)
    assert (int((red == 1).sum()), int((blue == 1).sum())) == (6, 6)
    assert entry.facts.rejected == plain.facts.rejected | {
        "artefact_pen": 6, "artefact_out_of_focus": 6,
    }  # fmt: skip
    assert entry.tiles == plain.tiles - 12
    table = read_table(cache.path("tiles", entry.key), entry.key)
    np.testing.assert_array_equal(table.coords, before.coords[(red == 0) & (blue == 0)])
    assert set(table.quality) - set(before.quality) == {"artefact_pen", "artefact_out_of_focus"}
    assert table.facts == replace(entry.facts, checksum=table.facts.checksum)

    written = json.loads(output.read_text())["a"]
    seen = 32 * 32 * plain.tiles
    assert written["artefact_pen"] == pytest.approx(96 * 64 / seen, rel=0.15)
    assert written["artefact_out_of_focus"] == pytest.approx(96 * 64 / seen, rel=0.15)
    assert written["rejected_artefact_pen"] == written["rejected_artefact_out_of_focus"] == 6
    weights = read_segmenter_card(folder, small()).weights_sha256
    assert written["artefact_source"] == f"segmenter grandqc, weights {weights[:12]}"
    assert TileEntry.of_columns(written) == entry

    qc = cv2.cvtColor(cv2.imread(str(output.with_name("a.qc.jpg"))), cv2.COLOR_BGR2RGB)
    for one in small().artefacts:
        assert (np.abs(qc.astype(int) - one.colour).max(axis=2) < 60).sum() > 100, one.name


def test_a_limit_of_1_only_measures(slide_file: Path, folder: Path) -> None:
    everything = {"pen": 1, "out_of_focus": 1}
    entry, cache, _ = tiled(
        slide_file.parent, section(artefact_limits=everything), artefact_segmenter=folder
    )
    assert entry.facts.rejected["artefact_pen"] == 0
    table = read_table(cache.path("tiles", entry.key), entry.key)
    found = {name: table.quality[name] for name in ("artefact_pen", "artefact_out_of_focus")}
    for name, box in (("artefact_pen", RED), ("artefact_out_of_focus", BLUE)):
        assert np.abs(found[name] - share_of(table.coords, box)).max() < 0.3
        assert found[name][share_of(table.coords, box) == 1].min() > 0.85


def test_a_tile_with_several_faults_counts_under_the_first(slide_file: Path, folder: Path) -> None:
    """What other filters reject is not looked at again, and an artefact counts in its order."""
    root = slide_file.parent
    blurred, _, _ = tiled(root, section(max_blur=0.0, blur_step_um=0), artefact_segmenter=folder)
    assert blurred.facts.rejected["blur"] > 0
    assert blurred.facts.rejected["artefact_pen"] == 0
    both, _, _ = tiled(root, section(artefact_limits={"pen": 0, "out_of_focus": 0}),
                       artefact_segmenter=folder)  # fmt: skip
    assert both.facts.rejected["artefact_pen"] + both.facts.rejected["artefact_out_of_focus"] >= 12


def test_only_windows_with_tiles_are_read(
    slide_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of glass, nor those where other filters have rejected every tile."""
    reads: list[tuple[int, int]] = []
    read = SegmenterNetwork._window

    def spied(self: SegmenterNetwork, call: object, left: int, top: int, *size: int) -> np.ndarray:
        reads.append((left, top))
        return read(self, call, left, top, *size)

    monkeypatch.setattr(SegmenterNetwork, "_window", spied)
    mask = np.zeros((104, 112), np.uint8)
    mask[24:48, 48:80] = 255  # of 4 px: x 192 to 320, y 96 to 192
    cv2.imwrite(str(slide_file.parent / "m.png"), mask)
    row = SlideRow("a", "a.tif", "a", {}, 1.0, mask="m.png")
    entry, _, _ = tiled(slide_file.parent, section(), row, artefact_segmenter=folder)
    assert entry.tiles + sum(entry.facts.rejected.values()) == 12
    assert set(reads) == {(x, y) for x in range(192, 320, 32) for y in range(96, 192, 32)}
    reads.clear()
    tiled(slide_file.parent, section(max_blur=0.0, blur_step_um=0), row, artefact_segmenter=folder)
    assert reads == []


def test_a_slide_that_is_coarser_than_the_network_s_windows_is_told(
    slide_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = running(small(), colours())
    for mpp, said in ((1.1, 0), (2.0, 1)):
        caplog.clear()
        with Slide(slide_file, mpp=mpp) as slide:
            network.find(slide, slide.scale(), (10, 10))
        assert caplog.text.count("at 1 um/px, and this one has 2") == said


def test_what_is_found_does_not_depend_on_which_windows_are_read(slide_file: Path) -> None:
    network = running(small(), colours())
    with Slide(slide_file, mpp=1.0) as slide:
        whole = network.find(slide, slide.scale(), (104, 112))
        for box in ((10, 20, 60, 70), (0, 0, 1, 1), (103, 111, 104, 112)):
            some = np.zeros((104, 112), bool)
            some[box[0] : box[2], box[1] : box[3]] = True
            part = network.find(slide, slide.scale(), (104, 112), some)
            np.testing.assert_array_equal(part[some], whole[some])
    assert set(np.unique(whole)) == {0, 1, 2}


def test_a_window_that_cannot_be_read_costs_no_slide(
    slide_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedding reads its tiles again, and counts those that fail."""
    read = SegmenterNetwork._window

    def damaged(self: SegmenterNetwork, call: object, left: int, *others: int) -> np.ndarray:
        if left < 200:
            raise TileError("damaged")
        return read(self, call, left, *others)

    monkeypatch.setattr(SegmenterNetwork, "_window", damaged)
    tiling = section(artefact_limits={"pen": 0.5})
    entry, _, _ = tiled(slide_file.parent, tiling, artefact_segmenter=folder)
    assert entry.status == "ok"
    assert entry.facts.rejected["artefact_pen"] == 4  # of 6, in columns from 192, 224 and 256


def test_a_slide_without_tiles_says_why(slide_file: Path, folder: Path) -> None:
    tiling = section(artefact_limits={"out_of_focus": 0.5}, min_tiles=1000)
    entry, _, output = tiled(slide_file.parent, tiling, artefact_segmenter=folder)
    assert entry.status == "excluded"
    pen, focus = (entry.facts.rejected[f"artefact_{name}"] for name in ("pen", "out_of_focus"))
    assert f"(rejected: {pen} for artefact_pen, {focus} for artefact_out_of_focus)" in entry.reason
    first = output.read_bytes()
    tiled(slide_file.parent, tiling, artefact_segmenter=folder)  # from the cache
    assert output.read_bytes() == first


def test_a_failing_device_blames_no_slide(
    slide_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(network: object, windows: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("her2.segmenters.artefact_segmenter", lambda name: small(logits=full))
    with pytest.raises(UserError, match=r"tiling.artefact_segmenter: grandqc: cannot be run on"):
        tiled(slide_file.parent, section(), artefact_segmenter=folder)


# ----- tables of the cohort, and the report


def test_the_table_of_the_cohort_has_the_columns_of_the_network(tmp_path: Path) -> None:
    from tests.unit.test_slide_facts import FAILED, TILED

    own = TILED | {
        "artefact_source": "segmenter grandqc, weights 0123456789ab", "artefact_pen": 0.25,
        "rejected_artefact_pen": 7,
    }  # fmt: skip
    entries = {"a": own, "b": FAILED}
    path = tmp_path / "tiles" / "g" / f"{BUCKET}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(entries))
    rows = tuple(SlideRow(name, f"{name}.svs", f"p{name}", {"her2": "0"}) for name in "ab")
    spec = CohortSpec(rows="", buckets=(BUCKET,), grids=("g",), labels=("her2",))
    table = tabulate_cohort(spec, Cohort(rows, tmp_path), tmp_path / "tiles", tmp_path / "cohort")
    last = ["artefact_source", "artefact_pen", "rejected_artefact_pen"]
    assert table.columns[-3:] == last
    assert table.filter(slide_id="a").select(last).row(0) == tuple(own[name] for name in last)
    assert table.filter(slide_id="b").select(last).row(0) == (None, None, None)
    assert not [text for text in table_cautions(table) if "network" in text]
    share, causes = _rejected(table)
    assert causes.endswith("artefact_pen 5\N{NO-BREAK SPACE}%")  # 7 of 79 + 3 + 41 + 7
    assert share.startswith("37")


def test_slides_that_are_mostly_called_an_artefact_are_told() -> None:
    """Also those that are excluded for it, on which the network may be wrong."""
    from tests.unit.test_slide_facts import FAILED, TILED

    own = [
        TILED | {"artefact_fold": 0.1, "artefact_out_of_focus": 0.4, "rejected_artefact_fold": 9},
        TILED | {"artefact_fold": 0.6, "artefact_out_of_focus": 0.97, "status": "excluded"},
        TILED | {"artefact_fold": 0.0, "artefact_out_of_focus": 0.5},
        FAILED,
    ]
    table = pl.DataFrame([{"slide_id": f"s{i}", "grid": "g"} | row for i, row in enumerate(own)],
                         infer_schema_length=None)  # fmt: skip
    (said,) = (text for text in table_cautions(table) if "network" in text)
    assert said.startswith(
        "2 slides of which the artefact network takes half of the tiles or more for one artefact: "
    )
    assert "s1 (fold 60%, out_of_focus 97%)" in said
    assert "s2 (out_of_focus 50%)" in said
    assert "'tiling.artefact_limits'" in said
    (one,) = sentences(slide_facts(shares={"fold": 0.9, "artefact_fold": 0.6}))
    assert one.endswith("for one artefact: fold 60%.")
    assert not list(sentences(slide_facts(shares={"fold": 0.9, "artefact_fold": 0.4})))


def test_the_report_has_the_network_s_artefacts(tmp_path: Path) -> None:
    """On a slide's card, in the legend, in the methods with the citation, and under licences."""
    made = Made(values={"tiling": {"artefact_segmenter": "grandqc"}})
    spec = made.write(tmp_path)
    path = tmp_path / "cohort" / "slides.parquet"
    table = pl.read_parquet(path).with_columns(
        artefact_source=pl.lit("segmenter grandqc, weights 0123456789ab"),
        artefact_fold=pl.lit(0.2),
        rejected_artefact_fold=pl.lit(9),
    )
    table.write_parquet(path)
    results = read_results(spec, tmp_path)
    found = gallery.gallery(results)
    assert [one.name for one in found.causes] == [*(one.name for one in LISTED), *NAMES]
    card = next(card for card in found.cards if card.status == "ok")
    assert "artefact_fold" in card.words
    assert ("Artefacts also from", "segmenter grandqc, weights 0123456789ab") in card.facts
    assert any("9 for artefact_fold" in words for _, words in card.facts)
    assert any(words == "artefact_fold 20\N{NO-BREAK SPACE}%" for _, words in card.facts)
    words = re.sub(r"\s+", " ", methods.tiles(results)).replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "at most 20 % a fold, 20 % a dark spot or foreign object, 5 % pen and 20 % an edge or air "
        "bubble by the labels of U-Net with an EfficientNet-B0, of GrandQC (Weng et al. 2024), "
        "which was not trained further"
    ) in words
    assert "out of focus" not in words
    (said,) = (text for text in licences.cautions(results) if "artefact" in text)
    assert said.startswith("tiling.artefact_segmenter: grandqc: the licence of its weights (CC-BY")
    assert "no commercial use" in said


# ----- keys and jobs


def key(tiling: TilingSection, weights: str | None, row: SlideRow, root: Path) -> str:
    spec = TileSpec(bucket=BUCKET, rows="", mpp=1.0, size=32, tiling=tiling)
    networks = {}
    if weights is not None:
        networks["artefact_segmenter"] = artefact_segmenter("grandqc").identity(weights)
    identity = tile_identity(spec, Cohort((row,), root), row, None, content="f", networks=networks)
    return digest(identity)


def test_without_a_network_the_section_and_the_key_are_as_before(tmp_path: Path) -> None:
    assert not [name for name in TilingSection().model_dump() if "artefact" in name]
    row = SlideRow("a", "a.tif", "a", {}, 1.0)
    spec = TileSpec(bucket=BUCKET, rows="", mpp=1.0, size=32, tiling=TilingSection())
    identity = tile_identity(spec, Cohort((row,), tmp_path), row, None, content="f")
    assert "artefact" not in canonical_json(identity)
    # As it was before there were artefact segmenters; the defaults of `tiling` are part of it.
    expected = "94f1ac66a187a84d33aa4f7d02bf1c832bd7b767b4ca5ac561e086a4f07d9dd4"
    assert digest(identity) == expected


def test_the_key_has_the_weights_and_the_limits_that_count(tmp_path: Path) -> None:
    row = SlideRow("a", "a.tif", "a", {}, 1.0)
    own = TilingSection(artefact_segmenter="grandqc")
    found = key(own, "a" * 64, row, tmp_path)
    assert found != key(TilingSection(), None, row, tmp_path)
    assert found != key(own, "b" * 64, row, tmp_path)
    said = TilingSection(artefact_segmenter="grandqc", artefact_limits={"fold": 0.2})
    assert found == key(said, "a" * 64, row, tmp_path)
    other = TilingSection(artefact_segmenter="grandqc", artefact_limits={"fold": 0.3})
    assert found != key(other, "a" * 64, row, tmp_path)
    local = TilingSection(artefact_segmenter="grandqc", artefact_segmenter_weights=Path("/w.pth"))
    assert found == key(local, "a" * 64, row, tmp_path)
    assert local.as_tiled == own
    cv2.imwrite(str(tmp_path / "m.png"), np.full((39, 47), 255, np.uint8))
    masked = SlideRow("a", "a.tif", "a", {}, 1.0, mask="m.png")
    assert key(own, "a" * 64, masked, tmp_path) != key(own, "b" * 64, masked, tmp_path)


def test_each_network_is_fetched_by_a_job_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"1")
    both = {"tiling/segmenter": "grandqc", "tiling/artefact_segmenter": "grandqc"}
    plain, one, two = plan(), plan({"tiling/segmenter": "grandqc"}), plan(both)
    local = plan(both | {"tiling/artefact_segmenter_weights": str(path)})
    jobs = {job.name for job in planned_jobs(plain)}
    assert {job.name for job in planned_jobs(two)} - jobs == {
        "fetch_segmenter grandqc", "fetch_segmenter artefacts-grandqc",
    }  # fmt: skip
    grid, bucket = next(iter(plain.config.grids)), plain.buckets[0]
    assert local.tile_spec(grid, bucket) == two.tile_spec(grid, bucket)
    assert two.tile_spec(grid, bucket) != one.tile_spec(grid, bucket)
    assert "artefact" not in one.tile_spec(grid, bucket)
    assert "artefact" not in one.segmenter_spec("grandqc")
    assert two.segmenter_spec("grandqc") == one.segmenter_spec("grandqc")
    before = local.segmenter_spec("artefacts-grandqc")
    assert '"artefacts":true' in before
    path.write_bytes(b"other weights")
    assert local.segmenter_spec("artefacts-grandqc") != before


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"artefact_segmenter": "hest"}, "grandqc"),
        ({"artefact_limits": {"pen": 0.1}}, "`artefact_limits` needs `artefact_segmenter`"),
        (
            {"artefact_segmenter": "grandqc", "artefact_limits": {"blur": 0.1, "pen": 0.1}},
            "grandqc tells fold, dark_spot, pen, edge, out_of_focus apart, and no 'blur'",
        ),
        ({"artefact_segmenter": "grandqc", "artefact_limits": {"pen": 1.5}}, r"artefact_limits"),
        ({"artefact_segmenter_weights": "/w.pth"}, "needs `artefact_segmenter`"),
        (
            {"artefact_segmenter": "grandqc", "artefact_segmenter_sha256": "0" * 64},
            "needs `artefact_segmenter_weights`",
        ),
    ],
)
def test_a_wrong_section_is_named(values: dict[str, object], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        parse_section(TilingSection, values, name="tiling")


# ----- weights that are not to be had, or are others


def refused(tmp_path: Path, **spec: object) -> str:
    asked = SegmenterSpec(segmenter="grandqc", artefacts=True, **spec)
    with pytest.raises(UserError) as caught:
        fetch_segmenter(asked, tmp_path / "out")
    assert not (tmp_path / "out" / "card.json").exists()
    return str(caught.value)


def test_no_weights_and_no_network_says_what_to_set(
    small_one: ArtefactSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    said = refused(tmp_path)
    assert said.startswith("tiling.artefact_segmenter: grandqc: MahmoodLab/hest-tissue-seg/GrandQC")
    assert "`artefact_segmenter_weights: PATH` to a downloaded GrandQC_MPP1_state_dict.pth" in said


def test_other_bits_are_refused_with_both_digests(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(colours().state_dict(), path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    said = refused(tmp_path, weights=path, sha256="0" * 64)
    assert f"has the SHA-256 {found}, but the config's `artefact_segmenter_sha256` is 000" in said


def test_other_bits_than_pinned_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = small(sha256="12ab", unpinned=None)
    put(monkeypatch, pinned)
    torch.save(colours().state_dict(), tmp_path / "w.pth")
    said = refused(tmp_path, weights=tmp_path / "w.pth")
    assert "is not the published GrandQC_MPP1_state_dict.pth of grandqc" in said
    assert "12ab... is expected" in said
    assert "`artefact_segmenter_sha256: " in said


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1/0",))


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (lambda p: torch.save(nn.Linear(3, 3).state_dict(), p), r"does not fit the architecture"),
        # As the authors publish it: the pickled network, which runs code when it is read.
        (lambda p: torch.save(colours(), p), r"more than tensors|code"),
        (lambda p: torch.save({"weight": _Evil()}, p), r"more than tensors|code"),
        (lambda p: p.write_bytes(pickle.dumps(_Evil())), r"is not a weights file|code|tensors"),
        (lambda p: p.write_bytes(b"\x80\x02"), r"is not a weights file"),
        (lambda p: None, r"tiling\.artefact_segmenter_weights: .* does not exist"),
    ],
)
def test_a_file_that_is_not_its_weights_is_refused_by_name(
    small_one: ArtefactSegmenter, tmp_path: Path, spoil: Callable[[Path], object], pattern: str
) -> None:
    path = tmp_path / "w.pth"
    spoil(path)
    said = refused(tmp_path, weights=path)
    assert str(path) in said
    assert re.search(pattern, said), said


def test_the_tissue_network_s_weights_are_not_taken_for_those_of_artefacts(tmp_path: Path) -> None:
    from her2.segmenters import segmenter

    torch.save(segmenter("grandqc").build().state_dict(), tmp_path / "Tissue_Detection_MPP10.pth")
    said = refused(tmp_path, weights=tmp_path / "Tissue_Detection_MPP10.pth")
    assert "does not fit the architecture" in said
    assert "decoder.blocks.0.conv1.0.weight: missing" in said


def test_a_folder_of_another_segmenter_is_refused(folder: Path) -> None:
    values = json.loads((folder / "card.json").read_text())
    values["architecture"] = "segmentation-models-pytorch/UnetPlusPlus"
    (folder / "card.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"and tiling.artefact_segmenter is grandqc"):
        read_segmenter_card(folder, small())
