"""A name in a sheet means the files that a person would say it means, and no other."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from her2.core.errors import UserError
from her2.importing.labels import legal_id
from her2.importing.matching import (
    match_by_name,
    scan_group,
    slide_files,
    unfinished_files,
)
from tests.mirax import write_mirax


def matched(names: list[str], *stems: str) -> dict[str, list[str]]:
    found = match_by_name(names, [Path("d", f"{stem}.svs") for stem in stems])
    return {name: [path.stem for path in paths] for name, paths in found.files.items()}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("H23 A1", "H23 A1"),
        ("h23 a1", "H23 A1"),
        ("H23  A1 ", "H23 A1"),
        ("H23 A1", "H23_A1"),
        ("H23/A1", "H23-A1"),
        ("Müller", "Mueller"),
        ("Mueller", "Müller"),
        ("Mu\u0308ller", "M\u00fcller"),
        ("Straße 7", "STRASSE 7"),
        ("7", "007"),
        ("007", "7"),
        ("7.0", "7"),
        ("H23–A1", "H23-A1"),
        ("H23 A1", "H23 A1_rescan"),
        ("H23 A1", "H23 A1 (2)"),
        ("H23 A1", "Kopie von H23 A1"),
        ("H23 A1", "H23 A1 - Kopie"),
        ("H23 A1", "H23 A1 - Copy (3)"),
        ("H23 A1", "H23 A1_rescan2 (2)"),
        ("H23", "H23 A1 HE"),
        ("H23", "H23_HE"),
        ("H23", "H23-1"),
        ("7", "007 HE"),
        ("Müller", "Mueller HE"),
        ("H23 A1", "H23_A1_HE"),
        ("H/2023/01234", "H-2023-01234 A1"),
        ("H2301234", "Kopie von H2301234 A1 HE"),
        ("Müller 7", "Mueller_007_HE"),
        ("Müller 7", unicodedata.normalize("NFD", "Müller 7 HE")),
        ("Пациент 1", "пациент 01"),
    ],
)
def test_a_file_belongs_to_the_name_it_spells(name, stem):
    assert matched([name], stem) == {name: [stem]}


@pytest.mark.parametrize(
    ("name", "stem"),
    [("H23", "H234"), ("7", "17"), ("7", "70"), ("1", "1a"), ("H23", "x H23"), ("HE", "HER2 HE"),
     ("", "H23"), ("1.5", "1.25"), ("Müll", "Müller"), ("A1", "H2301234 A1"), ("Пациент 1", "1")],
)  # fmt: skip
def test_a_file_belongs_to_no_name_that_only_resembles(name, stem):
    found = match_by_name([name], [Path(f"{stem}.svs")])
    assert found.files == {}
    assert found.without == (name,)
    assert [path.stem for path in found.unnamed] == [stem]


def test_the_longest_name_is_meant():
    names = ["H2301234", "H2301234 A1", "H2301234 A"]
    assert matched(names, "H2301234 A1 HE", "H2301234 B2", "H2301234 A 3") == {
        "H2301234": ["H2301234 B2"],
        "H2301234 A1": ["H2301234 A1 HE"],
        "H2301234 A": ["H2301234 A 3"],
    }


@pytest.mark.parametrize("text", ["Müller", "É1", "Å ß"])
def test_an_id_does_not_depend_on_the_form_of_unicode(text):
    assert legal_id(unicodedata.normalize("NFD", text)) == legal_id(text)


def test_a_file_s_own_spelling_goes_before_any_other():
    assert matched(["7", "007", "a b", "A-B"], "007", "7", "A-B", "a b") == {
        "7": ["7"], "007": ["007"], "a b": ["a b"], "A-B": ["A-B"],
    }  # fmt: skip


def test_a_name_in_the_sheet_for_a_rescan_is_the_rescan_s():
    names = ["H23", "H23_rescan"]
    assert matched(names, "H23", "H23_rescan") == {"H23": ["H23"], "H23_rescan": ["H23_rescan"]}


def test_names_that_a_file_spells_equally_well_are_ambiguous():
    """`A_B` is `A B` as much as `A-B`: nobody can tell which."""
    found = match_by_name(["A B", "A-B", "C"], [Path("A_B.svs"), Path("A_B HE.svs"), Path("C.svs")])
    assert found.files == {"C": [Path("C.svs")]}
    assert found.ambiguous == {
        Path("A_B.svs"): ("A B", "A-B"), Path("A_B HE.svs"): ("A B", "A-B"),
    }  # fmt: skip
    assert found.without == ("A B", "A-B")


@pytest.mark.parametrize(
    "stem",
    ["H1_rescan", "H1 rescan 2", "H1-Rescan", "H1_RE-SCAN", "H1 (2)", "H1(2)", "Kopie von H1",
     "Copy of H1", "H1 - Kopie", "H1 - Copy (2)", "H1 copy", "Kopie von H1 (2)", "H1_rescan_3"],
)  # fmt: skip
def test_what_scanners_and_copies_add_is_not_part_of_the_glass(stem):
    assert scan_group(Path(f"{stem}.svs")) == "H1"


@pytest.mark.parametrize("stem", ["H1", "photocopy", "H1copy", "prescan", "(2)", "rescan", "H1 A2"])
def test_names_that_only_resemble_a_copy_are_kept_whole(stem):
    assert scan_group(Path(f"{stem}.svs")) == stem


# Files


def test_slides_are_found_in_all_folders_but_not_the_parts_of_a_mirax_slide(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    write_mirax(tmp_path / "deep/A.mrxs", picture, mpp=0.25)
    (tmp_path / "deep/A/preview.jpg").write_bytes(b"x")
    (tmp_path / "B").mkdir()
    for name in ("B/1.SVS", "B/2.ndpi", "B/notes.txt", "B/._3.svs", "B/4.svs.partial"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash/5.svs").write_bytes(b"x")
    found = [str(path.relative_to(tmp_path)) for path in slide_files(tmp_path)]
    assert found == ["B/1.SVS", "B/2.ndpi", "deep/A.mrxs"]
    assert [path.name for path in unfinished_files(tmp_path)] == ["4.svs.partial"]


def test_a_linked_folder_is_followed_and_a_circle_ends(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/1.svs").write_bytes(b"x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/back").symlink_to(tmp_path / "data")
    assert [str(p.relative_to(tmp_path)) for p in slide_files(tmp_path / "data")] == [
        "data/link/1.svs"
    ]


def test_only_the_wanted_suffixes_are_slides(tmp_path):
    for name in ("1.svs", "2.ndpi", "3.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in slide_files(tmp_path, (".ndpi",))] == ["2.ndpi"]


def test_a_folder_that_cannot_be_read_is_refused_since_its_slides_would_be_missed(
    tmp_path, monkeypatch
):
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def denied(folder: str) -> object:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match="closed: cannot be read .Permission denied"):
        slide_files(tmp_path)
