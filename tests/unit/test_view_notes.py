"""`her2 view`, notes: files that QuPath and the manifest read, and in which nothing is lost."""

import fcntl
import json
import os
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shapely.geometry
from hypothesis import given, settings
from hypothesis import strategies as st

from her2.core.errors import UserError
from her2.slides.annotations import chosen_regions
from her2.viewer.notes import store
from her2.viewer.notes.features import Draft, NotedSlide
from her2.viewer.notes.outlines import MOST_CORNERS, OutlineRefusedError, check_outline
from her2.viewer.notes.store import ChangedNoteError, Notes
from her2.viewer.pages.notes import caution, noted
from her2.viewer.run import NotThereError

SLIDE = NotedSlide("development", "slide-1", "level0", (0, 0))
BOX = [[10.0, 20.0], [110.0, 20.0], [110.0, 220.0], [10.0, 220.0], [10.0, 20.0]]
SIZE = (1000, 800)


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes", tmp_path / "results")


def draft(class_name: str = "Tumour", remark: str = "odd", **options: Any) -> Draft:
    return Draft(class_name, remark, options.pop("ring", BOX), **options)


def file_of(notes: Notes, slide: NotedSlide = SLIDE) -> Path:
    return notes.path(slide.cohort, slide.slide_id)


def written(notes: Notes, slide: NotedSlide = SLIDE) -> dict[str, Any]:
    found = json.loads(file_of(notes, slide).read_text())
    assert isinstance(found, dict)
    return found


def test_a_note_is_an_annotation_of_qupath(notes: Notes) -> None:
    made = notes.add(SLIDE, draft(remark="odd nuclei\nask Anna", tile=("tiny", 7)))
    document = written(notes)
    assert document["type"] == "FeatureCollection"
    (feature,) = document["features"]
    assert uuid.UUID(feature["id"]).version == 4
    assert feature["type"] == "Feature"
    properties = feature["properties"]
    assert properties["objectType"] == "annotation"
    assert properties["name"] == "odd nuclei"
    assert properties["classification"]["name"] == "Tumour"
    assert all(0 <= one <= 255 for one in properties["classification"]["color"])
    metadata = properties["metadata"]
    assert metadata["remark"] == "odd nuclei\nask Anna"
    assert (metadata["tile"], metadata["encoder"]) == ("7", "tiny")
    assert all(isinstance(value, str) for value in metadata.values())  # QuPath reads texts only
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.is_valid
    assert shape.bounds == (10, 20, 110, 220)
    assert made.id == feature["id"]


def test_a_note_can_be_the_annotation_of_the_manifest(notes: Notes) -> None:
    notes.add(SLIDE, draft("Tumour"))
    notes.add(SLIDE, draft("Stroma"))
    (region,) = chosen_regions(file_of(notes), ["Tumour"])
    assert region.name == "Tumour"
    assert region.rings[0].tolist() == BOX


def test_notes_count_from_where_annotations_do(notes: Notes) -> None:
    slide = NotedSlide("development", "scan", "bounds", (500, 300))
    notes.add(slide, draft(ring=[[x + 500, y + 300] for x, y in BOX]))
    (region,) = chosen_regions(file_of(notes, slide), [])
    assert region.rings[0].tolist() == BOX
    ((note,), _) = notes.listed(slide)
    assert note.geometry is not None
    assert note.geometry["coordinates"][0][0] == [510, 320]


@pytest.mark.parametrize(
    ("cohort", "parts"),
    [("development", ("development",)), ("external:east", ("external", "east"))],
)
def test_each_cohort_has_a_folder(notes: Notes, cohort: str, parts: tuple[str, ...]) -> None:
    notes.add(NotedSlide(cohort, "slide-1", "level0", (0, 0)), draft())
    assert notes.folder.joinpath(*parts, "slide-1.geojson").is_file()


@pytest.mark.parametrize("slide_id", ["..", "../x", "a/b", "/etc/x", ".hidden", "", "a\0b"])
def test_an_id_that_is_no_name_of_a_file_has_no_notes(notes: Notes, slide_id: str) -> None:
    with pytest.raises(NotThereError):
        notes.add(NotedSlide("predicted", slide_id, "level0", (0, 0)), draft())
    assert not notes.folder.exists()


@pytest.mark.parametrize(
    "remark",
    [
        "<script>alert(1)</script>",
        "<html><body onload=alert(1)>",
        "https://example.org/x",
        "[x](javascript:alert(1))",
        '"},"geometry":null,{"',
        "a\u2028b\u202ec \U0001f9ec",
        "line\n\n  two\ttabs",
    ],
)
def test_a_hostile_remark_is_a_text_that_qupath_does_not_show_as_a_page(
    notes: Notes, remark: str
) -> None:
    notes.add(SLIDE, draft(remark=remark))
    ((note,), _) = notes.listed(SLIDE)
    assert note.remark == remark
    metadata = written(notes)["features"][0]["properties"]["metadata"]
    assert "ANNOTATION_DESCRIPTION" not in metadata  # QuPath's page of Markdown and HTML


def test_a_class_has_one_colour_and_others_another(notes: Notes) -> None:
    names = ["a", "b", "c", "a", "d", "b"]
    for name in names:
        notes.add(SLIDE, draft(name))
    colours = {note.class_name: tuple(note.color or ()) for note in notes.listed(SLIDE)[0]}
    assert len(set(colours.values())) == 4
    assert notes.classes() == ["a", "b", "c", "d"]


def test_a_note_is_changed_deleted_and_restored(notes: Notes) -> None:
    first, second = notes.add(SLIDE, draft("a")), notes.add(SLIDE, draft("b"))
    changed = notes.change(SLIDE, first.id, first.revision, Draft("c", "other"))
    assert (changed.class_name, changed.remark, changed.name) == ("c", "other", "")
    assert changed.geometry == first.geometry
    notes.delete(SLIDE, first.id, changed.revision)
    assert [note.id for note in notes.listed(SLIDE)[0]] == [second.id]
    assert notes.restore(SLIDE, first.id) == changed
    assert [note.id for note in notes.listed(SLIDE)[0]] == [first.id, second.id]
    with pytest.raises(NotThereError):
        notes.restore(SLIDE, first.id)


def test_a_remark_can_be_taken_away(notes: Notes) -> None:
    made = notes.add(SLIDE, draft())
    assert notes.change(SLIDE, made.id, made.revision, Draft("Tumour", "")).remark == ""
    assert "name" not in written(notes)["features"][0]["properties"]


def test_a_note_that_was_changed_elsewhere_is_not_overwritten(notes: Notes) -> None:
    other = Notes(notes.folder, notes.folder.with_name("results"))
    made = notes.add(SLIDE, draft())
    theirs = other.change(SLIDE, made.id, made.revision, Draft("Stroma", "theirs"))
    for act in (
        lambda: notes.change(SLIDE, made.id, made.revision, Draft("Fat", "mine")),
        lambda: notes.delete(SLIDE, made.id, made.revision),
    ):
        with pytest.raises(ChangedNoteError, match="changed meanwhile") as caught:
            act()
        assert caught.value.now == theirs
    assert notes.listed(SLIDE)[0] == [theirs]
    other.delete(SLIDE, made.id, theirs.revision)
    with pytest.raises(ChangedNoteError, match="deleted meanwhile") as caught:
        notes.change(SLIDE, made.id, theirs.revision, Draft("Fat", "mine"))
    assert caught.value.now is None


def test_other_notes_may_change_meanwhile(notes: Notes) -> None:
    first, second = notes.add(SLIDE, draft("a")), notes.add(SLIDE, draft("b"))
    notes.change(SLIDE, second.id, second.revision, Draft("c", ""))
    notes.delete(SLIDE, first.id, first.revision)
    assert [note.class_name for note in notes.listed(SLIDE)[0]] == ["c"]


def test_two_viewers_at_once_lose_no_note(notes: Notes) -> None:
    viewers = [Notes(notes.folder, notes.folder.with_name("results")) for _ in range(3)]

    def add(viewer: Notes) -> None:
        for number in range(8):
            viewer.add(SLIDE, draft(remark=f"{id(viewer)} {number}"))

    threads = [threading.Thread(target=add, args=(viewer,)) for viewer in viewers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remarks = [note.remark for note in notes.listed(SLIDE)[0]]
    assert len(remarks) == len(set(remarks)) == 24


FROM_QUPATH = """{"type":"FeatureCollection","other":[1,{"a":null}],"features":[
 {"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[1.5,2],[9,2],[9,9],[1.5,2]]],
  "plane":{"c":-1,"z":2,"t":0}},"extra":true,
  "properties":{"objectType":"annotation","name":"ROI 1","classification":{"names":["Tumor","Pos"],
   "color":[1,2,3]},"isLocked":true,"measurements":{"Area":NaN,"n":3},
   "metadata":{"ANNOTATION_DESCRIPTION":"**bold**","mine":"kept"}}},
 {"type":"Feature","id":"PathCellObject","geometry":{"type":"Polygon","coordinates":
  [[[1,2],[9,2],[9,9],[1,2]]]},"properties":{"objectType":"cell"}},
 {"type":"Feature","id":"x/y?z","geometry":{"type":"Point","coordinates":[4,5]},"properties":null},
 {"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[NaN,2],[9,2],[9,9],[1,2]]]},
  "properties":{"objectType":"annotation"}},
 {"type":"Feature","geometry":null,"properties":{}}
]}"""


def test_what_qupath_wrote_is_shown_and_kept(notes: Notes) -> None:
    path = file_of(notes)
    path.parent.mkdir(parents=True)
    path.write_text(FROM_QUPATH)
    found, others = notes.listed(SLIDE)
    assert others == 1
    roi, point, nowhere, empty = found
    assert (roi.class_name, roi.remark, roi.name) == ("Tumor: Pos", "**bold**", "ROI 1")
    assert roi.color == [1, 2, 3]
    assert point.geometry == {"type": "Point", "coordinates": [4, 5]}
    assert nowhere.geometry is empty.geometry is None
    notes.add(SLIDE, draft())
    before, after = json.loads(FROM_QUPATH), written(notes)
    assert json.dumps(after["features"][:5]) == json.dumps(before["features"])  # NaN is not NaN
    assert after["other"] == before["other"]
    changed = notes.change(SLIDE, roi.id, roi.revision, Draft("Fat", "mine"))
    assert (changed.class_name, changed.remark, changed.name) == ("Fat", "mine", "ROI 1")
    feature = written(notes)["features"][0]
    assert feature["extra"] is True
    assert feature["geometry"] == before["features"][0]["geometry"]
    properties = feature["properties"]
    assert properties["isLocked"] is True
    assert properties["measurements"]["n"] == 3
    assert properties["metadata"]["mine"] == "kept"
    for note in (point, empty):
        notes.delete(SLIDE, note.id, note.revision)
    assert [note.id for note in notes.listed(SLIDE)[0]][:2] == ["at-0", "at-2"]


@pytest.mark.parametrize(
    "geometry",
    [
        None,
        7,
        {"type": "Polygon"},
        {"type": ["Polygon"], "coordinates": [BOX]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[]]},
        {"type": "Polygon", "coordinates": [1, 2]},
        {"type": "Polygon", "coordinates": BOX},
        {"type": "Polygon", "coordinates": [[["x", "y"]] * 3]},
        {"type": "Polygon", "coordinates": [[[1]] * 3]},
        {"type": "Polygon", "coordinates": [[[1, 1e99]] * 3]},
        {"type": "Point", "coordinates": [BOX]},
        {"type": "Circle", "coordinates": [1, 2]},
        {"type": "GeometryCollection", "geometries": []},
    ],
    ids=range(14),
)
def test_a_place_that_no_map_can_show_is_listed_and_kept(notes: Notes, geometry: Any) -> None:
    path = file_of(notes)
    path.parent.mkdir(parents=True)
    feature = {"type": "Feature", "id": "a", "geometry": geometry, "properties": {}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    ((note,), _) = notes.listed(SLIDE)
    assert note.geometry is None
    changed = notes.change(SLIDE, note.id, note.revision, Draft("a", "b"))
    assert (changed.class_name, changed.remark) == ("a", "b")
    assert written(notes)["features"][0]["geometry"] == geometry


@pytest.mark.parametrize("form", ["list", "feature"])
def test_other_forms_of_geojson_are_read_and_become_a_collection(notes: Notes, form: str) -> None:
    path = file_of(notes)
    path.parent.mkdir(parents=True)
    feature = json.loads(FROM_QUPATH)["features"][0]
    path.write_text(json.dumps([feature] if form == "list" else feature))
    notes.add(SLIDE, draft())
    assert written(notes)["type"] == "FeatureCollection"
    assert len(chosen_regions(path, [])) == 2


DAMAGED = [
    "",
    "{",
    '{"type":"FeatureCollection","features":[',
    "[1]",
    "7",
    '{"type":"Polygon","coordinates":[]}',
    '{"type":"FeatureCollection","features":{}}',
    '{"type":"FeatureCollection","features":[{"properties":[1]}]}',
    '{"features":[],"features":[]}',
    "[" * 100_000,
    b"\xff\xfe{",
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_never_written_to(notes: Notes, content: str | bytes) -> None:
    made = notes.add(SLIDE, draft())
    raw = content if isinstance(content, bytes) else content.encode()
    path = file_of(notes)
    path.write_bytes(raw)
    for act in (
        lambda: notes.listed(SLIDE),
        lambda: notes.add(SLIDE, draft()),
        lambda: notes.change(SLIDE, made.id, made.revision, draft("x")),
        lambda: notes.delete(SLIDE, made.id, made.revision),
    ):
        with pytest.raises(UserError, match=r"slide-1\.geojson.*[Nn]othing is written to it"):
            act()
    assert path.read_bytes() == raw
    assert notes.classes() == []


def test_a_file_is_whole_or_as_before(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    notes.add(SLIDE, draft())
    before = file_of(notes).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("her2.core.files._sync", full)
    with pytest.raises(UserError, match="cannot be written"):
        notes.add(SLIDE, draft())
    monkeypatch.undo()
    assert file_of(notes).read_bytes() == before
    assert sorted(path.name for path in file_of(notes).parent.iterdir()) == ["slide-1.geojson"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no folder")
    notes = Notes(tmp_path / "notes", tmp_path / "results")
    with pytest.raises(UserError, match=r"slide-1\.geojson: cannot be written.*--notes"):
        notes.add(SLIDE, draft())


def test_a_link_stays_one(notes: Notes, tmp_path: Path) -> None:
    path = file_of(notes)
    path.parent.mkdir(parents=True)
    (tmp_path / "shared.geojson").write_text('{"type":"FeatureCollection","features":[]}')
    path.symlink_to(tmp_path / "shared.geojson")
    notes.add(SLIDE, draft())
    assert path.is_symlink()
    assert len(chosen_regions(tmp_path / "shared.geojson", [])) == 1


def test_a_link_to_nothing_is_named(notes: Notes, tmp_path: Path) -> None:
    path = file_of(notes)
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "gone.geojson")
    with pytest.raises(UserError, match=r"slide-1\.geojson"):
        notes.listed(SLIDE)


def test_classes_follow_the_files(notes: Notes) -> None:
    made = notes.add(SLIDE, draft("a"))
    assert notes.classes() == ["a"]
    notes.change(SLIDE, made.id, made.revision, Draft("longer", ""))
    assert notes.classes() == ["longer"]
    file_of(notes).unlink()
    assert notes.classes() == []


@pytest.mark.parametrize("place", ["results", "results/notes", "link"])
def test_nothing_is_written_into_the_results(tmp_path: Path, place: str) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "results")
    with pytest.raises(UserError, match="is in the results"):
        Notes(tmp_path / place, tmp_path / "results").add(SLIDE, draft())
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("origin", "corner", "begins", "words"),
    [
        ("level0", (0, 0), (0, 0), None),
        ("level0", (500, 300), (0, 0), "begins at 500, 300 px: open it there with --no-crop"),
        ("bounds", (500, 300), (500, 300), None),
    ],
)
def test_where_notes_count_from_is_that_of_the_config(
    origin: str, corner: tuple[int, int], begins: tuple[int, int], words: str | None
) -> None:
    one: Any = SimpleNamespace(
        viewer=SimpleNamespace(
            run=SimpleNamespace(
                config=SimpleNamespace(tiling=SimpleNamespace(annotation_origin=origin))
            )
        ),
        cohort=SimpleNamespace(key="development"),
        slide_id="scan",
        open=lambda: SimpleNamespace(slide=SimpleNamespace(bounds_corner_px=corner)),
    )
    slide = noted(one)
    assert slide.corner_px == begins
    found = caution(one, slide)
    assert found is None if words is None else words in str(found)


# Outlines


def test_an_outline_is_closed_and_has_corners_of_hundredths() -> None:
    assert check_outline([[0, 0], [10.123456, 0], [10, 10]], SIZE) == [
        *([0, 0], [10.12, 0], [10, 10], [0, 0])
    ]
    assert check_outline([*BOX, BOX[0]], SIZE) == BOX


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (None, "no list"),
        ("abc", "no list"),
        ([], "fewer than 3"),
        ([[0, 0], [1, 1]], "fewer than 3"),
        ([[0, 0], [1, 1], [0, 0], [1, 1]], "crosses or touches"),
        ([[5, 5]] * 9, "fewer than 3"),
        ([[0, 0], [0.001, 0], [0, 0.001]], "fewer than 3"),
        ([[0, 5], [10, 5], [20, 5]], "crosses or touches"),
        ([[0, 0], [10, 10], [10, 0], [0, 10]], "crosses or touches"),
        ([[0, 0], [10, 0], [10, 10], [5, 0], [0, 10]], "crosses or touches"),
        ([["0", "0"], ["9", "0"], ["9", "9"]], "no list"),
        ([[0, 0, 0], [9, 0, 0], [9, 9, 0]], "no list"),
        ([[0, 0], [float("nan"), 0], [9, 9]], "on no slide"),
        ([[0, 0], [float("inf"), 0], [9, 9]], "on no slide"),
        ([[0, 0], [1e300, 0], [9, 9]], "on no slide"),
        ([[0, 0], [10**400, 0], [9, 9]], "no list"),
        ([[2000, 0], [2100, 0], [2100, 100]], "1,000 x 800"),
        ([[1010, 0], [1050, 0], [1050, 100]], "1,000 x 800"),
        ([[-500, 0], [100, 0], [100, 100]], "1,000 x 800"),
        ([[x, x * x] for x in range(MOST_CORNERS + 1)], "more than 2,000"),
    ],
)
def test_an_outline_without_a_clear_inside_is_refused(points: Any, words: str) -> None:
    with pytest.raises(OutlineRefusedError, match=words):
        check_outline(points, SIZE)


def test_an_outline_may_leave_the_slide_a_little() -> None:
    assert check_outline([[-50, -50], [1050, -50], [1050, 850]], SIZE)
    assert check_outline([[0, 0], [9e6, 0], [9e6, 9e6]], None)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=9, unique=True)
)
def test_an_outline_is_taken_if_shapely_finds_it_valid(points: list[tuple[int, int]]) -> None:
    polygon = shapely.geometry.Polygon(points)
    try:
        ring = check_outline([list(one) for one in points], SIZE)
    except OutlineRefusedError:
        assert not polygon.is_valid or polygon.area == 0
    else:
        assert polygon.is_valid
        assert polygon.equals(shapely.geometry.Polygon(ring))


# A folder that others can write in


def test_who_holds_the_lock_keeps_nobody_waiting_for_ever(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", 0.1)
    notes.add(SLIDE, draft())
    with (notes.folder / ".lock").open() as lock:  # to read is enough
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"\.lock: is held by another program"):
            notes.add(SLIDE, draft())
        assert len(notes.listed(SLIDE)[0]) == 1
    notes.add(SLIDE, draft())
    assert len(notes.listed(SLIDE)[0]) == 2


def test_a_thread_that_waits_for_the_lock_does_not_stop_the_others(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", 0.1)
    with notes._turn, pytest.raises(UserError, match="is held"):
        notes.add(SLIDE, draft())


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_a_lock_that_is_no_file_is_not_opened(
    notes: Notes, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", 0.1)
    notes.folder.mkdir()
    lock = notes.folder / ".lock"
    match kind:
        case "pipe":
            os.mkfifo(lock)
        case "link":
            lock.symlink_to(tmp_path / "made-by-a-link")
        case "folder":
            lock.mkdir()
    notes.add(SLIDE, draft())
    assert len(notes.listed(SLIDE)[0]) == 1
    assert not (tmp_path / "made-by-a-link").exists()


@pytest.mark.parametrize("kind", ["pipe", "link to another file", "folder"])
def test_a_download_is_of_notes_and_of_nothing_else(
    notes: Notes, tmp_path: Path, kind: str
) -> None:
    path = file_of(notes)
    path.parent.mkdir(parents=True)
    assert notes.content(SLIDE.cohort, SLIDE.slide_id) is None
    (tmp_path / "key").write_text("private")
    match kind:
        case "pipe":  # whose reading waits
            os.mkfifo(path)
        case "link to another file":
            path.symlink_to(tmp_path / "key")
        case "folder":
            path.mkdir()
    with pytest.raises(UserError) as found:
        notes.content(SLIDE.cohort, SLIDE.slide_id)
    assert "private" not in str(found.value)


def test_a_download_is_the_file_as_it_is(notes: Notes) -> None:
    notes.add(SLIDE, draft())
    assert notes.content(SLIDE.cohort, SLIDE.slide_id) == file_of(notes).read_bytes()


@pytest.mark.parametrize("key", ["id", "name", "classification"])
def test_half_of_a_character_damages_a_file_and_no_other(notes: Notes, key: str) -> None:
    other = NotedSlide("development", "slide-2", "level0", (0, 0))
    notes.add(SLIDE, draft("Tumour"))
    notes.add(other, draft("Stroma", remark="whole: \U0001f600"))
    feature = written(notes)["features"][0]
    feature["properties"][key] = {"name": "\ud800"}
    file_of(notes).write_text(json.dumps([{**feature, "id": "\ud800"}]))
    with pytest.raises(UserError, match="half of a character"):
        notes.listed(SLIDE)
    assert notes.classes() == ["Stroma"]
    file_of(notes, other).write_text(json.dumps(written(notes, other)))  # as two escapes
    assert notes.listed(other)[0][0].remark == "whole: \U0001f600"
