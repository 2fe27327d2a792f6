"""All files of a slide, and no others, are fingerprinted and copied to the scratch disk."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from her2.cohort.manifest import Cohort, SlideRow
from her2.config import parse_config
from her2.core.errors import SlideError, UserError
from her2.embedding.reading import PendingSlide
from her2.importing.checks import Part, check_files, refuse
from her2.pipeline.plan import Plan
from her2.slides.backends import planned_files, slide_files
from her2.slides.fingerprint import fingerprint
from her2.slides.slide import Slide
from her2.storage.spool import RowSpool
from her2.storage.tiles import TileTable
from tests.dicom import write_dicom
from tests.mirax import write_mirax
from tests.unit.tile_makers import slide_facts, tile_grid
from tests.vms import MPP, write_vms

BUCKET = "0000-of-0001"
PICTURE = np.random.default_rng(1).integers(0, 256, (256, 512, 3), np.uint8)
NDPIS = (
    "[NanoZoomer Digital Pathology Image Set]\r\nNoImages=2\r\nImage0=a.ndpi\r\nImage1=b.ndpi\r\n"
)


def write_ndpis(folder: Path) -> Path:
    path = folder / "a.ndpis"
    path.write_text(NDPIS)
    for name in ("a.ndpi", "b.ndpi"):
        (folder / name).write_bytes(name.encode())
    return path


def write_series(folder: Path) -> Path:
    """Write a DICOM slide of three levels, two of which do not have the suffix of DICOM."""
    for level, name in enumerate(("level0", "1.2.840.7", "level2.dcm")):
        write_dicom(folder / name, PICTURE[:: 2**level, :: 2**level], mpp=MPP, level=level)
    return folder / "level2.dcm"


def write_svs(folder: Path) -> Path:
    (folder / "a.svs").write_bytes(b"slide")
    return folder / "a.svs"


WRITERS: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "one file": (write_svs, {"a.svs"}),
    "MIRAX": (
        lambda folder: write_mirax(folder / "a.mrxs", PICTURE, mpp=MPP),
        {"a.mrxs", *(f"a/{name}" for name in ("Slidedat.ini", "Index.dat", "Data0000.dat",
                                             "deep/Data0001.dat"))},
    ),
    "VMS": (
        lambda folder: write_vms(folder / "a.vms", PICTURE),
        {"a.vms", "a.jpg", "a(1,0).jpg", "a_map2.jpg", "a_macro.jpg", "a.opt"},
    ),
    "NDPIS": (write_ndpis, {"a.ndpis", "a.ndpi", "b.ndpi"}),
    "DICOM": (write_series, {"level0", "1.2.840.7", "level2.dcm"}),
}  # fmt: skip


@pytest.fixture(params=WRITERS)
def slide(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, set[Path]]:
    """Write a slide and its files among other files."""
    write, names = WRITERS[request.param]
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "notes.txt").write_text("[a note]\n")
    (folder / "b").mkdir()
    (folder / "b" / "Data0000.dat").write_bytes(b"another slide's")
    write_dicom(folder / "x.dcm", PICTURE, mpp=MPP)  # of the other folder's series in DICOM's case
    content = (folder / "x.dcm").read_bytes()
    (folder / "x.dcm").write_bytes(content.replace(b"2.25.11.1001", b"2.25.11.2001"))
    path = write(folder)
    return path, {folder / name for name in names}


def test_all_files_of_a_slide_are_listed_and_no_others(slide: tuple[Path, set[Path]]) -> None:
    path, expected = slide
    found = slide_files(path)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert all(file.is_relative_to(path.parent) for file in found)


def test_a_change_of_any_file_is_another_fingerprint(slide: tuple[Path, set[Path]]) -> None:
    path, expected = slide
    first = fingerprint(path)
    found = {first}
    for file in expected:
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        found.add(fingerprint(path))
        file.write_bytes(content)
    assert len(found) == 1 + len(expected)
    assert fingerprint(path) == first


def test_a_fingerprint_does_not_depend_on_the_folder_or_on_times(
    slide: tuple[Path, set[Path]],
) -> None:
    path, expected = slide
    first = fingerprint(path)
    for file in expected:
        os.utime(file, (1, 1))
    (path.parent / "later.txt").write_text("another note")
    moved = path.parent.rename(path.parent.with_name("moved"))
    assert fingerprint(moved / path.name) == first


def test_a_file_of_a_series_stands_for_it_under_any_name(tmp_path: Path) -> None:
    path = write_series(tmp_path)
    assert slide_files(tmp_path / "1.2.840.7") == slide_files(path)
    with Slide(tmp_path / "1.2.840.7") as opened:
        assert len(opened.downsamples) == 3  # OpenSlide takes the same files


def test_a_series_that_a_file_refers_to_is_not_its_own(tmp_path: Path) -> None:
    path = write_series(tmp_path)
    other = b"2.25.11.2001"
    element = uid(0x20, 0xE, other)
    item = b"\xfe\xff\x00\xe0" + len(element).to_bytes(4, "little") + element
    sequence = b"\x08\x00\x15\x11SQ\0\0" + len(item).to_bytes(4, "little") + item
    after = b"\x08\x00\x60\x00CS\x02\x00SM"
    for file in (path, tmp_path / "level0"):
        content = file.read_bytes()
        assert content.count(after) == 1
        file.write_bytes(content.replace(after, after + sequence))
    stranger = write_dicom(tmp_path / "x.dcm", PICTURE, mpp=MPP)
    stranger.write_bytes(stranger.read_bytes().replace(b"2.25.11.1001", other))
    assert {file.name for file in slide_files(path)} == {"level0", "1.2.840.7", "level2.dcm"}
    with Slide(path) as opened:
        assert len(opened.downsamples) == 3


def test_an_index_is_known_by_its_content_as_openslide_knows_it(tmp_path: Path) -> None:
    path = write_vms(tmp_path / "a.vms", PICTURE).rename(tmp_path / "a.index")
    path.write_bytes(b"\xef\xbb\xbf# a comment\n" + path.read_bytes())
    assert len(slide_files(path)) == 6
    with Slide(path) as opened:
        assert (opened.width_px, opened.height_px) == (512, 256)
        assert opened.vendor == "hamamatsu"
        assert opened.scale().mpp_x == pytest.approx(MPP)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("a.jpg", "a.vms names a.jpg, missing in its folder; copy the slide's files there"),
        ("a(1,0).jpg", r"a.vms names a\(1,0\).jpg, missing"),
        ("a_map2.jpg", "a.vms names a_map2.jpg, missing"),
        ("a_macro.jpg", "a.vms names a_macro.jpg, missing"),
    ],
)
def test_a_file_that_an_index_names_in_vain_is_named(tmp_path, lost, message) -> None:
    path = write_vms(tmp_path / "a.vms", PICTURE)
    (tmp_path / lost).unlink()
    with pytest.raises(SlideError, match=message):
        fingerprint(path)


def test_a_data_file_that_a_mirax_folder_lacks_is_named(tmp_path: Path) -> None:
    path = write_mirax(tmp_path / "a.mrxs", PICTURE, mpp=MPP)
    (tmp_path / "a" / "deep" / "Data0001.dat").unlink()
    with pytest.raises(
        SlideError, match="a/Slidedat.ini names deep/Data0001.dat, missing in its folder"
    ):
        fingerprint(path)


def test_a_mirax_slide_that_reads_another_ones_px_is_refused(tmp_path: Path) -> None:
    """OpenSlide opens it, but a change of those px would go unnoticed."""
    write_mirax(tmp_path / "b.mrxs", PICTURE, mpp=MPP)
    path = write_mirax(tmp_path / "a.mrxs", PICTURE, mpp=MPP)
    index = tmp_path / "a" / "Slidedat.ini"
    text = index.read_text().replace("deep/Data0001.dat", "../b/deep/Data0001.dat")
    index.write_text(text)
    with Slide(path) as opened:
        assert opened.vendor == "mirax"
    with pytest.raises(SlideError, match="a/Slidedat.ini names ../b/deep/Data0001.dat, outside"):
        fingerprint(path)


def test_all_absent_files_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.ndpis").write_text(NDPIS)
    with pytest.raises(SlideError, match="a.ndpis names a.ndpi, b.ndpi, missing in its folder"):
        slide_files(tmp_path / "a.ndpis")


def test_a_vms_slide_without_its_optimisation_file_reads_the_same(tmp_path: Path) -> None:
    path = write_vms(tmp_path / "a.vms", PICTURE)
    region = (100, 50, 300, 150, (300, 150))
    with Slide(path) as opened:
        expected = opened.region(*region)
    (tmp_path / "a.opt").unlink()
    assert len(slide_files(path)) == 5
    with Slide(path) as opened:
        np.testing.assert_array_equal(opened.region(*region), expected)


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "b/../../a.jpg", r"..\a.jpg"])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    """OpenSlide would read such a file."""
    (tmp_path / "inside").mkdir()
    write_vms(tmp_path / "a.vms", PICTURE)
    path = write_vms(tmp_path / "inside" / "a.vms", PICTURE)
    path.write_text(path.read_text().replace("ImageFile=a.jpg", f"ImageFile={name}"))
    with pytest.raises(SlideError, match=r"a.vms names .*, outside its folder; put the slide's"):
        fingerprint(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.vms", b"[Virtual Microscope Specimen]\nMapFile\n", "a.vms is damaged"),
        ("a.vms", b"[Virtual Microscope Specimen]\nMapFile=\xff.jpg\n", "a.vms names \ufffd.jpg"),
        ("a.vmu", b"[Other]\nMapFile=a.jpg\n", "a.vmu does not list the slide's files"),
        ("a.ndpis", b"\0" * 100, "a.ndpis does not list the slide's files"),
        ("a.mrxs", b"x", "the folder a .* of a.mrxs is missing; copy it beside the file"),
        ("a.dcm", bytes(128) + b"DICM" + bytes(100), "a.dcm has no Series Instance UID"),
        ("a.vms", b"", "the file is empty"),
    ],
)
def test_what_cannot_be_listed_is_refused(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideError, match=message):
        fingerprint(tmp_path / name)


def test_the_check_of_a_cohort_names_what_every_slide_lacks(tmp_path: Path) -> None:
    write_vms(tmp_path / "a.vms", PICTURE)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.mrxs").write_bytes(b"x")
    write_mirax(tmp_path / "c.mrxs", PICTURE, mpp=MPP)
    names = ("a.vms", "b.mrxs", "c.mrxs")
    rows = tuple(SlideRow(name[0], name, name, {}) for name in names)
    with pytest.raises(UserError, match=r"^2 problem\(s\)") as error:
        refuse(check_files([Part(Cohort(rows, tmp_path))]))
    assert "a.vms names a.jpg, missing in its folder" in str(error.value)
    assert "the folder b with the image data of b.mrxs is missing" in str(error.value)


def test_tiling_waits_for_all_files_of_a_slide(tmp_path: Path, config_values) -> None:
    """Snakemake compares the times of all of them, so a change of any has the slide tiled again."""
    folder = tmp_path / "slides"
    folder.mkdir()
    vms = write_vms(folder / "a.vms", PICTURE)
    mirax = write_mirax(folder / "b.mrxs", PICTURE, mpp=MPP)
    expected = {str(file) for path in (vms, mirax) for file in slide_files(path)}
    rows = tuple(SlideRow(path.stem, path.name, path.stem, {}) for path in (vms, mirax))
    plan = Plan(parse_config(config_values), Cohort(rows, folder))
    assert set(plan.tile_files(BUCKET)) == expected
    (folder / "a.jpg").unlink()  # the job says so, not the rule
    found = {file for file in plan.tile_files(BUCKET) if Path(file).name.startswith("a")}
    assert found == {str(vms)}


def test_a_slide_is_cold_by_the_size_of_all_its_files(tmp_path: Path) -> None:
    """The index alone is a thousandth of the total."""
    path = write_vms(tmp_path / "a.vms", PICTURE)
    facts = slide_facts(width_px=512, height_px=256)
    table = TileTable(np.zeros((1, 2), np.int32), np.ones(1, np.float32), facts, tile_grid(64))
    slide = PendingSlide("a", path, table, "key", RowSpool(1, 2, "float16", tmp_path))
    whole = sum(file.stat().st_size for file in tmp_path.glob("a*"))
    for share, cold in ((0.01, False), (0.03, True)):
        slide.storage_bytes = round(share * whole)
        assert slide.storage_bytes > 0.1 * path.stat().st_size
        assert slide.cold is cold
    (tmp_path / "a.jpg").unlink()
    assert slide.cold is None


def test_a_missing_slide_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="cannot be read"):
        fingerprint(tmp_path / "a.vms")


def test_names_in_a_mirax_folder_do_not_count(tmp_path):
    index, folder = tmp_path / "a.mrxs", tmp_path / "a"
    folder.mkdir()
    index.write_bytes(b"index")
    (folder / "Data0001.dat").write_bytes(b"one")
    first = fingerprint(index)
    (folder / "Data0001.dat").write_bytes(b"two")
    changed = fingerprint(index)
    (folder / "Data0002.dat").write_bytes(b"")
    assert len({first, changed, fingerprint(index)}) == 3
    index.rename(tmp_path / "b.mrxs")
    folder.rename(tmp_path / "b")
    (tmp_path / "b" / "Data0002.dat").unlink()
    assert fingerprint(tmp_path / "b.mrxs") == changed


# Keys of caches that exist


def blob(name: str, size: int) -> bytes:
    """Return the same bytes on every machine."""
    blocks = (hashlib.sha256(f"{name}{i}".encode()).digest() for i in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def old_file(folder: Path) -> Path:
    (folder / "small.svs").write_bytes(blob("small", 1000))
    return folder / "small.svs"


def old_large_file(folder: Path) -> Path:
    (folder / "large.tif").write_bytes(blob("large", 7_000_000))
    return folder / "large.tif"


def old_mirax(folder: Path) -> Path:
    (folder / "m.mrxs").write_bytes(blob("mrxs", 500))
    (folder / "m").mkdir()
    for name in ("Index.dat", "Data0000.dat", "Data0001.dat", ".hidden"):
        (folder / "m" / name).write_bytes(blob(name, 3000))
    (folder / "m" / "Slidedat.ini").write_text(
        "[HIERARCHICAL]\nINDEXFILE = Index.dat\n"
        "[DATAFILE]\nFILE_COUNT = 2\nFILE_0 = Data0000.dat\nFILE_1 = Data0001.dat\n"
    )
    return folder / "m.mrxs"


def old_dicom(folder: Path) -> Path:
    for name, series, instance in (
        ("b.dcm", b"2.25.1", b"2.25.1.9"), ("a.dcm", b"2.25.1", b"2.25.1.30"),
        ("c.dcm", b"2.25.1", b"2.25.1.5"), ("other.dcm", b"2.25.2", b"2.25.2.1"),
    ):  # fmt: skip
        (folder / name).write_bytes(
            bytes(128) + b"DICM" + uid(2, 2, b"1.2.840.10008.5.1.4.1.1.77.1.6")
            + uid(8, 0x18, instance) + uid(0x20, 0xD, b"2.25.7") + uid(0x20, 0xE, series)
            + blob(name, 4000)
        )  # fmt: skip
    # A disc's directory names a series too.
    (folder / "DICOMDIR").write_bytes(
        bytes(128) + b"DICM" + uid(0x20, 0xD, b"2.25.7") + uid(8, 0x60, b"SM")
        + uid(0x20, 0xE, b"2.25.1")
    )  # fmt: skip
    return folder / "b.dcm"


def uid(group: int, element: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    tag = group.to_bytes(2, "little") + element.to_bytes(2, "little")
    return tag + b"UI" + len(value).to_bytes(2, "little") + value


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (old_file, "1ce4676bb514656bae908e61ab2d74b25efda2b11e1ba4f1386dcb95fa695521"),
        (old_large_file, "20311901510f4ad2374d1d9cf8f8fe276598b174dbf5490cc1a8c2be09bd424c"),
        (old_mirax, "946c6ddb3014f5fbe6a4ba31a516f667cf500effc3c1d3e2e3d26f68b4819d7a"),
        (old_dicom, "0d3727f544ff536abbab6fbd0306e27bd8d6438915f6f4296d5756f3fd44425b"),
    ],
)
def test_fingerprints_that_caches_hold_stay(tmp_path: Path, write, expected: str) -> None:
    """The expected fingerprints were recorded before readers listed a slide's files."""
    assert fingerprint(write(tmp_path)) == expected


def test_planning_reads_no_file_of_a_single_file_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 20,000 slides on a network disk, a look into each takes minutes at every start."""
    vms, single = write_vms(tmp_path / "a.vms", PICTURE), tmp_path / "b.svs"
    single.write_bytes(b"not read")
    assert planned_files(vms) == slide_files(vms)
    assert planned_files(tmp_path / "absent.vms") == [tmp_path / "absent.vms"]
    monkeypatch.setattr("her2.slides.backends.slide_files", lambda path: pytest.fail(str(path)))
    assert planned_files(single) == [single]
