"""A feature file is taken for a slide only where nobody could mean another one."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from her2.exchange.matching import match_given

UUID = "B34C267B-CAAA-4AB6-AD5C-276C26F997A1"
OTHER_UUID = "0D1E2F3A-0000-4AB6-AD5C-276C26F997A1"
BARCODE = "TCGA-A1-A0SB-01Z-00-DX1"


def matched(slides, files):
    """Match names; a slide's file may be None."""
    paths = {one: None if path is None else Path("/slides") / path for one, path in slides.items()}
    return match_given(paths, [Path("/features") / file for file in files])


def pairs(found):
    return {slide_id: str(path.relative_to("/features")) for slide_id, path in found.files.items()}


@pytest.mark.parametrize(
    ("slides", "files", "expected"),
    [
        ({"A-001": None}, ["A-001.h5"], {"A-001": "A-001.h5"}),
        ({"A-001": "x/scan 17.svs"}, ["scan 17.h5"], {"A-001": "scan 17.h5"}),
        ({"A-001": "scan.svs"}, ["A-001.h5", "scan.h5"], {"A-001": "A-001.h5"}),
        ({"A-001": "s.ome.tif"}, ["s.h5"], {"A-001": "s.h5"}),
        ({"A-001": "s.svs"}, ["s.svs.h5"], {"A-001": "s.svs.h5"}),
        ({"A-001": "s.svs"}, ["deep/er/s.pt"], {"A-001": "deep/er/s.pt"}),
        ({"A-001": None}, ["a_1.h5"], {"A-001": "a_1.h5"}),
        ({"A.1": None, "A.2": None}, ["A.1.h5", "A.2.h5"], {"A.1": "A.1.h5", "A.2": "A.2.h5"}),
        ({"A-1": None, "A-01": None}, ["A-1.h5", "A-01.h5"], {"A-1": "A-1.h5", "A-01": "A-01.h5"}),
        # the stem of one slide is the id of another: ids come first, and none is guessed
        ({"A": "B.svs", "B": "A.svs"}, ["A.h5", "B.h5"], {"A": "A.h5", "B": "B.h5"}),
        ({"A": "1.svs", "1": None}, ["1.h5"], {"1": "1.h5"}),
        # barcodes
        ({BARCODE: None}, [f"{BARCODE}.{UUID}.h5"], {BARCODE: f"{BARCODE}.{UUID}.h5"}),
        ({"P1": f"{BARCODE}.{UUID}.svs"}, [f"{BARCODE}.h5"], {"P1": f"{BARCODE}.h5"}),
        ({"P1": f"{BARCODE}.{UUID}.svs"}, [f"{BARCODE}.{UUID.lower()}.h5"],
         {"P1": f"{BARCODE}.{UUID.lower()}.h5"}),
        ({BARCODE.lower(): None}, [f"{BARCODE}.{UUID}.h5"],
         {BARCODE.lower(): f"{BARCODE}.{UUID}.h5"}),
        ({"P1": f"{BARCODE}.{UUID}.svs"}, [f"{BARCODE}.{OTHER_UUID}.h5"], {}),
        ({"P1": "TCGA-A1-A0SB-01Z-00-DX2.svs"}, [f"{BARCODE}.h5"], {}),
        ({"TCGA-A1-A0SB": None}, [f"{BARCODE}.h5"], {}),
        ({"P1": f"{BARCODE}.{UUID}.svs", "P2": f"{BARCODE}.{OTHER_UUID}.svs"},
         [f"{BARCODE}.{UUID}.h5"], {"P1": f"{BARCODE}.{UUID}.h5"}),
    ],
)  # fmt: skip
def test_a_file_is_matched_by_id_then_stem_then_barcode(slides, files, expected):
    found = matched(slides, files)
    assert pairs(found) == expected
    assert found.ambiguous == {}
    assert set(found.without) == set(slides) - set(expected)
    assert {path.name for path in found.unused} == {
        Path(file).name for file in files if file not in expected.values()
    }


@pytest.mark.parametrize(
    ("slides", "files", "refused", "said"),
    [
        ({"A": None}, ["uni/A.h5", "conch/A.h5"], {"A"}, "2 feature files have its slide id: "
         "/features/uni/A.h5, /features/conch/A.h5; name the folder of one encoder"),
        ({"A": None}, ["h5_files/A.h5", "pt_files/A.pt"], {"A"}, "h5_files/A.h5, /features/pt_f"),
        ({"A": "x/1.svs", "B": "y/1.svs"}, ["1.h5"], {"A", "B"},
         "the feature file /features/1.h5 could be that of the slides A, B, which have the same "
         "name of the slide's file; rename it"),
        ({"A_1": None, "a-01": None}, ["A 1.h5"], {"A_1", "a-01"}, "have the same slide id"),
        ({"P1": f"{BARCODE}.{UUID}.svs", "P2": f"{BARCODE}.{OTHER_UUID}.svs"}, [f"{BARCODE}.h5"],
         {"P1", "P2"}, "have the same TCGA barcode"),
        ({BARCODE: None}, [f"{BARCODE}.{UUID}.h5", f"{BARCODE}.{OTHER_UUID}.h5"], {BARCODE},
         "2 feature files have its TCGA barcode"),
    ],
)  # fmt: skip
def test_what_two_slides_or_two_files_could_mean_is_refused_by_name(slides, files, refused, said):
    found = matched(slides, files)
    assert set(found.ambiguous) == refused
    assert all(said in words for words in found.ambiguous.values())
    assert found.files == {}
    assert found.unused == found.without == ()


def test_a_slide_with_a_file_of_its_own_keeps_it_and_the_other_is_refused():
    found = matched({"A": "x/1.svs", "B": "y/1.svs"}, ["A.h5", "1.h5"])
    assert pairs(found) == {"A": "A.h5"}
    assert set(found.ambiguous) == {"B"}


def test_what_belongs_to_nobody_is_told_on_both_sides():
    found = matched({"A": None, "B": None}, ["A.h5", "C.h5", "D.h5", ".h5", "---.h5"])
    assert found.without == ("B",)
    assert [path.name for path in found.unused] == ["C.h5", "D.h5", ".h5", "---.h5"]


NAMES = st.text(st.sampled_from("aA01-_ ."), min_size=1, max_size=5)


@given(
    st.dictionaries(NAMES, st.none() | NAMES.map(lambda name: f"{name}.svs"), max_size=6),
    st.lists(NAMES.map(lambda name: f"{name}.h5"), max_size=6, unique=True),
)
@settings(max_examples=100, deadline=None)
def test_every_slide_and_file_has_one_fate_in_whatever_order_they_come(slides, files):
    found = matched(slides, files)
    fates = [*found.files, *found.without, *found.ambiguous]
    assert sorted(fates) == sorted(slides)
    assert len(set(found.files.values())) == len(found.files), "no file is taken twice"
    assert not set(found.files.values()) & set(found.unused)
    again = matched(dict(reversed(slides.items())), files[::-1])
    assert (again.files, set(again.ambiguous)) == (found.files, set(found.ambiguous))
