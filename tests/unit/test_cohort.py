import math
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.cohort.manifest import Cohort, SlideRow, bucket_count, bucket_of
from her2.cohort.reading import read_cohort, read_labels
from her2.config import Task
from her2.core.errors import UserError
from her2.importing.checks import Part, check_files, refuse

SCORE = Task(label="her2", classes={"0": ["0"], "1+": ["1+"], "2+": ["2+"], "3+": ["3+"]})
BINARY = Task(label="her2", classes={"negative": ["0", "1+"], "positive": ["3+"]})
TASKS = {"score": SCORE}


def row(number: int, **changed: object) -> dict[str, object]:
    cells = {
        "slide_id": f"s{number}",
        "path": f"s{number}.svs",
        "patient_id": f"p{number}",
        "her2": "0",
        "mpp": "",
    }
    return cells | changed


def refusal(path: Path, tasks: dict[str, Task] = TASKS) -> str:
    with pytest.raises(UserError) as error:
        read_cohort(path, tasks=tasks)
    return str(error.value)


def cohort_of(ids: list[str]) -> Cohort:
    return Cohort(tuple(SlideRow(i, f"{i}.svs", i, {}) for i in ids), Path())


def test_a_manifest_becomes_typed_rows(write_csv):
    path = write_csv([row(1, mpp="0.25", her2=" 3+ ", site="north", other="x")])
    cohort = read_cohort(path, tasks=TASKS)
    assert cohort.rows == (SlideRow("s1", "s1.svs", "p1", {"her2": "3+"}, mpp=0.25, site="north"),)
    assert cohort.file(cohort.rows[0]) == path.parent / "s1.svs"


def test_relative_paths_start_at_the_root_and_absolute_ones_stay(write_csv, tmp_path):
    path = write_csv([row(1), row(2, path="/data/x.svs")])
    cohort = read_cohort(path, root=tmp_path / "base", tasks=TASKS)
    assert [str(cohort.file(r)) for r in cohort.rows] == [
        f"{tmp_path}/base/s1.svs",
        "/data/x.svs",
    ]


def test_the_order_of_a_manifest_changes_nothing(write_csv):
    rows = [row(n) for n in (3, 1, 2)]
    one = read_cohort(write_csv(rows, "a.csv"), tasks=TASKS)
    two = read_cohort(write_csv(rows[::-1], "b.csv"), tasks=TASKS)
    assert one == two
    assert [r.slide_id for r in one.rows] == ["s1", "s2", "s3"]


def test_a_parquet_manifest_says_the_same(write_csv, tmp_path):
    rows = [row(1, mpp="0.25", her2=""), row(2)]
    table = pa.Table.from_pylist(
        [
            {"slide_id": "s1", "path": "s1.svs", "patient_id": "p1", "her2": None, "mpp": 0.25},
            {"slide_id": "s2", "path": "s2.svs", "patient_id": "p2", "her2": "0", "mpp": None},
        ]
    )
    pa.parquet.write_table(table, tmp_path / "slides.parquet")
    from_parquet = read_cohort(tmp_path / "slides.parquet", tasks=TASKS)
    assert from_parquet == read_cohort(write_csv(rows), tasks=TASKS)


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_the_first_column(write_csv):
    path = write_csv([row(1)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_cohort(path, tasks=TASKS).rows[0].slide_id == "s1"


@pytest.mark.parametrize("cell", ["", "NA", "n/a", "nan", "None", "null", "  "])
def test_a_missing_label_is_legal(write_csv, cell):
    cohort = read_cohort(write_csv([row(1, her2=cell), row(2)]), tasks=TASKS)
    assert [r.labels for r in cohort.rows] == [{}, {"her2": "0"}]


def test_two_slides_of_a_patient_may_agree_or_be_silent(write_csv):
    rows = [row(1, patient_id="p", her2="2+"), row(2, patient_id="p", her2="2+")]
    cohort = read_cohort(write_csv([*rows, row(3, patient_id="p", her2="")]), tasks=TASKS)
    assert len(cohort.rows) == 3


def test_two_tasks_share_a_label_column(write_csv):
    """2+ is a class of one task only, and a value is legal if any task has it."""
    tasks = {"score": SCORE, "binary": BINARY}
    cohort = read_cohort(write_csv([row(1, her2="2+"), row(2, her2="1+")]), tasks=tasks)
    assert [r.labels["her2"] for r in cohort.rows] == ["2+", "1+"]
    assert "'2+' is in no task's classes" in refusal(
        write_csv([row(1, her2="2+")], "b.csv"), {"binary": BINARY}
    )


def test_tasks_of_two_label_columns_read_both(write_csv):
    tasks = {"score": SCORE, "er": Task(label="er", classes={"no": ["0"], "yes": ["1"]})}
    cohort = read_cohort(write_csv([row(1, her2="3+", er="1")]), tasks=tasks)
    assert cohort.rows[0].labels == {"her2": "3+", "er": "1"}
    assert "column 'er' is missing" in refusal(write_csv([row(1)], "b.csv"), tasks)


def test_an_empty_file_is_answered_with_the_columns_to_write(tmp_path):
    (tmp_path / "slides.csv").touch()
    message = refusal(tmp_path / "slides.csv")
    assert "found columns (none)" in message
    for column in ("slide_id", "path", "patient_id", "her2"):
        assert f"column {column!r} is missing" in message


def test_a_manifest_without_a_row_is_refused(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_text("slide_id,path,patient_id,her2\n")
    assert "lists no slides. Write one row per slide" in refusal(path)


def test_a_manifest_that_is_not_there_is_named(tmp_path):
    for name in ("nowhere.csv", "nowhere.parquet"):
        message = refusal(tmp_path / name)
        assert f"{name}: does not exist. Check `cohort.slides`" in message
        assert "`cohort.slides`" in message


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", b'slide_id,path,patient_id,her2\n"s1,s1.svs,p1,0\n', "not a readable table"),
        ("a.csv", b"slide_id,path,patient_id,her2\ns1,\xff\xfe,p1,0\n", "not a readable table"),
        ("a.csv", b"slide_id,path,patient_id,her2\ns1,a,b.svs,p1,0\n", "more cells than"),
        ("a.parquet", b"PAR1 and no more", "not a readable table"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert complaint in message
    assert str(tmp_path / name) in message


ILLEGAL_IDS = ["../up", "a b", "<script>", "a/b", ".hidden", "_", "é", "-x", "a\tb", "a;rm"]


@pytest.mark.parametrize("column", ["slide_id", "patient_id"])
@pytest.mark.parametrize("value", ILLEGAL_IDS)
def test_an_id_that_cannot_be_part_of_a_path_is_refused(write_csv, column, value):
    message = refusal(write_csv([row(1), row(2, **{column: value})]))
    assert f"row 3: column {column!r}: {value!r} is not a legal id" in message
    assert "128 letters, digits" in message


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (("a", "a"), "'a' is used 2 times; ids must be unique"),
        (("Case1", "case1"), "'Case1' and 'case1' differ in nothing but case"),
        (
            ("7", "007"),
            "'7' and '007' differ in nothing but case, spaces, kinds of dashes, leading",
        ),
    ],
)
def test_an_id_is_used_once_in_whatever_spelling(write_csv, ids, words):
    message = refusal(write_csv([row(n, slide_id=name) for n, name in enumerate(ids)]))
    assert f"rows 2, 3, column 'slide_id': {words}" in message
    assert "must be unique" in message


def test_a_label_that_no_task_knows_is_named_with_the_legal_ones(write_csv):
    message = refusal(write_csv([row(1, her2="4+")]))
    assert "row 2, column 'her2': '4+' is in no task's classes" in message
    assert "use 0, 1+, 2+, 3+, or leave the cell empty" in message


@pytest.mark.parametrize("cell", ["0", "50", "nan", "NaN", "-0.5", "inf", "0,25", "20x", "0.04"])
def test_an_absurd_um_per_px_is_refused(write_csv, cell):
    message = refusal(write_csv([row(1, mpp=cell)]))
    assert f"row 2: column 'mpp': {cell!r} is not a um/px" in message
    assert "leave the cell empty" in message


@pytest.mark.parametrize("cell", ["", "NA", "n/a", "none"])
def test_an_empty_um_per_px_is_left_to_the_file(write_csv, cell):
    assert read_cohort(write_csv([row(1, mpp=cell)]), tasks=TASKS).rows[0].mpp is None


def test_a_slide_without_a_path_is_refused(write_csv):
    assert "row 2: column 'path': is empty" in refusal(write_csv([row(1, path=" ")]))


def test_all_problems_of_a_manifest_are_in_one_message(write_csv):
    rows = [
        row(1),
        row(1, path="t1.svs", patient_id="x y"),
        row(2, patient_id="p1", her2="3+"),
        row(3, her2="maybe", mpp="50"),
        row(4, slide_id="../s4", path=""),
    ]
    message = refusal(write_csv(rows))
    assert "7 problem(s)" in message
    for part in (
        "row 3: column 'patient_id': 'x y'",
        "row 5: column 'mpp': '50'",
        "row 6: column 'slide_id': '../s4'",
        "row 6: column 'path'",
        "rows 2, 3, column 'slide_id': 's1'",
        "row 5, column 'her2': 'maybe'",
        "task 'score', column 'her2': 1 patient has slides of different classes: p1 (",
    ):
        assert part in message


def test_a_job_reads_labels_without_judging_them(write_csv):
    path = write_csv([row(1, her2="whatever")])
    assert read_labels(path, labels=("her2",)).rows[0].labels == {"her2": "whatever"}
    assert read_labels(path, labels=()).rows[0].labels == {}


def test_one_file_under_two_ids_an_empty_and_a_missing_one_are_named_at_once(
    write_csv, tmp_path, drawn_slide
):
    shutil.copy(drawn_slide, tmp_path / "s1.svs")
    shutil.copy(drawn_slide, tmp_path / "s2.svs")
    (tmp_path / "s3.svs").touch()
    cohort = read_cohort(write_csv([row(n) for n in (1, 2, 3, 4)]), tasks=TASKS)
    with pytest.raises(UserError) as error:
        refuse(check_files([Part(cohort)]))
    message = str(error.value)
    assert "slides s1, s2 are the same file; keep one row" in message
    assert "slide 's3'" in message
    assert "0 bytes" in message
    assert "slide 's4'" in message
    (tmp_path / "s2.svs").unlink()
    refuse(check_files([Part(Cohort(cohort.rows[:1], cohort.root))]))


@pytest.mark.parametrize(
    "content", [b"this is not a slide", bytes(5000), b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF"]
)
@pytest.mark.parametrize("suffix", [".svs", ".PNG", ".tiff"])
def test_a_file_that_is_no_slide_is_named(tmp_path, content, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    cohort = Cohort((SlideRow("a", f"a{suffix}", "p", {}),), tmp_path)
    with pytest.raises(UserError, match="slide 'a'.*not a slide that .* can open"):
        refuse(check_files([Part(cohort)]))


IDS = st.lists(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,8}\Z"), min_size=1, unique=True)


@given(IDS, st.integers(1, 8), st.randoms(use_true_random=False))
def test_a_bucket_does_not_depend_on_the_order_of_slides(ids, size, generator):
    shuffled = ids.copy()
    generator.shuffle(shuffled)
    one, two = (
        {name: {r.slide_id for r in rows} for name, rows in cohort_of(i).buckets(size).items()}
        for i in (ids, shuffled)
    )
    assert one == two


@given(IDS, st.integers(1, 8))
def test_every_slide_is_in_one_bucket_that_its_name_finds_again(ids, size):
    cohort = cohort_of(sorted(ids))
    buckets = cohort.buckets(size)
    assert sorted(r.slide_id for rows in buckets.values() for r in rows) == sorted(ids)
    assert all(cohort.bucket(name) == rows for name, rows in buckets.items())
    assert all(rows for rows in buckets.values())


@given(IDS, st.integers(0, 6))
def test_a_slide_keeps_its_bucket_when_others_come(ids, power):
    before = {i: bucket_of(i, 2**power) for i in ids[: len(ids) // 2]}
    after = {i: bucket_of(i, 2**power) for i in ids}
    assert before.items() <= after.items()
    assert all(re.fullmatch(rf"\d{{4}}-of-{2**power:04d}", name) for name in after.values())


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_the_number_of_buckets_is_the_smallest_power_of_two_that_holds_all(slides, size):
    count = bucket_count(slides, size)
    assert count & (count - 1) == 0
    assert slides <= count * size
    assert count == 1 or slides > count // 2 * size


def test_slides_spread_evenly_over_buckets():
    """4096 slides in 64 buckets give 64 each, within four standard deviations (binomial)."""
    cohort = cohort_of([f"case-{n:05d}" for n in range(4096)])
    sizes = [len(rows) for rows in cohort.buckets(64).values()]
    assert len(sizes) == 64
    spread = 4 * math.sqrt(4096 * (1 / 64) * (63 / 64))
    assert max(abs(size - 64) for size in sizes) < spread


def test_a_digest_of_columns_sees_those_columns_only():
    def digest(changed: dict, *columns: str) -> str:
        one = SlideRow(
            **({"slide_id": "a", "path": "a", "patient_id": "p", "labels": {}} | changed)
        )
        return Cohort((one,), Path()).digest((one,), columns)

    plain = digest({}, "slide_id", "mpp")
    assert digest({"labels": {"her2": "0"}}, "slide_id", "mpp") == plain
    assert digest({"mpp": 0.5}, "slide_id", "mpp") != plain
    assert digest({}, "mpp", "slide_id") == plain
    assert digest({"labels": {"her2": "0"}}, "her2") != digest({}, "her2")
