"""The page of a slide in a real browser: its px, its place, its keys, two side by side."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import polars as pl
import pytest
from PIL import Image

from tests.browser import Tab
from tests.conftest import WriteSlide
from tests.unit.test_embed import damage
from tests.viewing import Viewing, viewing
from tests.workflow.conftest import copy
from tests.workflow.project import Project

DEMO = "/slides/development/demo-001-a"
PANE = "document.getElementById('panes').panes"
READY = "document.documentElement.dataset.ready === 'yes'"


@pytest.fixture(scope="module")
def project(
    validated: Project, tmp_path_factory: pytest.TempPathFactory, write_slide: WriteSlide
) -> Project:
    """A copy with slides that no run saw: um/px not known, or of two kinds, and a torn one.

    It has a second model, of which there are only the predictions.
    """
    project = copy(validated, tmp_path_factory.mktemp("view") / "project")
    models = project.folder / "results" / "evaluation" / "score" / "tiny"
    shutil.copytree(models / "abmil", models / "another")
    slides = project.folder / "slides"
    image = np.asarray(Image.effect_noise((500, 300), 90).convert("RGB"))
    Image.fromarray(image).save(slides / "flat.png")
    write_slide(slides / "oblong.tif", image, mpp=(0.5, 1.0))
    shutil.copy(slides / "demo-003-a.svs", slides / "torn.svs")
    damage(slides / "torn.svs", 0, 0)
    with (project.folder / "slides.csv").open("a") as manifest:
        for name, file in (("flat", "flat.png"), ("oblong", "oblong.tif"), ("torn", "torn.svs")):
            manifest.write(f"{name},slides/{file},{name},0,north\n")
    return project


@pytest.fixture(scope="module")
def view(project: Project) -> Iterator[Viewing]:
    with viewing(project.folder) as found:
        yield found


def opened(view: Viewing, path: str, **look: Any) -> Tab:
    tab = view.open(path, **look)
    tab.wait_for(READY)
    return tab


def loaded(tab: Tab) -> None:
    """Wait until no square is missing."""
    tab.wait_for(
        "document.querySelectorAll('.leaflet-tile').length > 0 && "
        "![...document.querySelectorAll('.leaflet-tile')]"
        ".some((one) => !one.classList.contains('leaflet-tile-loaded'))"
    )


def place(tab: Tab, number: int = 0) -> tuple[float, float, float]:
    """The centre in level-0 px and the zoom of a pane."""
    x, y, zoom = tab.run(
        f"(({{centre, map}}) => [centre.x, centre.y, map.getZoom()])({PANE}[{number}])"
    )
    return x, y, zoom


def middle(tab: Tab, number: int = 0) -> tuple[float, float]:
    x, y = tab.run(
        f"(() => {{ const box = {PANE}[{number}].canvas.getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    return x, y


def query(tab: Tab) -> dict[str, str]:
    found = tab.run("Object.fromEntries(new URLSearchParams(location.search))")
    return dict(found)


def slide_px(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


# Px


def test_full_resolution_has_the_px_of_the_file(view: Viewing, project: Project) -> None:
    tab = opened(view, f"{DEMO}?x=384&y=384&z=0")
    loaded(tab)
    whole = slide_px(project.folder / "slides" / "demo-001-a.svs")
    drawn = tab.run(
        """(() => {
            const image = document.querySelector('.leaflet-tile[src*="/zoom/2/1_1.webp"]');
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            const found = context.getImageData(0, 0, 257, 257).data;
            return Array.from({ length: 257 }, (_, i) =>
                Array.from(found.slice(4 * (257 * i + (i * 37) % 257)).slice(0, 3)));
        })()"""
    )
    expected = [whole[256 + i, 256 + i * 37 % 257].tolist() for i in range(257)]
    assert drawn == expected
    # And they are where they should be on the screen, without what lies on them.
    tab.press("l")
    x, y = (round(one) for one in middle(tab))
    shot = tab.call(
        "Page.captureScreenshot",
        clip={"x": x - 40, "y": y - 100, "width": 80, "height": 80, "scale": 1},
    )
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))
    np.testing.assert_array_equal(seen, whole[284:364, 344:424])


@pytest.mark.parametrize("zoom", [0, -1, -2, 0.4, -0.7, -1.5, 2.3])
def test_what_lies_on_a_slide_lies_exactly_there_at_every_zoom(view: Viewing, zoom: float) -> None:
    if view.tab.run("location.pathname") != DEMO:
        opened(view, DEMO)
    tab = view.tab
    tab.run(
        f"""(() => {{
            const [pane] = {PANE};
            pane.box?.remove();
            pane.show({{ x: 256, y: 256 }}, {zoom});
            const one = L.imageOverlay('data:image/gif;base64,R0lGODlhAQABAAAAACw=',
                pane.toBounds([256, 0, 512, 768]));
            pane.box = one.addTo(pane.map);
        }})()"""
    )
    loaded(tab)
    found = tab.run(
        f"""(() => {{
            const rect = (one) => (({{ left, top, right, bottom }}) => [left, top, right, bottom])(
                one.getBoundingClientRect());
            const box = {PANE}[0].box.getElement();
            return [rect(box), [...document.querySelectorAll('.leaflet-tile')].map((one) =>
                [one.src.match(/zoom.(\\d+).(\\d+)_(\\d+)/).slice(1).map(Number), rect(one)])];
        }})()"""
    )
    (left, top, right, bottom), squares = found
    scale = 2**zoom
    assert abs((right - left) - 256 * scale) <= 1
    assert abs((bottom - top) - 768 * scale) <= 1
    assert squares
    for (level, column, row), (square_left, square_top, *_) in squares:
        side = 256 * 2 ** (2 - level)
        assert abs(square_left - (left + (column * side - 256) * scale)) <= 1
        assert abs(square_top - (top + row * side * scale)) <= 1


def test_a_screen_of_finer_px_shows_the_next_level(view: Viewing) -> None:
    """Twice as many px as CSS px: at half of full resolution it shows full resolution."""
    tab = view.tab
    tab.call("Emulation.setDeviceMetricsOverride", width=900, height=700, deviceScaleFactor=2,
             mobile=False)  # fmt: skip
    tab.call("Page.navigate", url=view.url(f"{DEMO}?x=384&y=384&z=-1&panel=0"))
    tab.wait_for(f"location.search.includes('z=-1') && {READY}")
    loaded(tab)
    levels, left, right, centre = tab.run(
        f"""(() => {{
            const squares = [...document.querySelectorAll('.leaflet-tile')];
            const one = squares.find((one) => one.src.includes('/1_1.'));
            const box = one.getBoundingClientRect(), all = {PANE}[0].canvas.getBoundingClientRect();
            return [[...new Set(squares.map((one) => one.src.split('/zoom/')[1][0]))],
                box.left, box.right, all.left + all.width / 2];
        }})()"""
    )
    assert levels == ["2"]
    assert (left, right) == pytest.approx((centre - 64, centre + 65), abs=1)


# Numbers


def test_the_scale_bar_is_as_long_as_it_says(view: Viewing) -> None:
    tab = opened(view, f"{DEMO}?x=300&y=300&z=0")
    width, words = tab.run(
        "(({offsetWidth, textContent}) => [offsetWidth, textContent])"
        "(document.querySelector('.bar-across'))"
    )
    assert words.endswith("\N{MICRO SIGN}m")
    assert width * 0.5 == pytest.approx(float(words.split()[0]), abs=0.5)
    assert "0.5 \N{MICRO SIGN}m/px, as 20x" in tab.run(
        "document.querySelector('.readout').textContent"
    )
    x, y = middle(tab)
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 50, y=y - 20)
    tab.wait_for("document.querySelector('.readout-place').textContent.includes('x 350, y 280 px')")


def test_a_slide_without_um_per_px_has_no_scale_bar_and_says_so(view: Viewing) -> None:
    tab = opened(view, "/slides/development/flat")
    assert tab.run("document.querySelector('.bar-across').hidden")
    assert "not known" in tab.run("document.querySelector('.readout').textContent")
    assert (
        tab.run(
            "[...document.querySelectorAll('.tools button')].filter((one) => one.disabled).length"
        )
        == 4
    )


def test_px_that_are_no_squares_have_a_bar_for_each_axis(view: Viewing) -> None:
    tab = opened(view, "/slides/development/oblong?x=250&y=150&z=0")
    across, down = tab.run(
        "['.bar-across', '.bar-down'].map((one) => document.querySelector(one).textContent)"
    )
    assert (across, down) == ("50 \N{MICRO SIGN}m", "100 \N{MICRO SIGN}m")
    assert "0.5 across, 1 down" in tab.run("document.querySelector('.readout').textContent")


def test_the_facts_are_those_of_the_manifest_the_file_and_the_table(
    view: Viewing, project: Project
) -> None:
    found = view.get("/api/slides/development/demo-001-a").json()
    table = pl.read_parquet(project.folder / "results" / "cohort" / "slides.parquet")
    row = table.row(by_predicate=pl.col("slide_id") == "demo-001-a", named=True)
    assert found["size_px"] == [row["width_px"], row["height_px"]]
    assert found["mpp"] == found["file_mpp"] == [row["mpp_x"], row["mpp_y"]]
    assert found["objective"] == 20
    classes = {"0": "low", "1+": "low", "2+": "high", "3+": "high"}
    value = row["label_her2"]
    assert found["truth"] == [
        {"task": "score", "label": "her2", "value": value, "class": classes[value]}
    ]
    assert found["grids"] == [{name: row[name] for name in ("grid", "status", "reason", "tiles")}]
    assert view.get("/api/slides/development/demo-001-a/file").json() == {"same": True}
    other = view.get("/api/slides/external:east/east-1").json()
    assert other["truth"][0]["value"] == "1+"


# Keys, buttons, address


def test_all_is_done_by_keys(view: Viewing) -> None:
    tab = opened(view, f"{DEMO}?x=384&y=384&z=0")
    tab.run(f"{PANE}[0].canvas.focus()")
    width, height = tab.run(f"(({{x, y}}) => [x, y])({PANE}[0].map.getSize())")
    tab.press("ArrowRight")
    tab.press("ArrowUp")
    assert place(tab)[:2] == pytest.approx((384 + width / 5, 384 - height / 5), abs=1)
    tab.press("+")
    assert place(tab)[2] == 1
    tab.press("-", times=3)
    assert place(tab)[2] == -2
    tab.wait_for(
        "document.querySelector('[aria-live].visually-hidden').textContent.includes('as 5x')"
    )
    tab.press("0")
    whole = place(tab)
    assert whole[:2] == pytest.approx((384, 384), abs=1)
    tab.press("1")
    assert place(tab)[2] == 0
    tab.run(f"{PANE}[0].addEventListener('pick', ({{ detail }}) => {{ window.picked = detail; }})")
    tab.press("Enter")
    x, y, _ = place(tab)
    assert tab.run("window.picked") == {"x": x, "y": y}
    tab.press("?")
    assert tab.run("document.getElementById('help').open")
    tab.press("n")
    assert tab.run("location.pathname") == DEMO, "keys of the page rest while a dialog is open"
    tab.press("Escape")
    tab.press("n")
    tab.wait_for(f"location.pathname.endsWith('demo-002-a') && {READY}")
    before = place(tab)
    tab.press("ArrowDown")
    assert place(tab)[1] > before[1] + 50, "without a click on the slide"
    tab.press("p")
    tab.wait_for(f"location.pathname.endsWith('demo-001-a') && {READY}")


def test_next_and_back_follow_the_list_that_the_slide_was_opened_from(view: Viewing) -> None:
    tab = opened(view, DEMO)
    kept = {
        "query": "truth=high",
        "slides": [["external:east", "east-2"], ["development", "demo-001-a"]],
    }
    tab.run(f"sessionStorage.setItem('her2-view-list', {json.dumps(json.dumps(kept))})")
    opened(view, DEMO)
    assert tab.run("document.getElementById('to-cohort').getAttribute('href')") == "/?truth=high"
    assert "2 of 2" in tab.run("document.querySelector('.neighbours').textContent")
    tab.press("p")
    tab.wait_for(f"location.pathname.endsWith('east-2') && {READY}")
    tab.run("sessionStorage.clear()")


def test_a_view_is_in_the_address_and_comes_back(view: Viewing) -> None:
    tab = opened(view, f"{DEMO}?panel=1")
    loaded(tab)
    assert query(tab).keys().isdisjoint("xyz"), "the whole slide needs no place"
    entries = tab.run("history.length")
    tab.run("document.querySelector(\"[aria-label^='0.5']\").click()")
    x, y = middle(tab)
    tab.run(f"{PANE}[0].map.options.inertia = false")  # else it moves on while it is looked at
    tab.drag([(x, y), (x + 30, y + 10), (x + 100, y + 40)])
    tab.wait_for("location.search.includes('z=0.000')")
    tab.wait_for(
        f"Math.abs({PANE}[0].centre.x - new URLSearchParams(location.search).get('x')) < 0.1"
    )
    assert query(tab)["panel"] == "1"
    assert tab.run("history.length") == entries
    before = place(tab)
    assert before[:2] != pytest.approx((384, 384), abs=20)
    tab.open(tab.run("location.href"))
    tab.wait_for(READY)
    assert place(tab) == pytest.approx(before, abs=0.1)
    tab.open(tab.run("location.href"), size_px=(390, 844))
    tab.wait_for(READY)
    assert place(tab) == pytest.approx(before, abs=0.1), "also in another window"
    assert tab.run("document.documentElement.scrollWidth") <= 390


def test_wheel_and_fingers_zoom_and_squares_stay_in_their_place(view: Viewing) -> None:
    tab = opened(view, f"{DEMO}?x=384&y=384&z=-1&panel=0")
    loaded(tab)
    x, y = middle(tab)
    tab.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-240)
    tab.wait_for(f"{PANE}[0].map.getZoom() > -1")
    wheeled = place(tab)
    assert wheeled[:2] == pytest.approx((384, 384), abs=1), "about the pointer"
    tab.call("Input.synthesizePinchGesture", x=x + 40, y=y, scaleFactor=2.2)
    tab.wait_for(f"{PANE}[0].map.getZoom() > {wheeled[2] + 0.5}")
    loaded(tab)
    off = tab.run(
        f"""(() => {{
            const [pane] = {PANE};
            const one = document.querySelector('.leaflet-tile[src*="/zoom/2/1_1"]');
            const box = one.getBoundingClientRect(), all = pane.canvas.getBoundingClientRect();
            const at = pane.map.latLngToContainerPoint(pane.toLatLng(256, 256));
            return [box.left - all.left - at.x, box.top - all.top - at.y];
        }})()"""
    )
    assert off == pytest.approx([0, 0], abs=1.5)


@pytest.mark.parametrize("hostile", ["x=1e999&y=0&z=0", "x=a&y=b&z=c", "x=1&y=1&z=99", "z=NaN"])
def test_nonsense_in_the_address_still_shows_the_slide(view: Viewing, hostile: str) -> None:
    tab = opened(view, f"{DEMO}?{hostile}")
    loaded(tab)
    assert tab.errors == []
    assert place(tab)[2] <= 3


# Two side by side


def test_two_slides_move_together_in_um(view: Viewing) -> None:
    """The other hospital's slides have twice the um/px."""
    tab = opened(view, f"{DEMO}?x=384&y=384&z=0&with=external:east/east-1")
    assert place(tab, 1) == pytest.approx((148, 148, 1), abs=0.6)
    x, y = middle(tab)
    tab.drag([(x, y), (x - 20, y), (x - 60, y - 40)])
    tab.wait_for("location.search.includes('x2=')")
    first, second = place(tab), place(tab, 1)
    moved = np.subtract(first[:2], (384, 384)) * 0.5
    assert abs(moved).min() > 10
    assert np.subtract(second[:2], (148, 148)) * 1.0 == pytest.approx(moved, abs=0.6)
    tab.run(f"void {PANE}[1].map.setZoom(2)")
    assert place(tab)[2] == pytest.approx(1), "and the first follows the second"

    tab.click_on("button.toggle")
    unmoved = place(tab)
    tab.run(f"{PANE}[1].show({{ x: 100, y: 100 }}, 1)")
    assert place(tab) == unmoved
    tab.click_on("button.toggle")
    tab.run(f"{PANE}[1].show({{ x: 110, y: 90 }}, 1)")
    assert place(tab)[:2] == pytest.approx(np.add(unmoved[:2], (20, -20)), abs=0.1)
    tab.wait_for("location.search.includes('x2=110.0')")
    both = place(tab), place(tab, 1)
    tab.open(tab.run("location.href"))
    tab.wait_for(READY)
    assert np.ravel([place(tab), place(tab, 1)]) == pytest.approx(np.ravel(both), abs=0.2)


def test_the_same_slide_with_another_model_is_a_button_away(view: Viewing) -> None:
    tab = opened(view, f"{DEMO}?model=score/tiny/abmil&x=300&y=300&z=0")
    tab.run("[...document.querySelectorAll('#slide-bar button')]"
            ".find((one) => one.textContent === 'Side by side').click()")  # fmt: skip
    tab.run("document.querySelector('#compare-model').form.requestSubmit()")
    tab.wait_for(f"{READY} && {PANE}.length === 2")
    assert tab.run(f"{PANE}.map((one) => one.model)") == ["score/tiny/abmil", "score/tiny/another"]
    assert place(tab, 1) == pytest.approx((300, 300, 0), abs=0.1)
    tab.run(f"{PANE}[1].setModel('score/tiny/abmil')")
    assert query(tab)["model2"] == "score/tiny/abmil"
    assert tab.run("document.querySelectorAll('.panel .section').length") >= 2


def test_a_second_slide_that_is_not_there_leaves_the_first(view: Viewing) -> None:
    tab = opened(view, f"{DEMO}?with=development/none")
    loaded(tab)
    assert "development/none" in tab.run("document.getElementById('status').textContent")


# Damage


def test_a_damaged_part_is_hatched_and_the_rest_is_shown(view: Viewing) -> None:
    tab = opened(view, "/slides/development/torn?x=300&y=300&z=0")
    loaded(tab)
    tab.wait_for("document.querySelector('.problem').textContent.includes('part of this slide')")
    hatched = tab.run(
        "[...document.querySelectorAll('.leaflet-tile[src$=\"damaged.svg\"]')]"
        ".filter((one) => getComputedStyle(one).visibility === 'visible').length"
    )
    shown = tab.run("[...document.querySelectorAll('.leaflet-tile[src*=\"/zoom/\"]')].length")
    assert hatched == 1
    assert shown >= 3


def test_a_slide_deleted_meanwhile_says_so_and_keeps_what_needs_no_file(
    view: Viewing, project: Project
) -> None:
    path = "/slides/development/demo-004-a"
    tab = opened(view, f"{path}?x=384&y=384&z=-2")
    loaded(tab)
    file = project.folder / "slides" / "demo-004-a.svs"
    away = file.rename(file.with_suffix(".away"))
    try:
        tab.run(f"{PANE}[0].show({{ x: 400, y: 400 }}, 0)")
        tab.wait_for("document.querySelector('.problem').textContent.includes('is not there')")
        found = view.get(f"/api{path}").json()
        assert "moved or deleted" in found["problem"]
        assert (found["size_px"], found["zoom"]) == ([768, 768], None)
        picture = view.get(f"{path}/thumbnail.jpg?size=128")
        assert picture.headers["x-from"] == "qc"
        assert max(Image.open(io.BytesIO(picture.body)).size) == 128

        tab = opened(view, path)
        assert "is not there" in tab.run("document.querySelector('.problem').textContent")
        assert "768 x 768 px" in tab.run("document.querySelector('.panel').textContent")
        assert place(tab)[:2] == pytest.approx((384, 384), abs=1)
        assert tab.errors == []
    finally:
        away.rename(file)


def test_thumbnails_are_clamped_and_kept(view: Viewing) -> None:
    for asked, given in (("", 256), ("?size=1", 64), ("?size=300", 300), ("?size=99999", 768)):
        found = view.get(f"{DEMO}/thumbnail.jpg{asked}")
        assert Image.open(io.BytesIO(found.body)).size == (given, given)
        assert (found.headers["x-from"], found.headers["content-type"]) == ("slide", "image/jpeg")
    assert view.get(f"{DEMO}/thumbnail.jpg?size=x").status == 404


@pytest.mark.parametrize(
    "square", ["3/0_0.webp", "2/3_0.webp", "2/0_0.jpg", "1/0_0.webp", "0/0_0.png", "2/-1_0.webp"]
)
def test_squares_that_are_not_there_are_404(view: Viewing, square: str) -> None:
    assert view.get(f"{DEMO}/zoom/{square}").status == 404
