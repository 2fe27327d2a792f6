"""Similar tiles and notes of `her2 view` in a real browser, on a real run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import shapely.geometry
from numpy.typing import NDArray

import her2
from her2.slides.annotations import chosen_regions
from tests.browser import Tab
from tests.viewing import Viewing, viewing
from tests.workflow.conftest import copy
from tests.workflow.project import Project

SLIDE = "demo-004-a"
PAGE = f"/slides/development/{SLIDE}"
PANE = "document.getElementById('panes').panes[0]"
HITS = '.similar [aria-label="Most similar tiles of other patients"]'
READY = "document.documentElement.dataset.ready === 'yes'"


@pytest.fixture(scope="module")
def project(  # pytest: this module writes beside the results
    validated: Project, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    return copy(validated, tmp_path_factory.mktemp("notes") / "project")


@pytest.fixture(scope="module")
def view(project: Project) -> Iterator[Viewing]:
    with viewing(project.folder) as found:
        yield found


@pytest.fixture
def file(project: Project) -> Iterator[Path]:
    """Where the slide's notes are, without any yet."""
    path = project.folder / "results-notes" / "development" / f"{SLIDE}.geojson"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def tab(view: Viewing, file: Path) -> Tab:
    """The page of the slide, as large as it fits."""
    tab = view.open(PAGE)
    tab.wait_for(READY)
    return tab


def store(project: Project, slide: str, part: str = "") -> her2.FeatureStore:
    return her2.open_store(
        project.folder / "results" / part / "features" / "tiny" / f"{slide}.zarr.zip"
    )


def pick(tab: Tab, box: NDArray[np.float64]) -> None:
    """Choose the tile at a box by keys: the slide in the middle of the view, then Enter."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    tab.run(f"{PANE}.show({{x: {x}, y: {y}}}); {PANE}.canvas.focus()")
    tab.press("Enter")
    tab.wait_for("document.querySelector('.tile').dataset.tile !== ''")


def box_of(found: her2.FeatureStore, tile: int) -> NDArray[np.float64]:
    corner = found.coords[tile].astype(float)
    return np.concatenate([corner, corner + found.attributes["slide"]["level0_tile"]])


def features(file: Path) -> list[dict[str, Any]]:
    found = json.loads(file.read_text())["features"]
    assert isinstance(found, list)
    return found


def saved(tab: Tab, words: str, remark: str = "") -> None:
    """Write into the form, which has the focus, and save by keys."""
    tab.wait_for("document.activeElement?.name === 'class'")
    tab.type(words)
    tab.press("Tab")
    tab.type(remark)
    tab.press("Enter", "Control")
    tab.wait_for("document.activeElement?.className === 'fly'")  # the note, in the list


def press_on(tab: Tab, selector: str) -> None:
    """Press a button by keys."""
    tab.run(f"document.querySelector({json.dumps(selector)}).focus()")
    tab.press("Enter")


def texts(tab: Tab, selector: str) -> list[str]:
    found = tab.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
    )
    return list(found)


# Similar tiles


def test_similar_tiles_are_found_by_keys_as_by_brute_force(
    view: Viewing, project: Project, tab: Tab
) -> None:
    own = store(project, SLIDE)
    pick(tab, box_of(own, 5))
    press_on(tab, ".similar .find")
    tab.wait_for("!!document.querySelector('.similar ol')")
    query = own.features[5].astype(np.float64)
    best = []
    for part in ("", "validation/east"):
        names = (project.folder / "results" / part / "features" / "tiny").glob("*.zarr.zip")
        for slide in (path.name.removesuffix(".zarr.zip") for path in names):
            rows = store(project, slide, part).features.astype(np.float64)
            cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
            if slide != SLIDE:
                best += [(value, slide) for value in sorted(cosines)[-3:]]
    best.sort(reverse=True)
    hits = tab.run(
        f"""[...document.querySelectorAll('{HITS} > li')].map((li) => [
            li.querySelector('a > span').textContent, li.querySelector('dd').textContent])"""
    )
    assert [slide for slide, _ in hits] == [slide for _, slide in best[:24]]
    assert [float(value) for _, value in hits] == [round(value, 3) for value, _ in best[:24]]
    tab.wait_for("[...document.querySelectorAll('.similar li img')].slice(0, 4)"
                 ".every(image => image.naturalWidth > 0)")  # fmt: skip
    assert "all 287 tiles of 16 slides of 16 patients" in texts(tab, ".similar")[0]
    counts = [[cell.split()[0] for cell in row] for row in tab.run(
        "[...document.querySelectorAll('.similar tbody tr')].map("
        "row => [...row.cells].map(cell => cell.textContent))"
    )]  # fmt: skip
    assert [row[0] for row in counts] == ["0", "1+", "2+", "3+"]
    assert sum(int(row[1]) for row in counts) == 24
    assert sum(int(row[3]) for row in counts) == 15
    assert tab.failures == []
    # A hit leads to its slide, at the tile.
    first = hits[0][0]
    press_on(tab, ".similar li a")
    tab.wait_for(f"location.pathname.endsWith({json.dumps(first)}) && {READY}")
    tab.wait_for("document.querySelector('.tile').dataset.tile === "
                 "new URLSearchParams(location.search).get('tile')")  # fmt: skip


def test_all_tiles_are_searched_on_request(project: Project, tab: Tab) -> None:
    tab.run(  # the sample of a small cohort is all of it: say that it is not
        """(() => { const ask = window.fetch; window.fetch = async (...asked) => {
            const answer = await ask(...asked);
            if (window.held && `${asked[0]}`.includes('/api/similar/') && !asked[1]?.method) {
                return new Response(JSON.stringify({ state: 'running', done: 3, of: 16 }));
            }
            if (!`${asked[0]}`.includes('/similar?')) return answer;
            const found = await answer.json();
            if (found.searched) found.searched.whole = false;
            return new Response(JSON.stringify(found), { status: answer.status });
        }; })()"""
    )
    pick(tab, box_of(store(project, SLIDE), 5))
    press_on(tab, ".similar .find")
    tab.wait_for("!!document.querySelector('.similar .all')")
    before = texts(tab, f"{HITS} a")
    assert "a fixed sample" in texts(tab, ".similar")[0]
    press_on(tab, ".similar .all")
    tab.wait_for(
        "document.querySelector('.similar').textContent.includes('Searched: all 287 tiles')"
    )
    assert texts(tab, f"{HITS} a") == before
    tab.run(f"{PANE}.setModel('score/tiny/abmil')")  # which needs no other search
    tab.wait_for(
        "performance.getEntriesByType('resource').some(({ name }) => "
        "name.includes('/api/similar/') && name.endsWith('?model=score%2Ftiny%2Fabmil'))"
    )
    assert "Searched: all 287 tiles" in texts(tab, ".similar")[0]
    # One that takes long is cancelled by keys.
    press_on(tab, ".similar .find")
    tab.wait_for("!!document.querySelector('.similar .all')")
    tab.run("window.held = true")
    press_on(tab, ".similar .all")
    tab.wait_for("document.querySelector('.similar progress').value === 3")
    assert tab.run("document.activeElement.textContent") == "Cancel"
    tab.press("Enter")
    tab.wait_for("document.querySelector('.similar progress').closest('div').hidden")
    assert texts(tab, ".similar [role=status]") == ["The search was cancelled."]


def test_what_cannot_be_asked_is_answered_in_words(view: Viewing) -> None:
    for query, status, words in (
        ("encoder=none&tile=0", 404, "there are tiny"),
        ("encoder=tiny&tile=99999", 404, "has no tile 99999"),
        ("encoder=tiny&tile=0&model=none", 404, "no model"),
        ("encoder=tiny", 400, "a tile by its number"),
        ("encoder=tiny&tile=-1", 400, "a tile by its number"),
        ("encoder=../x&tile=1", 404, "no encoder"),
    ):
        answer = view.get(f"/api{PAGE}/similar?{query}")
        assert (answer.status, words in answer.json()["error"]) == (status, True)
    assert view.get("/api/similar/77").status == 404
    assert view.send("POST", f"/api{PAGE}/similar", {"encoder": "tiny", "tile": True}).status == 400
    assert view.send("POST", f"/api{PAGE}/similar", ["tiny", 1]).status == 400
    assert view.send("POST", f"/api{PAGE}/similar", {"encoder": "x" * 9000}).status == 413
    begun = view.send("POST", f"/api{PAGE}/similar", {"encoder": "tiny", "tile": 1})
    assert begun.status == 202
    assert view.send("DELETE", begun.json()["address"], None).json()["state"] == "cancelled"


# Notes


def test_a_tile_is_marked_by_keys_and_is_an_annotation(
    project: Project, tab: Tab, file: Path
) -> None:
    box = box_of(store(project, SLIDE), 7)
    pick(tab, box)
    press_on(tab, ".notes .mark-tile")
    saved(tab, "Tumour", "odd nuclei\nask Anna")
    (feature,) = features(file)
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.equals(shapely.box(*box))
    assert feature["properties"]["classification"]["name"] == "Tumour"
    assert feature["properties"]["metadata"]["remark"] == "odd nuclei\nask Anna"
    assert feature["properties"]["metadata"]["tile"] == "7"
    assert len(chosen_regions(file, ["Tumour"])) == 1
    with her2.open_slide(project.folder / "slides" / f"{SLIDE}.svs") as slide:
        tiling = {"min_tissue": 0.3, "min_tiles": 1}
        cache = project.folder / "cache"
        found = her2.tile(slide, mpp=1.0, size=64, tiling=tiling, annotation=file, cache=cache)
    assert found.coords.tolist() == [box[:2].tolist()]
    assert tab.run("document.activeElement.className") == "fly"  # where one was before goes on


def test_a_view_a_rectangle_and_a_polygon_are_marked(tab: Tab, file: Path) -> None:
    tab.run(f"{PANE}.show({{x: 300, y: 300}}, 1)")
    press_on(tab, ".notes .mark-view")
    saved(tab, "View")
    tab.run(f"{PANE}.fit()")
    press_on(tab, ".notes .rectangle")
    x, y = tab.run(f"(b => [b.x, b.y])({PANE}.canvas.getBoundingClientRect())")
    corners = tab.run(
        f"[[200, 150], [330, 260]].map(p => {PANE}.toLevel0({PANE}.map.containerPointToLatLng(p)))"
        ".map(p => [p.x, p.y])"
    )
    tab.drag([(x + 200, y + 150), (x + 260, y + 180), (x + 330, y + 260)])
    saved(tab, "Box")
    press_on(tab, ".notes .polygon")
    assert tab.run(f"document.activeElement === {PANE}.canvas")
    for corner in ((100, 100), (400, 120), (380, 500), (700, 700), (120, 420)):
        tab.run(f"{PANE}.show({{x: {corner[0]}, y: {corner[1]}}}, 0)")
        tab.press(" ")
        if corner == (700, 700):
            tab.press("Backspace")
    tab.press("Enter")
    saved(tab, "Shape")
    assert tab.run("document.querySelector('.tile').dataset.tile") == ""  # no click was a pick
    view, box, shape = (shapely.geometry.shape(one["geometry"]) for one in features(file))
    assert view.equals(shapely.box(*view.bounds))
    assert view.centroid.distance(shapely.Point(300, 300)) < 1
    fitted = shapely.box(*corners[0], *corners[1])
    assert box.symmetric_difference(fitted).area < 0.05 * fitted.area
    wanted = shapely.Polygon([(100, 100), (400, 120), (380, 500), (120, 420)])
    assert shape.symmetric_difference(wanted).area < 0.01 * wanted.area
    tab.run(f"{PANE}.fit(); document.querySelectorAll('.notes .fly')[2].click()")
    centre = tab.run(f"(({{ x, y }}) => [x, y])({PANE}.centre)")
    assert shapely.box(*wanted.bounds).centroid.distance(shapely.Point(centre)) < 2


@pytest.mark.parametrize("closed_by", ["double click", "first corner"])
def test_a_polygon_is_drawn_by_clicks(tab: Tab, file: Path, closed_by: str) -> None:
    zoom = tab.run(f"{PANE}.map.getZoom()")
    press_on(tab, ".notes .polygon")
    left, top = tab.run(f"(b => [b.x, b.y])({PANE}.canvas.getBoundingClientRect())")
    corners = [(250, 150), (500, 170), (450, 420)]
    for x, y in corners:
        tab.click(left + x, top + y)
    if closed_by == "double click":
        tab.click(left + 300, top + 400, times=2)
        corners.append((300, 400))
    else:
        tab.click(left + 252, top + 149)
    wanted = tab.run(
        f"{json.dumps(corners)}.map(p => {PANE}.toLevel0({PANE}.map.containerPointToLatLng(p)))"
        ".map(p => [p.x, p.y])"
    )
    saved(tab, "Shape")
    shape = shapely.geometry.shape(features(file)[0]["geometry"])
    assert shape.symmetric_difference(shapely.Polygon(wanted)).area < 0.02 * shape.area
    assert tab.run(f"{PANE}.map.getZoom()") == zoom
    assert tab.run("document.querySelector('.tile').dataset.tile") == ""


def test_drawing_can_be_given_up(tab: Tab, file: Path) -> None:
    press_on(tab, ".notes .polygon")
    tab.press(" ")
    tab.press("Escape")
    assert tab.run("document.querySelector('.notes form').hidden")
    assert not tab.run("document.querySelector('.map').classList.contains('marking')")
    assert tab.run("document.activeElement.className") == "polygon"
    assert not file.exists()


def test_a_hostile_note_runs_nothing(tab: Tab, file: Path) -> None:
    press_on(tab, ".notes .mark-view")
    words = "<img src=x onerror='window.hit=1'>"
    saved(tab, words, f"{words}<script>window.hit=1</script>")
    tab.run("dispatchEvent(new Event('focus'))")
    x, y = tab.run(
        f"(b => [b.x + b.width / 2, b.y + b.height / 2])({PANE}.canvas.getBoundingClientRect())"
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tab.wait_for("!!document.querySelector('.note-tooltip')")
    assert tab.run("window.hit === undefined")
    assert tab.errors == []
    assert texts(tab, ".notes .class") == [words]


def test_a_note_changed_elsewhere_loses_nothing(view: Viewing, tab: Tab, file: Path) -> None:
    press_on(tab, ".notes .mark-view")
    saved(tab, "Mine", "first")
    (note,) = view.get(f"/api{PAGE}/notes").json()["notes"]
    press_on(tab, ".notes [data-key^=edit]")
    tab.wait_for("document.activeElement?.name === 'class'")
    tab.type("Changed")
    theirs = {"class": "Theirs", "remark": "second", "revision": note["revision"]}
    assert view.send("PUT", f"/api{PAGE}/notes/{note['id']}", theirs).status == 200
    tab.press("Enter", "Control")
    tab.wait_for(
        "document.querySelector('.notes form .wrong').textContent.includes('Theirs: second')"
    )
    assert tab.run("document.querySelector('.notes input').value") == "Changed"
    assert features(file)[0]["properties"]["classification"]["name"] == "Theirs"
    press_on(tab, ".notes form .wrong button")
    tab.wait_for("document.querySelector('.notes form').hidden")
    (feature,) = features(file)
    assert feature["properties"]["classification"]["name"] == "Changed"
    assert feature["properties"]["metadata"]["remark"] == "first"


def test_a_note_is_deleted_and_brought_back_by_keys(tab: Tab, file: Path) -> None:
    press_on(tab, ".notes .mark-view")
    saved(tab, "Kept", "words")
    before = features(file)
    press_on(tab, ".notes [data-key^=delete]")
    tab.wait_for("document.activeElement?.textContent === 'Undo'")
    assert features(file) == []
    tab.press("Enter")
    tab.wait_for("document.activeElement?.className === 'fly'")
    assert features(file) == before


def test_what_qupath_wrote_meanwhile_is_shown(tab: Tab, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    feature = {
        "type": "Feature",
        "id": "an id/of? another #1",
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [90, 0], [90, 90], [0, 0]]]},
        "properties": {"objectType": "annotation", "classification": {"name": "From QuPath"}},
    }
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    tab.run("dispatchEvent(new Event('focus'))")
    tab.wait_for("document.querySelector('.notes .class')?.textContent === 'From QuPath'")
    press_on(tab, ".notes [data-key^=delete]")
    tab.wait_for("document.activeElement?.textContent === 'Undo'")
    assert features(file) == []


def test_a_remark_stays_in_the_form_when_it_cannot_be_saved(tab: Tab, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{ damaged")
    press_on(tab, ".notes .mark-view")
    tab.wait_for("document.activeElement?.name === 'class'")
    tab.type("Tumour")
    tab.press("Tab")
    tab.type("do not lose me")
    tab.press("Enter", "Control")
    tab.wait_for(
        "document.querySelector('.notes form .wrong').textContent.includes('Nothing is written')"
    )
    assert tab.run("document.querySelector('.notes textarea').value") == "do not lose me"
    assert file.read_text() == "{ damaged"


def test_notes_are_downloaded(view: Viewing, tab: Tab, file: Path) -> None:
    assert view.get(f"{PAGE}/notes.geojson").status == 404
    press_on(tab, ".notes .mark-view")
    saved(tab, "View")
    answer = view.get(f"{PAGE}/notes.geojson")
    assert answer.body == file.read_bytes()
    assert answer.headers["content-disposition"] == f'attachment; filename="{SLIDE}.geojson"'
    assert view.get("/notes.zip").body.startswith(b"PK")


def test_everything_is_named_for_screen_readers(tab: Tab) -> None:
    press_on(tab, ".notes .mark-view")
    saved(tab, "Tumour", "odd")
    spoken = tab.spoken()
    for wanted in (
        ("button", "Find similar tiles"),
        ("button", "Mark the current view"),
        ("button", "Show on the slide: Tumour: odd"),
        ("button", "Edit Tumour: odd"),
        ("button", "Delete Tumour: odd"),
        ("list", "Notes of this slide"),
    ):
        assert wanted in spoken
