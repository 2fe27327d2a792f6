"""Selection of tiles: artefacts, annotated regions, external masks, and a maximum number."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection, parse_config
from her2.config.jobs import TileSpec
from her2.core.errors import UserError
from her2.filters.registry import FILTERS, LISTED
from her2.importing.checks import Part, check_files, refuse
from her2.pipeline.plan import Plan
from her2.slides.slide import Slide
from her2.storage.cache import Cache
from her2.storage.entries import TileEntry
from her2.storage.tiles import TileTable, read_table, write_table
from her2.tiling import stage
from her2.tiling.grid import Sources, tile_slide
from her2.tiling.stage import tile_bucket

SIDE_PX, MPP, TILE_PX = 1200, 0.5, 96
PINK = (205, 135, 180)


def tissue_with(*, seed: int = 1) -> np.ndarray:
    """Draw tissue with detail down to the px (nuclei and grain) on all of a slide but its rim."""
    generator = np.random.default_rng(seed)
    image = np.full((SIDE_PX, SIDE_PX, 3), 243, np.uint8)
    section = np.full((SIDE_PX - 96, SIDE_PX - 96, 3), PINK, np.uint8)
    for x, y in generator.integers(0, SIDE_PX - 96, (9000, 2)):
        cv2.circle(section, (int(x), int(y)), 3, (95, 60, 140), -1)
    noise = generator.normal(0, 7, section.shape)
    image[48:-48, 48:-48] = np.clip(section + noise, 0, 255)
    return image


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return tissue_with()


def cut(
    path: Path, sources: Sources | None = None, **options: object
) -> tuple[TileTable, np.ndarray]:
    with Slide(path) as slide:
        return tile_slide(
            slide, slide.scale(), mpp=MPP, size=TILE_PX, tiling=TilingSection(**options),
            fingerprint="f" * 64, sources=sources or Sources(),
        )  # fmt: skip


def places(table: TileTable) -> set[tuple[int, int]]:
    return {(x, y) for x, y in table.coords.tolist()}


def inside(mask: np.ndarray, place: tuple[int, int]) -> float:
    x, y = place
    return float(mask[y : y + TILE_PX, x : x + TILE_PX].mean())


@pytest.fixture(scope="module")
def marked(tmp_path_factory, write_slide, plain) -> tuple[Path, dict[str, np.ndarray]]:
    """Draw a pen stroke, a fold, a black border and a blurred corner, all separate."""
    image, truth = plain.copy(), {}
    for name in ("pen", "fold", "border", "blur"):
        truth[name] = np.zeros((SIDE_PX, SIDE_PX), bool)
    truth["blur"][700:, 700:] = True
    image[truth["blur"]] = cv2.GaussianBlur(image, (0, 0), 4)[truth["blur"]]
    truth["fold"][120:620, 820:900] = True
    doubled = image[truth["fold"]] / 243.0
    image[truth["fold"]] = np.clip(243 * doubled**2.2, 0, 255)
    stroke = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    cv2.line(stroke, (150, 420), (600, 250), 255, 90)
    truth["pen"] = stroke > 0
    image[truth["pen"]] = (38, 62, 168)
    truth["border"][:, :110] = True
    image[truth["border"]] = (4, 3, 5)
    path = tmp_path_factory.mktemp("marked") / "marked.tif"
    return write_slide(path, image, mpp=(MPP, MPP)), truth


ALL_OFF = {one.limit_key: 1 for one in LISTED}


@pytest.mark.parametrize("name", ["pen", "fold", "border"])
def test_an_artefact_s_column_is_its_share_of_the_tile(marked, name):
    """The tolerance is a thumbnail px (6 um) along the outline plus the pen's margin of 16 um."""
    path, truth = marked
    table, _ = cut(path, **ALL_OFF, min_tissue=0.2)
    found = table.quality[name]
    assert found.min() == 0
    assert found.max() > 0.3 or name == "border"
    grown = cv2.dilate(truth[name].astype(np.uint8), np.ones((91, 91), np.uint8)) > 0
    core = cv2.erode(truth[name].astype(np.uint8), np.ones((41, 41), np.uint8)) > 0
    for place, value in zip(map(tuple, table.coords.tolist()), found, strict=True):
        assert inside(core, place) - 0.02 <= value <= inside(grown, place) + 0.02


@pytest.mark.parametrize("name", ["pen", "fold", "blur"])
def test_each_artefact_rejects_its_tiles_and_no_others(marked, name):
    path, truth = marked
    everything, _ = cut(path, **ALL_OFF)
    options = {key: value for key, value in ALL_OFF.items() if key != f"max_{name}"}
    table, _ = cut(path, **options, blur_step_um=100)
    lost = places(everything) - places(table)
    full = {place for place in places(everything) if inside(truth[name], place) > 0.9}
    touched = cv2.dilate(truth[name].astype(np.uint8), np.ones((71, 71), np.uint8)) > 0
    assert places(table) < places(everything)
    assert full <= lost
    assert all(inside(touched, place) > 0 for place in lost)
    assert {one: n for one, n in table.facts.rejected.items() if n} == {name: len(lost)}
    assert list(table.facts.rejected) == [one.name for one in FILTERS]


def test_a_tile_on_the_black_border_is_rejected(marked):
    path, _ = marked
    options = ALL_OFF | {"min_tissue": 0.3}
    everything, _ = cut(path, **options)
    table, _ = cut(path, **(options | {"max_border": 0.05}))
    assert min(x for x, _ in places(everything)) == 96
    assert min(x for x, _ in places(table)) == 192
    assert table.facts.rejected["border"] == len(everything) - len(table)
    # 110 of 1200 px, and what the thumbnail's px round.
    assert table.facts.shares["border"] == pytest.approx(110 / 1200, abs=0.006)


def test_by_default_all_of_them_are_looked_for(marked):
    path, truth = marked
    table, _ = cut(path)
    facts = table.facts
    assert all(facts.rejected[name] > 0 for name in ("pen", "fold", "blur"))
    assert 0.02 < facts.shares["pen"] < 0.2
    assert 0.01 < facts.shares["fold"] < 0.1
    for name in ("pen", "fold", "blur"):
        assert max(inside(truth[name], place) for place in places(table)) < 0.8


def test_a_slide_without_artefacts_loses_no_tile(tmp_path, write_slide, plain):
    path = write_slide(tmp_path / "a.tif", plain, mpp=(MPP, MPP))
    table, _ = cut(path)
    assert sum(table.facts.rejected.values()) == 0
    assert places(table) == places(cut(path, **ALL_OFF)[0])
    assert set(table.facts.shares.values()) == {0}
    assert np.nanmax(table.quality["blur"]) < 0.6


def test_blur_costs_few_reads_on_a_sharp_slide_and_none_when_it_is_off(
    tmp_path, write_slide, plain
):
    path = write_slide(tmp_path / "a.tif", plain, mpp=(MPP, MPP))
    sampled, _ = cut(path)
    assert len(sampled) > 100
    # 600 um a side, squares of 500 um.
    assert sampled.reads["blur"] == sampled.quality["blur_read"].sum() == 4
    every, _ = cut(path, blur_step_um=0)
    assert every.reads["blur"] == len(every)
    off, _ = cut(path, max_blur=1)
    assert off.reads["blur"] == 0
    assert np.isnan(off.quality["blur"]).all()


def test_a_slide_out_of_focus_is_excluded_and_says_so(tmp_path, write_slide, plain):
    write_slide(tmp_path / "a.tif", cv2.GaussianBlur(plain, (0, 0), 4), mpp=(MPP, MPP))
    entry = run(tmp_path)
    assert (entry.status, entry.tiles) == ("excluded", 0)
    number = entry.facts.rejected["blur"]
    assert number > 100
    assert entry.reason == (
        f"0 of {number} tiles with tissue kept (rejected: {number} for blur), "
        "fewer than tiling.min_tiles 4"
    )


def test_the_quality_of_tiles_is_read_as_it_was_written(tmp_path, marked):
    table, _ = cut(marked[0])
    write_table(tmp_path / "t.parquet", table, "ab" * 32)
    again = read_table(tmp_path / "t.parquet")
    assert (again.facts, again.grid) == (table.facts, table.grid)
    assert again.reads == table.reads
    first = ["border", "pen", "fold", "blur", "annotated", "blur_read"]
    assert [name for name in again.quality if name in first] == first
    for name, values in table.quality.items():
        np.testing.assert_array_equal(again.quality[name], values)
        assert len(values) == len(table)


# A cap


def test_a_cap_draws_tiles_by_seed_and_content(tmp_path, write_slide, plain):
    path = write_slide(tmp_path / "a.tif", plain, mpp=(MPP, MPP))
    everything, _ = cut(path)

    def drawn(fingerprint: str, seed: int) -> TileTable:
        with Slide(path) as slide:
            return tile_slide(
                slide, slide.scale(), mpp=MPP, size=TILE_PX, tiling=TilingSection(max_tiles=30),
                fingerprint=fingerprint, sources=Sources(seed=seed),
            )[0]  # fmt: skip

    first = drawn("a" * 64, 1)
    assert len(first) == 30
    assert first.facts.not_drawn == len(everything) - 30
    rows = [place for place in everything.coords.tolist() if tuple(place) in places(first)]
    assert first.coords.tolist() == rows  # in the table's order
    assert drawn("a" * 64, 1).coords_digest == first.coords_digest
    assert drawn("a" * 64, 2).coords_digest != first.coords_digest
    assert drawn("b" * 64, 1).coords_digest != first.coords_digest
    assert len(cut(path, max_tiles=10_000)[0]) == len(everything)


def test_only_a_cap_makes_the_seed_part_of_tiling(config_values):
    cohort = Cohort((SlideRow("s", "s.svs", "p", {"her2": "0"}),), Path())

    def spec(**values: object) -> str:
        config = parse_config(config_values | values)
        return Plan(config, cohort).tile_spec("224px-0.5mpp", "0000-of-0001")

    assert spec(seed=1) == spec(seed=2)
    cap = {"max_tiles": 5}
    assert spec(seed=1, tiling=cap) != spec(seed=2, tiling=cap)


# Regions and masks


SPEC = TileSpec(
    bucket="0000-of-0001", rows="", mpp=MPP, size=TILE_PX, tiling=TilingSection(), seed=None
)


@pytest.fixture
def folder(tmp_path, write_slide, plain) -> Path:
    write_slide(tmp_path / "a.tif", plain, mpp=(MPP, MPP))
    return tmp_path


def square(left: int, top: int, right: int, bottom: int, name: str = "Tumor") -> dict[str, object]:
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


def annotate(folder: Path, *features: dict[str, object], name: str = "roi.geojson") -> str:
    (folder / name).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return name


def run(folder: Path, spec: TileSpec = SPEC, masks: Path | None = None, **row: object) -> TileEntry:
    cohort = Cohort((SlideRow("a", "a.tif", "p", {}, **row),), folder)
    output = folder / "results" / "tiles" / f"{spec.bucket}.json"
    return tile_bucket(spec, cohort, Cache(folder / "cache"), output, tissue_masks=masks)["a"]


def tiles_of(folder: Path, entry: TileEntry) -> TileTable:
    return read_table(Cache(folder / "cache").path("tiles", entry.key))


def test_tiles_lie_in_the_annotated_regions(folder):
    name = annotate(folder, square(192, 192, 576, 480), square(700, 700, 1000, 1000, "Stroma"))
    both = run(folder, annotation=name)
    table = tiles_of(folder, both)
    assert (both.status, both.facts.regions) == ("ok", 2)
    regions = np.zeros((SIDE_PX, SIDE_PX), bool)
    regions[192:480, 192:576] = regions[700:1000, 700:1000] = True
    grid = {(x, y) for x in range(0, 1105, 96) for y in range(0, 1105, 96)}
    assert places(table) == {place for place in grid if inside(regions, place) >= 0.5}
    expected = [inside(regions, place) for place in map(tuple, table.coords.tolist())]
    np.testing.assert_allclose(table.quality["annotated"], expected, atol=0.07)
    # 288 x 384 and 300 x 300 px of 0.5 um.
    assert both.facts.tissue_mm2 == pytest.approx((288 * 384 + 300**2) * 0.25e-6, rel=0.03)


def test_of_the_regions_some_classes_can_be_chosen(folder):
    name = annotate(folder, square(192, 192, 576, 480), square(700, 700, 1000, 1000, "Stroma"))
    chosen = SPEC.model_copy(update={"tiling": TilingSection(annotation_classes=("Tumor",))})
    assert places(tiles_of(folder, run(folder, chosen, annotation=name))) == {
        (x, y) for x in range(192, 576, 96) for y in range(192, 480, 96)
    }
    absent = SPEC.model_copy(update={"tiling": TilingSection(annotation_classes=("DCIS",))})
    entry = run(folder, absent, annotation=name)
    assert entry.status == "excluded"
    assert "no region of class DCIS" in entry.reason


def test_regions_of_a_cropped_slide_count_from_its_scanned_part_when_told_so(
    folder, monkeypatch, caplog
):
    """As in MIRAX, the scanned area begins at 288, 192."""
    plain = Slide.__init__

    def cropped(self: Slide, path: Path) -> None:
        plain(self, path)
        self.bounds_corner_px = (288, 192)

    monkeypatch.setattr(Slide, "__init__", cropped)
    name = annotate(folder, square(0, 0, 288, 192))
    bounds = SPEC.model_copy(update={"tiling": TilingSection(annotation_origin="bounds")})
    assert places(tiles_of(folder, run(folder, bounds, annotation=name))) == {
        (x, y) for x in (288, 384, 480) for y in (192, 288)
    }
    assert "begins at 288, 192" not in caplog.text
    assert min(places(tiles_of(folder, run(folder, annotation=name)))) < (288, 192)
    assert "a: its scanned area begins at 288, 192" in caplog.text


@pytest.mark.parametrize(
    ("write", "status", "reason"),
    [
        (lambda path: path.write_text("{"), "failed", "its annotation roi.geojson is not JSON"),
        (lambda path: None, "failed", "its annotation roi.geojson does not exist"),
        (lambda path: path.write_text("[]"), "excluded", "has no region with an area"),
        (
            lambda path: annotate(path.parent, square(5000, 5000, 6000, 6000)),
            "excluded",
            "no tissue found in its annotated regions",
        ),
    ],
)
def test_an_annotation_that_is_no_use_is_the_slide_s_reason(folder, write, status, reason):
    write(folder / "roi.geojson")
    entry = run(folder, annotation="roi.geojson")
    assert entry.status == status
    assert reason in entry.reason
    assert str(folder) not in entry.reason


def test_an_annotation_counts_by_its_content_alone(folder, monkeypatch):
    first = run(folder, annotation=annotate(folder, square(192, 192, 576, 480)))
    assert first.key != run(folder).key
    changed = run(folder, annotation=annotate(folder, square(192, 192, 576, 481)))
    assert changed.key != first.key
    annotate(folder, square(192, 192, 576, 480), name="moved.geojson")
    monkeypatch.setattr(stage, "tile_slide", None)  # a second cut would fail
    assert run(folder, annotation="moved.geojson") == first


def test_a_mask_from_elsewhere_is_the_tissue(folder):
    """The mask has a third of the slide's size, and tissue detection is not used."""
    mask = np.zeros((400, 400), np.uint8)
    mask[64:160, 32:288] = 1
    Image.fromarray(mask).save(folder / "m.png")
    entry = run(folder, mask="m.png")
    assert (entry.status, entry.facts.tissue_source) == ("ok", "mask file")
    assert places(tiles_of(folder, entry)) == {
        (x, y) for x in range(96, 864, 96) for y in range(192, 480, 96)
    }
    assert run(folder).facts.tissue_source == "detected"


def test_masks_may_lie_in_a_folder_and_a_row_s_own_wins(folder):
    (folder / "masks").mkdir()
    left, right = np.zeros((2, 300, 300), np.uint8)
    left[:, :150], right[:, 150:] = 255, 255
    Image.fromarray(left).save(folder / "masks" / "a.tif")
    Image.fromarray(right).save(folder / "own.png")
    by_folder = tiles_of(folder, run(folder, masks=folder / "masks"))
    own = tiles_of(folder, run(folder, masks=folder / "masks", mask="own.png"))
    assert max(x for x, _ in places(by_folder)) < 600 <= min(x for x, _ in places(own)) + 48


def test_a_mask_that_is_no_use_is_the_slide_s_reason(folder):
    entry = run(folder, masks=folder / "masks")
    assert entry.status == "failed"
    assert "its tissue mask a.png does not exist" in entry.reason
    Image.new("L", (100, 300), 1).save(folder / "m.png")
    assert "has another aspect ratio than the slide" in run(folder, mask="m.png").reason


def test_a_changed_mask_is_another_tiling(folder):
    keys = set()
    for level in (1, 255):
        Image.new("L", (100, 100), level).save(folder / "m.png")
        keys.add(run(folder, mask="m.png").key)
    assert len(keys) == 2


# Before the run


def test_a_check_of_the_cohort_reads_annotations_and_masks(folder):
    annotate(folder, square(0, 0, 10, 10))
    Image.new("L", (100, 100), 1).save(folder / "m.png")

    def cohort(**row: object) -> Cohort:
        return Cohort((SlideRow("a", "a.tif", "p", {}, **row),), folder)

    refuse(check_files([Part(cohort(annotation="roi.geojson", mask="m.png"))]))
    with pytest.raises(UserError, match="slide 'a'.*no region of class X"):
        refuse(check_files([Part(cohort(annotation="roi.geojson"))], classes=["X"]))
    (folder / "roi.geojson").write_text("{")
    with pytest.raises(UserError, match=r"slide 'a'.*roi\.geojson is not JSON"):
        refuse(check_files([Part(cohort(annotation="roi.geojson"))]))
    Image.new("L", (100, 300), 1).save(folder / "m.png")
    with pytest.raises(UserError, match=r"m\.png .* has another aspect ratio"):
        refuse(check_files([Part(cohort(mask="m.png"))]))


def test_what_tiling_reads_is_what_its_rule_waits_for(folder, config_values):
    config_values["cohort"]["tissue_masks"] = "masks"
    rows = (
        SlideRow("a", "a.svs", "p", {}, annotation="roi.xml", mask="own.png"),
        SlideRow("b", "b.svs", "q", {}),
    )
    plan = Plan(parse_config(config_values), Cohort(rows, Path("root")))
    assert plan.tile_files("0000-of-0001") == [
        "root/a.svs", "root/roi.xml", "root/own.png", "root/b.svs", "masks/b.png",
    ]  # fmt: skip
    other = Plan(plan.config, Cohort((SlideRow("a", "a.svs", "p", {}), rows[1]), Path("root")))
    grid, bucket = "224px-0.5mpp", "0000-of-0001"
    assert plan.tile_spec(grid, bucket) != other.tile_spec(grid, bucket)
    name = next(iter(plan.config.encoders))
    assert plan.embed_spec(name, bucket) == other.embed_spec(name, bucket)
