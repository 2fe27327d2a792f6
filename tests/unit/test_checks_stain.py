"""um/px that contradict each other, slides of two scales, IHC among H&E: told, never stopping."""

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

from her2.cli.main import app
from her2.cohort.audit import table_cautions, tabulate_cohort
from her2.cohort.cautions import BROWN_LEAST, Seen, cautions, scale_groups, sentences
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection
from her2.config.jobs import CohortSpec, TileSpec
from her2.storage.cache import Cache
from her2.storage.entries import TileEntry, read_entries
from her2.synthetic import (
    demo_manifest,
    draw_region,
    east_manifest,
    slide_generator,
    slide_params,
)
from her2.synthetic.ihc import draw_ihc
from her2.tiling.brown import THUMBNAIL_MPP, brown_of_slide, brown_share
from her2.tiling.stage import tile_bucket
from her2.tiling.tissue import optical_density, tissue_mask
from tests.unit.tile_makers import slide_facts

SIDE_PX, MPP = 768, 0.5
BUCKET = "0000-of-0001"
Image = NDArray[np.uint8]


def share(image: Image) -> float:
    side = round(image.shape[0] * MPP / THUMBNAIL_MPP)
    thumbnail = np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    density = optical_density(thumbnail, mpp=THUMBNAIL_MPP)
    return brown_share(density, tissue_mask(density, mpp=THUMBNAIL_MPP, min_tissue_um=50))


def drawn_he(row: dict[str, str]) -> Image:
    params = slide_params(**{k: row[k] for k in ("slide_id", "patient_id", "her2", "site")}, seed=1)
    generator = slide_generator(1, row["patient_id"], row["slide_id"])
    return np.asarray(draw_region(generator, params, SIDE_PX, MPP)[0], np.uint8)


@pytest.fixture(scope="module")
def he() -> Image:
    return drawn_he(demo_manifest()[0])


def covered(
    image: Image, part: float, density: tuple[float, float, float], *, mixed: bool
) -> Image:
    """Put a colour over a part of the image, or in place of it, in patches of 30 um."""
    noise = np.random.default_rng(0).standard_normal(image.shape[:2], np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), 15)
    where = field > np.quantile(field, 1 - part)
    changed = image.astype(np.float32)
    light = np.exp(-np.array(density, np.float32))
    changed[where] = changed[where] * light if mixed else 242 * light
    return np.clip(changed, 0, 255).astype(np.uint8)


# Stain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("score", ["2+", "3+"])
def test_ihc_of_a_score_that_matters_is_brown(score, seed):
    """Measured: 0.57 and more in squares of 1,500 px; score 0 has no brown, 1+ has some."""
    assert share(draw_ihc(np.random.default_rng(seed), score, SIDE_PX, MPP)[0]) > 0.4


@pytest.mark.parametrize("row", [*demo_manifest()[:4], *east_manifest()[:4]], ids=str)
def test_no_drawn_h_and_e_of_any_laboratory_is_brown(row):
    assert share(drawn_he(row)) == 0


@pytest.mark.parametrize("mixed", [True, False], ids=["over", "instead"])
@pytest.mark.parametrize(
    "colour",
    [(0.5, 0.8, 1.0), (0.15, 0.35, 0.9), (0.05, 0.35, 0.9), (0.1, 0.8, 0.75), (0.03, 0.06, 0.15)],
    ids=["melanin or haemosiderin", "bile", "saffron", "erythrocytes", "yellow fat"],
)
@pytest.mark.parametrize("part", [0.05, 0.2])
def test_brown_and_yellow_in_h_and_e_are_not_ihc(he, colour, part, mixed):
    assert share(covered(he, part, colour, mixed=mixed)) == 0


def test_glass_alone_is_not_brown():
    assert share(np.full((SIDE_PX, SIDE_PX, 3), 242, np.uint8)) == 0


# um/px and scales


def seen(name: str, mpp: float | None, file: float | None = None, brown: float = 0.0) -> Seen:
    return Seen(
        slide_id=name,
        mpp=None if mpp is None else (mpp, mpp),
        file_mpp=None if file is None else (file, file),
        brown=brown,
    )


@pytest.mark.parametrize(
    ("mpp", "file", "told"),
    [(0.5, 0.25, True), (0.5, 0.4700, True), (0.5, 0.48, False), (0.25, 0.2525, False)],
)
def test_um_per_px_that_differ_by_more_than_a_twentieth_are_told(mpp, file, told):
    found = list(cautions([seen("a", mpp, file), seen("b", mpp)]))
    assert bool(found) == told
    assert not told or f"a ({mpp} um/px in the manifest, {file:g} in its file)" in found[0]


def test_an_axis_alone_counts():
    found = [Seen(slide_id="a", mpp=(0.5, 0.5), file_mpp=(0.5, 0.25))]
    assert "0.5 x 0.25 in its file" in next(cautions(found))


@pytest.mark.parametrize(
    ("scales", "groups"),
    [
        ((0.25, 0.5), 2),
        ((0.2425, 0.2528, 0.2631), 1),
        ((0.25, 0.5, 1.0), 3),
        ((0.46, 0.5), 1),
        ((), 0),
    ],
)
def test_slides_of_two_scales_are_told_and_scanners_of_one_are_not(scales, groups):
    slides = [seen(f"s{n}", mpp) for n, mpp in enumerate(scales)] + [seen("none", None)]
    assert len(scale_groups(slides)) == groups
    found = list(cautions(slides))
    assert len(found) == (groups > 1)
    if groups == 2:
        assert "2 scales: 1 at 0.25 um/px (s0); 1 at 0.5 um/px (s1)" in found[0]


def test_a_predicted_slide_is_told_of_as_well():
    facts = slide_facts(brown=0.6, file_mpp=(0.25, 0.25))
    assert [text.split(":")[0] for text in sentences(facts)] == [
        "Its um/px is doubtful",
        "60% of its tissue has the brown of immunohistochemistry, and no eosin is found",
    ]
    assert list(sentences(slide_facts(brown=0.0, file_mpp=(0.51, 0.51)))) == []
    assert list(sentences(slide_facts())) == []


# Through the stages


@pytest.fixture
def cohort(tmp_path: Path, write_slide: Any, he: Image) -> Cohort:
    """An H&E slide, the same with another um/px in the manifest, and an IHC slide."""
    ihc = draw_ihc(np.random.default_rng(0), "3+", SIDE_PX, MPP)[0]
    for name, image in {"he": he, "twin": he[:, ::-1], "ihc": ihc}.items():
        levels = [np.ascontiguousarray(image), np.ascontiguousarray(image[::2, ::2])]
        write_slide(tmp_path / f"{name}.tif", *levels, mpp=(MPP, MPP))
    given = {"he": 0.51, "twin": 0.25, "ihc": None}
    return Cohort(
        tuple(SlideRow(n, f"{n}.tif", f"p{n}", {}, mpp=m) for n, m in sorted(given.items())),
        tmp_path,
    )


def test_tiling_the_table_and_the_report_tell_what_is_doubtful(tmp_path, cohort, caplog):
    tiling = TilingSection(min_tissue_um=50)
    spec = TileSpec(bucket=BUCKET, rows="", mpp=0.5, size=96, tiling=tiling)
    output = tmp_path / "tiles" / "g" / f"{BUCKET}.json"
    texts = []
    for _ in range(2):  # the second time, tables are from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            entries = tile_bucket(spec, cohort, Cache(tmp_path / "cache"), output)
        texts.append(output.read_bytes())
        assert "0.25 um/px in the manifest, 0.5 in its file" in caplog.text
        assert "brown of immunohistochemistry and without eosin: ihc" in caplog.text
        assert "0.51" not in caplog.text
    assert texts[0] == texts[1]
    assert read_entries(output, TileEntry) == entries
    facts = {name: entry.facts for name, entry in entries.items()}
    assert (facts["he"].brown, facts["he"].file_mpp) == (0.0, (MPP, MPP))
    assert facts["ihc"].brown > BROWN_LEAST
    assert facts["ihc"].file_mpp is None
    wanted = CohortSpec(rows="", buckets=(BUCKET,), grids=("g",), labels=())
    table = tabulate_cohort(wanted, cohort, tmp_path / "tiles", tmp_path / "cohort")
    assert table["file_mpp_x"].to_list() == [MPP, None, MPP]
    told = table_cautions(table)
    assert len(told) == 3
    assert "2 scales: 1 at 0.25 um/px (twin); 2 at 0.5-0.51 um/px (ihc, he)" in told[1]
    framed = cv2.imread(str(output.parent / "ihc.qc.jpg"))
    plain = cv2.imread(str(output.parent / "he.qc.jpg"))
    blue, green, red = framed[-3, 100].astype(int)
    assert red > max(blue, green) + 40
    assert plain[-3, 100].min() > 100


def test_a_table_of_slides_tiled_before_has_no_such_cautions(tmp_path):
    table = pl.DataFrame(
        {"slide_id": ["a"], "status": ["ok"], "mpp_x": [0.5], "mpp_y": [0.5], "grid": ["g"]}
    )
    assert table_cautions(table) == ()


def test_the_check_looks_at_the_stain_when_it_opens_slides(
    cohort, tmp_path, config_values, write_csv, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"slide_id": r.slide_id, "path": r.path, "patient_id": r.patient_id, "her2": "",
         "mpp": "" if r.mpp is None else r.mpp}
        for r in cohort.rows
    ]  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_values))
    done = CliRunner().invoke(app, ["cohort", "check", str(write_csv(rows)), "--open"])
    assert done.exit_code == 0, done.exception
    assert "brown of immunohistochemistry and without eosin: ihc (" in done.output
    assert "twin (0.25 um/px in the manifest, 0.5 in its file)" in done.output
    assert "The slides come at 2 scales" in done.output


def test_slides_without_a_pyramid_are_not_read_for_their_stain(tmp_path, write_slide, he):
    write_slide(tmp_path / "flat.tif", he, mpp=(MPP, MPP))
    assert brown_of_slide(tmp_path / "flat.tif", None) is None
