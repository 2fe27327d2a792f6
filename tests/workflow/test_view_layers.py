"""`her2 view`: layers and tiles of a real run say what the run stored, where it is on the slide."""

import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import openslide
import polars as pl
import pytest
from PIL import Image

from her2.explanation.tiles import ranks
from her2.slides.slide import open_slide
from her2.storage.features import read_coords
from her2.storage.tiles import read_table
from tests.browser import Tab
from tests.viewing import Viewing, viewing
from tests.workflow.conftest import copy
from tests.workflow.project import Project

SLIDE = "/slides/development/demo-004-a"
EAST = "/slides/external:east/east-1"
READY = "document.documentElement.dataset.ready"


@pytest.fixture(scope="module")
def view(validated: Project) -> Iterator[Viewing]:
    with viewing(validated.folder) as found:
        yield found


def answer(view: Viewing, path: str) -> Any:
    """What the server says once it has computed it."""
    for _ in range(200):
        found = view.get(path)
        if found.status != 202:
            assert found.status == 200, found.text
            return found.json()
        assert found.json()["computing"]
        time.sleep(0.1)
    raise AssertionError(f"{path}: is still being computed")


def stored(project: Project, slide_id: str = "demo-004-a") -> np.ndarray:
    """The attention of a slide by the model of the fold that tested it, float32 (n,)."""
    results = project.folder / "results"
    folds = pl.read_parquet(results / "folds" / "score.parquet")
    fold = folds.filter((pl.col("slide_id") == slide_id) & (pl.col("role") == "test"))[
        "fold"
    ].item()
    path = results / f"models/score/tiny/abmil/r0f{fold}/attention.parquet"
    table = pl.read_parquet(path).filter(pl.col("slide_id") == slide_id)
    return table["attention"][0].to_numpy()


def coords(project: Project, slide_id: str = "demo-004-a") -> np.ndarray:
    return read_coords(project.folder / "results" / "features" / "tiny" / f"{slide_id}.zarr.zip")


def picture(view: Viewing, path: str) -> np.ndarray:
    found = view.get(path)
    assert (found.status, found.headers["content-type"]) == (200, "image/png"), found.text
    return np.asarray(Image.open(io.BytesIO(found.body)).convert("RGBA"))


def test_every_tiles_numbers_are_the_stored_ones(view: Viewing, validated: Project) -> None:
    values, corners = stored(validated), coords(validated)
    table = read_table(validated.folder / "results/tiles/64px-1mpp/demo-004-a.parquet")
    for index, value in enumerate(values):
        tile = answer(view, f"/api{SLIDE}/tile?index={index}")
        assert np.float32(tile["attention"]) == value
        assert tile["attention"] == float(value)  # nothing is rounded on the way
        assert np.float32(tile["times_uniform"]) == value * np.float32(len(values))
        assert tile["rank"] == 1 + int((values > value).sum())
        assert tile["percentile"] == pytest.approx(100 * float(ranks(values)[index]))
        assert tile["box_px"] == [*corners[index].tolist(), *(corners[index] + 128).tolist()]
        row = int(np.flatnonzero((table.coords == corners[index]).all(axis=1))[0])
        assert tile["tissue"] == float(table.tissue[row])
        assert {one["name"]: one["value"] for one in tile["quality"]} == {
            one["name"]: float(table.quality[one["name"]][row]) for one in tile["quality"]
        }
        x, y = corners[index] + 64
        assert answer(view, f"/api{SLIDE}/tile?x={x}&y={y}")["index"] == index


def test_the_picture_of_attention_has_each_tiles_colour_at_its_place(
    view: Viewing, validated: Project
) -> None:
    values, corners = stored(validated), coords(validated)
    made = answer(view, f"/api{SLIDE}/layers/attention")
    px = picture(view, made["url"])
    left, top, right, bottom = made["bounds_px"]
    shown = np.zeros(px.shape[:2], bool)
    for (x, y), rank in zip(corners.tolist(), ranks(values), strict=True):
        column, row = round((x - left) / 128), round((y - top) / 128)
        colour = mpl.colormaps["viridis"](round(float(rank) * 254) / 254, bytes=True)
        assert px[row, column, 3] == 255
        assert np.abs(px[row, column, :3].astype(int) - colour[:3]).max() <= 3
        shown[row, column] = True
    assert (px[~shown, 3] == 0).all()
    assert (right - left, bottom - top) == (128 * px.shape[1], 128 * px.shape[0])


def test_external_slides_have_the_attention_of_the_frozen_model(
    view: Viewing, validated: Project
) -> None:
    table = pl.read_parquet(
        validated.folder / "results/validation/east/predictions/score/tiny/abmil/attention.parquet"
    )
    values = table.filter(pl.col("slide_id") == "east-1")["attention"][0].to_numpy()
    assert len(values) > 3
    for index, value in enumerate(values):
        assert answer(view, f"/api{EAST}/tile?index={index}")["attention"] == float(value)
    assert "no contributions" in answer(view, f"/api{EAST}/layers/contribution")["absent"]
    assert "2 fold models" in answer(view, f"/api{EAST}/layers")["by"]


def test_a_tile_is_shown_as_it_is_and_as_the_encoder_saw_it(
    view: Viewing, validated: Project
) -> None:
    tile = answer(view, f"/api{SLIDE}/tile?index=3")
    with openslide.OpenSlide(validated.folder / "slides" / "demo-004-a.svs") as slide:
        corner = coords(validated)[3].tolist()
        level0 = slide.read_region(corner, 0, (128, 128)).convert("RGB")
    assert (picture(view, tile["picture"])[:, :, :3] == np.asarray(level0)).all()
    small = picture(view, tile["seen"])[:, :, :3]
    assert small.shape == (64, 64, 3)
    with open_slide(validated.folder / "slides" / "demo-004-a.svs") as slide:
        x, y = corner
        assert (small == slide.region(x, y, 128.0, 128.0, (64, 64), scanned=True)).all()


def test_the_tiles_at_both_ends_are_those_with_the_most_and_the_least(
    view: Viewing, validated: Project
) -> None:
    values = stored(validated)
    found = answer(view, f"/api{SLIDE}/tiles?count=4")
    assert [one["value"] for one in found["most"]] == [float(v) for v in np.sort(values)[::-1][:4]]
    assert [one["value"] for one in found["least"]] == [float(v) for v in np.sort(values)[:4]]


def test_neighbours_are_beside_each_other_and_end_somewhere(
    view: Viewing, validated: Project
) -> None:
    corners = coords(validated)
    for index in range(len(corners)):
        for side, step in {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.items():
            found = answer(view, f"/api{SLIDE}/tile?index={index}&to={side}")["index"]
            away = corners - corners[index]
            beside = np.flatnonzero((away == np.array(step) * 128).all(axis=1))
            if len(beside):
                assert found == beside[0]
            elif found is not None:
                assert (corners[found] - corners[index]) @ np.array(step) > 0


@pytest.mark.parametrize(
    "path",
    [
        f"/api{SLIDE}/layers/none", f"/api{SLIDE}/layers/..%2Fkept", f"{SLIDE}/layers/none.png",
        f"/api{SLIDE}/layers?model=score/tiny/none", f"/api{SLIDE}/layers?scale=none",
        f"/api{SLIDE}/layers/attention?class=none&run=r9f9", f"/api{SLIDE}/tile?index=18",
        f"/api{SLIDE}/tile?index=-1", f"/api{SLIDE}/tile?index=nan", f"/api{SLIDE}/tile?x=1",
        f"/api{SLIDE}/tile?x=nan&y=1", f"/api{SLIDE}/tile?x=inf&y=1",
        f"/api{SLIDE}/tile?index=1&to=there", f"/api{SLIDE}/tiles?count=0",
        f"/api{SLIDE}/tiles?count=1000000", f"/api{SLIDE}/tiles?by=none",
        f"/api{SLIDE}/tiles?by=contribution", f"{SLIDE}/tiles/none/0.png",
        f"{SLIDE}/tiles/tiny/99999999999999999999.png", f"{SLIDE}/tiles/tiny/18.png",
        f"{SLIDE}/layers/tissue.png", f"/api{SLIDE}/layers/attention.geojson",
    ],
)  # fmt: skip
def test_what_does_not_exist_is_not_there(view: Viewing, path: str) -> None:
    if "tissue" in path:
        answer(view, f"/api{SLIDE}/layers/tissue")
    found = view.get(path)
    assert found.status == 404, found.text
    assert "Traceback" not in found.text


def test_a_run_that_did_not_test_the_slide_is_absent(view: Viewing) -> None:
    run = answer(view, f"/api{SLIDE}/layers")["run"]
    assert answer(view, f"/api{SLIDE}/layers/attention?run={run}")["url"]
    other = {"r0f0": "r0f1", "r0f1": "r0f0"}[run]
    assert view.get(f"/api{SLIDE}/layers/attention?run={other}").status == 404


def test_tiling_again_finds_the_runs_tiles_and_why_others_are_none(
    view: Viewing, validated: Project
) -> None:
    tissue = answer(view, f"/api{SLIDE}/layers/tissue")
    assert tissue["note"] == ""  # the kept tiles are equal
    shapes = view.get(tissue["url"]).json()["features"]
    area = sum(_area(one["geometry"]["coordinates"]) for one in shapes)
    table = pl.read_parquet(validated.folder / "results/cohort/slides.parquet")
    mm2 = table.filter(pl.col("slide_id") == "demo-004-a")["tissue_mm2"].item()
    assert area * 0.0005**2 == pytest.approx(mm2, rel=0.05)
    words = answer(view, f"/api{SLIDE}/tile?x=2&y=2")
    assert words["index"] is None
    assert "Not tissue" in words["words"]
    assert "beyond the slide" in answer(view, f"/api{SLIDE}/tile?x=-5&y=2")["words"]


def _area(rings: list[list[list[float]]]) -> float:
    """Area inside the first ring and outside the others, by the shoelace formula."""
    areas = []
    for ring in rings:
        x, y = np.array(ring).T
        areas.append(abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())) / 2)
    return areas[0] - sum(areas[1:])


def test_annotations_truth_and_rejected_tiles_are_those_of_the_run_and_its_files(
    validated: Project, tmp_path: Path
) -> None:
    """A slide with regions, a ground truth and a strict filter; and another slide in its place."""
    project = copy(validated, tmp_path / "project")
    folder = project.folder
    square = [[[64, 64], [320, 64], [320, 320], [64, 320], [64, 64]]]
    feature = {
        "type": "Feature", "geometry": {"type": "Polygon", "coordinates": square},
        "properties": {"classification": {"name": "<b>tumour</b>"}},
    }  # fmt: skip
    (folder / "a.geojson").write_text(json.dumps({"type": "FeatureCollection",
                                                  "features": [feature]}))  # fmt: skip
    lines = (folder / "slides.csv").read_text().splitlines()
    rows = [f"{line},{'a.geojson' if 'demo-004-a' in line else ''}" for line in lines[1:]]
    (folder / "slides.csv").write_text("\n".join([f"{lines[0]},annotation", *rows]) + "\n")
    stamps = folder / "results/stamps/build_report.json"
    report = json.loads(stamps.read_text())
    report["spec"]["config"]["cohort"]["masks"] = "masks"
    stamps.write_text(json.dumps(report))
    for path in (folder / "results/stamps/tile_bucket/64px-1mpp").iterdir():
        tiled = json.loads(path.read_text())
        tiled["spec"]["tiling"]["max_blur"] = 0.2
        path.write_text(json.dumps(tiled))
    with viewing(folder) as view:
        drawn = answer(view, f"/api{SLIDE}/layers/annotations")
        assert drawn["legend"]["rows"][0]["label"] == "<b>tumour</b>"
        found = view.get(drawn["url"]).json()["features"][0]
        assert found["geometry"]["coordinates"] == square
        truth = answer(view, f"/api{SLIDE}/layers/truth")
        mask = np.asarray(Image.open(folder / "masks" / "demo-004-a.png")) > 127
        shapes = view.get(truth["url"]).json()["features"] if mask.any() else []
        scale = (768 / mask.shape[1]) * (768 / mask.shape[0])
        area = sum(_area(one["geometry"]["coordinates"]) for one in shapes)
        assert area == pytest.approx(float(mask.sum()) * scale, rel=0.05)
        rejected = answer(view, f"/api{SLIDE}/layers/rejected")
        assert "differs from the run" in rejected["note"]
        counts = {row["label"]: row["count"] for row in rejected["legend"]["rows"]}
        (label,) = counts
        assert "max_blur 0.2" in label
        px = picture(view, rejected["url"])
        assert np.count_nonzero(px[:, :, 3]) == counts[label]
        tab = view.open(f"{SLIDE}?layers=annotations:1,rejected:0.5")
        tab.wait_for(READY)
        tab.wait_for("document.querySelectorAll('[data-state=shown]').length === 2")
        assert "<b>tumour</b>" in tab.run("document.querySelector('.panel').innerText")
        assert tab.errors == []

        (folder / "slides" / "demo-004-a.svs").unlink()
        shutil.copy(folder / "slides" / "demo-005-a.svs", folder / "slides" / "demo-004-a.svs")
        view.get(f"/api{SLIDE}/layers")  # as a page begins
        other = answer(view, f"/api{SLIDE}/layers/tissue")
        assert "the slide's file is another one than the run read" in other["note"]

        (folder / "slides" / "demo-004-a.svs").unlink()
        assert answer(view, f"/api{SLIDE}/layers")["note"] == ""
        assert "cannot be read" in answer(view, f"/api{SLIDE}/layers/tissue")["absent"]
        assert answer(view, f"/api{SLIDE}/layers/attention")["url"]
        tile = answer(view, f"/api{SLIDE}/tile?index=3")
        assert np.float32(tile["attention"]) == stored(project)[3]
        lost = view.get(tile["picture"])
        assert (lost.status, "is not there" in lost.text) == (409, True)
        tab = view.open(f"{SLIDE}?tile=3")
        tab.wait_for("document.querySelectorAll('.tile figure p').length === 2")
        assert "cannot be read" in tab.run("document.querySelector('.tile').innerText")


@pytest.mark.parametrize(
    "where",
    [
        "x=300.0&y=250.0&z=0.000", "x=391.5&y=127.2&z=1.370", "x=384.0&y=384.0&z=-1.630",
        "x=600.0&y=600.0&z=3.000",
    ],
)  # fmt: skip
def test_cells_are_exactly_on_the_tiles_at_every_zoom(view: Viewing, where: str) -> None:
    tab = view.open(f"{SLIDE}?{where}&layers=attention:1,grid:1")
    tab.wait_for("document.querySelector('img.cells')?.complete")
    tab.wait_for("Number(document.querySelector('canvas.borders')?.dataset.drawn) >= 0")
    x, y, zoom = (float(part.partition("=")[2]) for part in where.split("&"))
    left, top, right, bottom = answer(view, f"/api{SLIDE}/layers/attention")["bounds_px"]
    map_box, box = (
        tab.run(f"(() => {{ const b = document.querySelector('{one}').getBoundingClientRect();"
                "return [b.left, b.top, b.right, b.bottom]; })()")
        for one in (".map", "img.cells")
    )  # fmt: skip
    middle = (map_box[0] + map_box[2]) / 2, (map_box[1] + map_box[3]) / 2
    for found, level0, at, centre in zip(
        box, (left, top, right, bottom), (x, y, x, y), middle * 2, strict=True
    ):
        assert abs(found - (centre + (level0 - at) * 2**zoom)) <= 1


def test_a_person_with_a_keyboard_switches_layers_and_reads_a_tile(
    view: Viewing, validated: Project
) -> None:
    tab = view.open(SLIDE)
    tab.wait_for(READY)
    tab.wait_for("document.querySelector('img.cells')?.complete")
    assert "100 %: \u00d7" in tab.run("document.querySelector('[data-layer=attention]').innerText")

    tab.run("document.querySelector('[data-layer=attention] input[type=range]').focus()")
    tab.press("ArrowLeft", times=3)
    assert (
        tab.run("getComputedStyle(document.querySelector('img.cells').parentNode).opacity")
        == "0.45"
    )
    assert asked(tab)["layers"] == "attention:0.45"
    tab.run("document.querySelector('[data-layer=attention] input[type=checkbox]').focus()")
    tab.press(" ")
    tab.wait_for("document.querySelector('img.cells') === null")
    assert asked(tab)["layers"] == "none"
    tab.run("document.querySelector('[data-layer=tissue] input[type=checkbox]').focus()")
    tab.press(" ")
    tab.wait_for("document.querySelector('[data-layer=tissue]').dataset.state === 'shown'")
    assert "pieces: 1" in tab.run("document.querySelector('[data-layer=tissue]').innerText")

    values, corners = stored(validated), coords(validated)
    tab.run("document.querySelector('.map').focus()")
    tab.press("Enter")
    tab.wait_for("document.querySelector('.tile').dataset.tile !== ''")
    first = int(tab.run("document.querySelector('.tile').dataset.tile"))
    assert corners[first].tolist() == [384, 384]  # the centre of 768 px
    shown = tab.run("document.querySelector('.tile dd[data-value]').dataset.value")
    assert float(shown) == float(values[first])
    tab.press("ArrowLeft")
    tab.wait_for(f"document.querySelector('.tile').dataset.tile !== '{first}'")
    second = int(tab.run("document.querySelector('.tile').dataset.tile"))
    assert (corners[second] - corners[first]).tolist() == [-128, 0]
    assert asked(tab)["tile"] == str(second)
    assert f"attention rank {1 + int((values > values[second]).sum())} of {len(values)}" in tab.run(
        "document.querySelector('.section [role=status]').textContent"
    )
    tab.press("Escape")
    tab.wait_for("document.querySelector('.tile').dataset.tile === ''")
    assert "tile" not in asked(tab)
    assert (tab.errors, tab.failures) == ([], [])


def test_a_click_on_a_tile_shows_it_and_the_address_brings_it_back(
    view: Viewing, validated: Project
) -> None:
    tab = view.open(f"{SLIDE}?x=384.0&y=384.0&z=0.000&layers=grid:1")
    tab.wait_for(READY)
    left, top, width, height = tab.run(
        "(() => { const b = document.querySelector('.map').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    values, corners = stored(validated), coords(validated)
    x, y = corners[7] + 30
    tab.click(left + width / 2 + x - 384, top + height / 2 + y - 384)
    tab.wait_for("document.querySelector('.tile').dataset.tile === '7'")
    widths = "[...document.querySelectorAll('.tile img')].map((one) => one.naturalWidth)"
    tab.wait_for(f"{widths}.every((width) => width > 0)")
    assert tab.run(widths) == [128, 64]  # as it is, and as the encoder saw it
    value = tab.run("document.querySelector('.tile dd[data-value]').dataset.value")
    assert np.float32(value) == values[7]
    path = tab.run("location.pathname + location.search")
    again = view.open(path)
    again.wait_for("document.querySelector('.tile')?.dataset.tile === '7'")
    again.wait_for("Number(document.querySelector('canvas.borders')?.dataset.drawn) > 0")
    assert again.run("document.querySelector('[data-layer=attention] input').checked") is False


def asked(tab: Tab) -> dict[str, str]:
    """What the address of the page says."""
    found: dict[str, str] = tab.run("Object.fromEntries(new URLSearchParams(location.search))")
    return found
