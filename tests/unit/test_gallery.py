"""The quality-control gallery: every slide of the cohort, the worst first."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from her2.report.figures.base import jpeg
from her2.report.format import percent
from her2.report.results import Results, read_results
from her2.report.sections import gallery as module
from her2.report.sections.cohort import grid_rows
from her2.report.sections.gallery import gallery
from her2.report.sections.notices import notices
from tests.unit.report_maker import HOSTILE, Cohort, build_page
from tests.unit.test_report import Page

GRID = "224px-0.5mpp"


def run_with(tmp_path: Path, columns: dict[str, dict[int, object]], cohort: Cohort) -> Results:
    """A finished run whose cohort table has these values in some rows."""
    spec = cohort.write(tmp_path / "results")
    path = tmp_path / "results" / "cohort" / "slides.parquet"
    records = pl.read_parquet(path).to_dicts()
    for name, values in columns.items():
        for row, value in values.items():
            records[row][name] = value
    pl.DataFrame(records, infer_schema_length=None).write_parquet(path)
    return read_results(spec, tmp_path / "results")


def test_slides_that_are_not_used_come_first_then_those_that_lost_most(tmp_path):
    """Slides have 20 tiles each: 5 rejected are 20 %, 20 are half."""
    cohort = Cohort(tile_reasons={4: ("excluded", "no tissue found")})
    found = gallery(
        run_with(tmp_path, {"rejected_pen": {2: 5, 7: 12}, "rejected_blur": {7: 8, 9: 1}}, cohort)
    )
    assert [card.slide_id for card in found.cards[:5]] == [
        "slide-04", "slide-07", "slide-02", "slide-09", "slide-00",
    ]  # fmt: skip
    assert len(found.cards) == 18
    assert (found.unusable, found.marked) == (1, 2)
    worst = found.cards[1]
    assert worst.lost == 0.5
    assert worst.words == f"pen {percent(0.3)}, blur {percent(0.2)}"
    assert ("Tiles rejected", "12 for pen, 8 for blur") in worst.facts
    assert found.cards[2].words == f"pen {percent(0.2)}"


def test_a_slide_that_could_not_be_opened_is_there_without_a_picture(tmp_path):
    cohort = Cohort(tile_reasons={3: ("failed", "cut off, in /data/secret/x.svs")})
    run = run_with(tmp_path, {"width_px": {3: None}, "tissue_mm2": {3: None}}, cohort)
    (tmp_path / "results" / "tiles" / GRID / "slide-03.qc.jpg").unlink()
    card = gallery(run).cards[0]
    assert (card.slide_id, card.status, card.figure) == ("slide-03", "failed", None)
    assert card.reason == "cut off, in .../x.svs"


def test_the_share_of_each_cause_is_in_the_table_of_grids(tmp_path):
    """18 slides with 20 tiles are 360; 40 more were rejected."""
    run = run_with(tmp_path, {"rejected_pen": {2: 10}, "rejected_fold": {2: 10, 3: 20}}, Cohort())
    (row,) = grid_rows(run)
    assert row.rejected == percent(0.1)
    assert row.causes == f"pen {percent(0.025)}, fold {percent(0.075)}"


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0 %"), (0.001, "< 1 %"), (0.123, "12 %"), (1, "100 %")]
)
def test_shares_are_whole_percents_that_no_line_breaks(share, words):
    assert percent(share) == words.replace(" ", "\N{NO-BREAK SPACE}")


def test_a_run_without_artefacts_says_none(tmp_path):
    (row,) = grid_rows(run_with(tmp_path, {}, Cohort()))
    assert (row.rejected, row.causes) == ("none", "")


def test_partly_annotated_cohorts_are_warned_of(tmp_path):
    run_with(tmp_path, {"annotation": {0: "a.json", 5: "b.json"}}, Cohort())
    build_page(Cohort().spec(), tmp_path / "results", tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "2 of 18 slides were tiled in their annotated regions only" in page.text


def test_brown_slides_come_first_and_are_warned_of_like_doubtful_scales(tmp_path):
    columns = {
        "brown": {3: 0.62, 4: 0.01},
        "rejected_pen": {2: 10},
        "file_mpp_x": {7: 0.5},
        "file_mpp_y": {7: 0.5},
        "mpp_source": {7: "manifest"},
        "mpp_x": {9: 0.5},
        "mpp_y": {9: 0.5},
    }
    run = run_with(tmp_path, columns, Cohort())
    first = gallery(run).cards[0]
    assert first.slide_id == "slide-03"
    assert ("Stain", f"{percent(0.62)} brown, without eosin: IHC?") in first.facts
    assert ("um/px of the file", "0.5") in next(
        card.facts for card in gallery(run).cards if card.slide_id == "slide-07"
    )
    told = [one.text for one in notices(run, [], []) if one.anchor == "quality"]
    assert len(told) == 3
    assert "slide-07 (0.25 um/px in the manifest, 0.5 in its file)" in told[0]
    assert "2 scales: 17 at 0.25 um/px; 1 at 0.5 um/px (slide-09)" in told[1]
    assert "slide-03 (62% of its tissue)" in told[2]


def test_five_hundred_slides_stay_below_ten_megabytes(tmp_path):
    """Pictures of noise, which no JPEG makes small; the others stay files."""
    cohort = Cohort()
    run = run_with(tmp_path, {}, cohort)
    noise = np.random.default_rng(0).integers(60, 250, (128, 128, 3), np.uint8)
    path = tmp_path / "results" / "tiles" / GRID / "slide-00.qc.jpg"
    Image.fromarray(noise).resize((1024, 1024), Image.Resampling.BICUBIC).save(path)
    side, quality = next((s, q) for limit, s, q in module._SIZES if limit >= module.SHOWN)
    one = jpeg(path, side_px=(side, side), quality=quality, alt="")
    assert max(one.width, one.height) == side
    assert len(one.uri) * module.SHOWN < 15e6
    assert gallery(run).left_out == 0


def test_of_more_slides_the_worst_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHOWN", 3)
    found = gallery(run_with(tmp_path, {"rejected_fold": {7: 10}}, Cohort()))
    assert [card.slide_id for card in found.cards] == ["slide-07", "slide-00", "slide-01"]
    assert found.left_out == 15


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_in_a_browser_the_script_runs_under_the_page_s_own_policy(tmp_path):
    """It alone shows the tools and counts the slides; hostile text stays text."""
    cohort = Cohort(tile_reasons={4: ("excluded", f"no tissue {HOSTILE}")})
    build_page(cohort.write(tmp_path / "results"), tmp_path / "results", tmp_path / "r.html")
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-sync", "--virtual-time-budget=2000",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
            f"file://{tmp_path / 'r.html'}",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    page = done.stdout
    assert '<div class="gallery-tools">' in page
    assert '<span role="status">18 of 18 slides</span>' in page
    cards = re.findall(r'<div class="card[^>]*data-id="([^"]*)"[^>]*>', page)
    assert cards[0] == "slide-04"
    assert len(re.findall(r'<div class="card[^>]*role="button" aria-haspopup="dialog"', page)) == 18
    assert len(re.findall(r'class="card[^>]*tabindex="0"', page)) == 1
    assert page.count("<script>") == 1
