"""`her2 predict`: which slides are meant, whatever somebody names."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from her2.cohort.columns import identifier
from her2.core.errors import UserError
from her2.prediction.inputs import find_slides, legal_id, slides_in
from tests.conftest import WriteManifest
from tests.dicom import write_dicom
from tests.mirax import write_mirax
from tests.vms import write_vms

GREY = np.full((128, 128, 3), 200, np.uint8)


def files_of(folder: Path, *names: str, content: bytes = b"damaged") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def ids(*sources: Path, root: Path | None = None) -> list[str]:
    return [row.slide_id for row in find_slides(sources, root).rows]


def test_a_slide_file_is_a_slide_and_its_own_patient(drawn_slide: Path) -> None:
    cohort = find_slides([drawn_slide])
    (row,) = cohort.rows
    assert (row.slide_id, row.patient_id) == ("drawn", "drawn")
    assert cohort.file(row) == drawn_slide


def test_a_folder_is_searched_with_those_below_it(drawn_slide: Path, tmp_path: Path) -> None:
    for name in ("one.svs", "uuid/two.svs", "unusual.scan"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(drawn_slide, tmp_path / name)
    files_of(tmp_path, "notes.txt", "uuid/logs/x.parcel", ".hidden/three.svs", "uuid/._two.svs")
    found = slides_in(tmp_path)
    assert [path.name for path in found.slides] == ["one.svs", "unusual.scan", "two.svs"]
    assert found.others == 2
    assert ids(tmp_path) == ["one", "two", "unusual"]


@pytest.mark.parametrize("here", [".", "", "below/.."])
def test_the_folder_that_one_is_in_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    files_of(tmp_path / "here", "a.svs")
    (tmp_path / "here" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ids(Path(here)) == ["a"]


def test_pictures_in_the_cache_are_no_slides(tmp_path: Path) -> None:
    """The cache may lie in the folder of the slides, as beside a table that is written there."""
    files_of(tmp_path, "one.svs", "her2-cache/qc/ab/abc.jpg", "maps/slides/one.png")
    own = [tmp_path / "her2-cache", tmp_path / "maps"]
    assert [row.slide_id for row in find_slides([tmp_path], without=own).rows] == ["one"]
    assert len(slides_in(tmp_path).slides) == 3


def test_a_damaged_slide_of_a_folder_is_not_hidden(tmp_path: Path) -> None:
    files_of(tmp_path, "broken.svs")
    assert ids(tmp_path) == ["broken"]


def test_the_data_of_a_slide_of_several_files_are_no_slides(tmp_path: Path) -> None:
    write_mirax(tmp_path / "case.mrxs", GREY, mpp=0.5)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "case" / "label.png")
    assert ids(tmp_path) == ["case"]


@pytest.mark.parametrize("moved", [True, False])
def test_a_mirax_slide_that_is_not_whole_is_not_hidden(
    tmp_path: Path, moved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A `.mrxs` inside of its folder is a slide with a problem; without one, the log names it."""
    write_mirax(tmp_path / "case.mrxs", GREY, mpp=0.5)
    target = tmp_path / "case" / "case.mrxs"
    (tmp_path / "case.mrxs").rename(target)
    if not moved:
        target.unlink()
    found = slides_in(tmp_path)
    assert list(found.slides) == ([target] if moved else [])
    assert ("its .mrxs is not beside the folder" in caplog.text) is not moved


def test_a_link_to_a_folder_above_does_not_end_in_a_circle(tmp_path: Path) -> None:
    files_of(tmp_path, "a/one.svs")
    (tmp_path / "a" / "above").symlink_to(tmp_path)
    assert ids(tmp_path) == ["one"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("H2301234 A1 HE", "H2301234_A1_HE"),
        ("Präparat Grün", "Praparat_Grun"),
        ("Kopie von (2)", "Kopie_von_2"),
        ("_x", "x"),
        ("Grösse ß", "Grosse_ss"),
        ("\u4e2d\u6587", "slide"),
        ("x" * 200, "x" * 128),
        ("TCGA-A1-A0SK-01Z-00-DX1", "TCGA-A1-A0SK-01Z-00-DX1"),
    ],
)
def test_ids_are_legal_and_like_the_names(name: str, expected: str) -> None:
    assert legal_id(name) == expected
    assert identifier(expected) == expected


def test_slides_of_one_name_are_all_named(tmp_path: Path) -> None:
    files_of(tmp_path, "train/1.svs", "test/1.svs", "A b.svs", "a_B.svs", "other.svs")
    with pytest.raises(UserError) as caught:
        find_slides([tmp_path])
    for name in ("train/1.svs", "test/1.svs", "A b.svs", "a_B.svs"):
        assert name in str(caught.value)
    assert "other" not in str(caught.value)
    assert "give a manifest" in str(caught.value)


def test_a_file_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    files_of(tmp_path, "one.svs", "two.svs")
    assert ids(tmp_path / "one.svs", tmp_path) == ["one", "two"]


def test_all_sources_that_hold_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    files_of(tmp_path, "texts/a.txt")
    sources = [tmp_path / name for name in ("absent.svs", "empty", "texts")]
    with pytest.raises(UserError) as caught:
        find_slides(sources)
    text = str(caught.value)
    assert "absent.svs: does not exist" in text
    assert text.count("holds no file that is a slide") == 2


def test_a_dollar_sign_is_a_part_of_the_name(tmp_path: Path) -> None:
    files_of(tmp_path, "a$HOME.svs")
    cohort = find_slides([tmp_path])
    assert cohort.file(cohort.rows[0]) == tmp_path / "a$HOME.svs"


def test_names_that_cannot_be_paths_are_named(tmp_path: Path) -> None:
    files_of(tmp_path, "a{1}.svs", "b<1>.svs", "c.svs")
    with pytest.raises(UserError, match=r"(?s)a\{1\}\.svs: .*b<1>\.svs: "):
        find_slides([tmp_path])


def test_a_manifest_needs_no_labels_and_no_patients(write_csv: WriteManifest) -> None:
    rows = [{"slide_id": "a", "path": "a.svs"}, {"slide_id": "b", "path": "b.svs"}]
    cohort = find_slides([write_csv(rows)])
    assert [(row.slide_id, row.patient_id) for row in cohort.rows] == [("a", "a"), ("b", "b")]
    some = [{**row, "patient_id": patient} for row, patient in zip(rows, ("p", ""), strict=True)]
    cohort = find_slides([write_csv(some)], Path("/data"))
    assert [row.patient_id for row in cohort.rows] == ["p", "b"]
    assert cohort.file(cohort.rows[0]) == Path("/data/a.svs")


def test_all_problems_of_a_manifest_are_named_at_once(write_csv: WriteManifest) -> None:
    rows = [
        {"slide_id": "a", "path": "a.svs", "patient_id": "p 1", "mpp": "0.5"},
        {"slide_id": "a", "path": "b.svs", "patient_id": "p", "mpp": "big"},
        {"slide_id": "p", "path": "", "patient_id": "", "mpp": ""},
    ]
    with pytest.raises(UserError) as caught:
        find_slides([write_csv(rows)])
    text = str(caught.value)
    for words in ("'p 1' is not a legal id", "'a' is used 2 times", "'big'", "'path': is empty",
                  "slide 'p' would be its own patient"):  # fmt: skip
        assert words in text


def test_a_manifest_is_given_alone(write_csv: WriteManifest, tmp_path: Path) -> None:
    path = write_csv([{"slide_id": "a", "path": "a.svs"}])
    files_of(tmp_path, "b.svs")
    with pytest.raises(UserError, match="is a manifest, which is given alone"):
        find_slides([path, tmp_path / "b.svs"])
    with pytest.raises(UserError, match=r"--root .*: is where the paths of a manifest start"):
        find_slides([tmp_path / "b.svs"], tmp_path)


@pytest.mark.parametrize("kind", ["mirax", "hamamatsu"])
def test_a_pattern_that_also_matches_a_slides_other_files_stands_for_the_slide(
    tmp_path: Path, kind: str
) -> None:
    """`slides/*` matches a `.mrxs` with its folder, or an index with its images."""
    if kind == "mirax":
        write_mirax(tmp_path / "case.mrxs", GREY, mpp=0.5)
    else:
        write_vms(tmp_path / "case.vms", GREY)
        (tmp_path / "case.opt").unlink()  # it is not needed, and no slide
    given = sorted(tmp_path.iterdir())
    assert len(given) > 1
    assert ids(*given) == ["case"]


def test_the_files_of_a_dicom_series_are_one_slide(tmp_path: Path) -> None:
    for level, name in ((1, "a.dcm"), (0, "b.dcm")):
        write_dicom(tmp_path / name, GREY, mpp=0.5, level=level)
    assert len(ids(tmp_path)) == 1


def test_the_other_files_of_a_hamamatsu_slide_are_no_slides(tmp_path: Path) -> None:
    write_vms(tmp_path / "case.vms", GREY)
    assert ids(tmp_path) == ["case"]
