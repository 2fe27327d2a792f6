"""Names of a sheet find their files, however both are spelt, and re-scans keep one name."""

import unicodedata
from pathlib import Path

import pytest

from her2.importing.labels import legal_id
from her2.importing.matching import match_by_name, scan_group


@pytest.mark.parametrize(
    ("names", "file", "owner"),
    [
        (["H2301234", "H2301234 A1"], "H2301234 A1 HE.svs", "H2301234 A1"),
        (["H2301234 A1"], "H2301234_A1_HE.svs", "H2301234 A1"),
        (["H/2023/01234"], "H-2023-01234 A1.svs", "H/2023/01234"),
        (["H2301234"], "Kopie von H2301234 A1 HE.svs", "H2301234"),
        (["H2301234"], "H2301234 A1 (2).svs", "H2301234"),
        (["Müller 7"], "Mueller_007_HE.svs", "Müller 7"),
        (["Müller 7"], unicodedata.normalize("NFD", "Müller 7 HE.svs"), "Müller 7"),
        (["Müller 7"], unicodedata.normalize("NFD", "Müller 7.svs"), "Müller 7"),
        (["7"], "007.svs", "7"),
        (["H23"], "H2301234.svs", None),
        (["A1"], "H2301234 A1.svs", None),
        (["Пациент 1"], "1.svs", None),
        ([""], "1.svs", None),
    ],
)
def test_a_file_belongs_to_the_longest_name_that_its_words_begin_with(names, file, owner):
    found = match_by_name(names, [Path(file)])
    assert found.files == ({owner: [Path(file)]} if owner else {})
    assert found.unnamed == (() if owner else (Path(file),))


@pytest.mark.parametrize("text", ["Müller", "É1", "Å ß"])
def test_an_id_does_not_depend_on_the_form_of_unicode(text):
    assert legal_id(unicodedata.normalize("NFD", text)) == legal_id(text)


@pytest.mark.parametrize(
    "name", ["A_rescan", "A (2)", "Kopie von A", "A - Kopie (2)", "copy of A_rescan2", "A"]
)
def test_scans_of_one_glass_have_one_name(name):
    assert scan_group(Path(f"{name}.svs")) == "A"
