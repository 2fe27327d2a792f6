"""Seeded fuzzing of sheets: each is read as it was written, or refused with a place in it.

HER2_FUZZ=10000 sets how many inputs each test tries; the nightly tests try more by themselves.
"""

import csv
import io
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from her2.cohort.manifest import Cohort
from her2.cohort.reading import read_cohort, read_labels
from her2.config import NAME_PATTERN, PatchesSection, Task
from her2.core.errors import UserError
from her2.core.spelling import folded_id
from her2.pretraining.formats import list_csv

FEW = int(os.environ.get("HER2_FUZZ", "400"))
MANY = pytest.param(20_000, marks=[pytest.mark.nightly, pytest.mark.campaign])
SOME = pytest.param(4_000, marks=[pytest.mark.nightly, pytest.mark.campaign])

TASKS = {"score": Task(label="her2", classes={"0": ["0"], "1+": ["1+"], "3+": ["3+", "3"]})}
NAMED = {"ki67": "evaluation.covariates"}
HEADER = ("slide_id", "path", "patient_id", "her2", "mpp", "site", "split", "ki67", "note")
ROWS = tuple(
    (f"S-{n}", f"slides/{n}.svs", f"P-{n // 2}", ("0", "1+", "3+")[n // 2 % 3], "0.25", "Köln",
     ("train", "test", "tune")[n // 2 % 3], str(n), "")
    for n in range(9)
)  # fmt: skip
CELLS = (
    "", " ", "NA", "nan", "None", "[Not Available]", "-", "0", "00", "0.0", "1e5", "1.2E+11", "inf",
    "nan ", "p-1", "P\u20111", "P-1 ", "P\u22121", "\uff2b\uff2f\uff2c\uff2e", "KÖLN", "Ko\u0308ln",
    "\u200b", "\ufeff", "\xa0", "a,b", "a;b", 'a"b', '"', "'", "a\nb", "a\rb", "\t", "\x00",
    "\x1b[31m", "\u2028", "=1+1", "../..", "~", "$HOME", "{x}", "<y>", "slides/1.svs",
    "./slides/1.svs", "S-1", "s-1", "S-1.0", "3+", "3", "2", "Test", "fold 1", "0,25", "0_25",
    "\u0663", "x" * 200, "x" * 140_000, "\U0001f9ec", "\ud7ff", "slide_id", "MPP",
)  # fmt: skip
PLACED = re.compile(
    r"\brows? \d|\bcolumns? '|found columns|lists no slides|\btable\b|`tasks\.|\btask '"
)


def cells(generator: random.Random) -> list[list[str]]:
    """A manifest in which a few cells, rows or columns are not as they should be."""
    table = [list(HEADER), *(list(row) for row in ROWS)]
    for _ in range(generator.randint(0, 4)):
        row = generator.choice(table)
        match generator.randrange(9):
            case 0 | 1 | 2 | 3 if row:
                row[generator.randrange(len(row))] = generator.choice(CELLS)
            case 4:
                del row[generator.randrange(len(row) + 1) :]
            case 5:
                row.insert(generator.randrange(len(row) + 1), generator.choice(CELLS))
            case 6:
                table.insert(generator.randrange(len(table) + 1), generator.choice(table).copy())
            case 7:
                table.insert(generator.randrange(len(table) + 1), [""] * generator.randrange(12))
            case _:
                generator.shuffle(row)
    return table


def text(generator: random.Random) -> bytes:
    """A manifest as a file in some dialect and encoding, perhaps damaged."""
    stream = io.StringIO(newline="")
    writer = csv.writer(
        stream,
        delimiter=generator.choice(",,,,;\t|"),
        lineterminator=generator.choice(["\n", "\r\n", "\r"]),
        quoting=generator.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    )
    writer.writerows(cells(generator))
    encoding = generator.choice(
        ["utf-8"] * 5 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "utf-7"]
    )
    return damaged(generator, stream.getvalue().encode(encoding, "replace"))


def damaged(generator: random.Random, content: bytes) -> bytes:
    match generator.randrange(12):
        case 0:
            return content[: generator.randrange(len(content) + 1)]
        case 1:
            at = generator.randrange(len(content) + 1)
            return content[:at] + generator.randbytes(generator.randint(1, 9)) + content[at:]
        case 2:
            found = bytearray(content)
            for _ in range(generator.randint(1, 5)):
                found[generator.randrange(len(found))] ^= 1 << generator.randrange(8)
            return bytes(found)
        case 3:
            at, to = sorted(generator.randrange(len(content) + 1) for _ in range(2))
            return content[:at] + content[to:]
    return content


def parquet(generator: random.Random) -> bytes:
    """A Parquet manifest with a few columns of another type, order, name or value."""
    columns = {
        name: pa.array([row[at] for row in ROWS], pa.string()) for at, name in enumerate(HEADER)
    }
    columns["mpp"] = pa.array([0.25] * len(ROWS))
    columns["ki67"] = pa.array(range(len(ROWS)))
    names, values = list(columns), list(columns.values())
    n = len(ROWS)
    others: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.array([float(i) for i in range(n)]),
        lambda: pa.array(range(n)),
        lambda: pa.nulls(n),
        lambda: pa.array([i % 2 == 0 for i in range(n)]),
        lambda: pa.array([[str(i)] for i in range(n)]),
        lambda: pa.array([bytes([i, 255]) for i in range(n)]),
        lambda: pa.array(range(n), pa.int32()).cast(pa.date32()),
        lambda: pa.array([{"a": i} for i in range(n)]),
        lambda: pa.array([str(i) for i in range(n)]).dictionary_encode(),
        lambda: pa.array([generator.choice(CELLS) for _ in range(n)]),
        lambda: pa.array([None if i % 3 else "0" for i in range(n)]),
    )
    for _ in range(generator.randint(0, 3)):
        at = generator.randrange(len(names))
        match generator.randrange(4):
            case 0 | 1:
                values[at] = generator.choice(others)()
            case 2:
                names[at] = generator.choice([*HEADER, "MPP", "", " site", "a.b"])
            case 3:
                names.append(generator.choice(HEADER))
                values.append(values[at])
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(values, names), stream)
    return damaged(generator, stream.getvalue())


def attempt(read: Callable[[], Cohort]) -> Cohort | None:
    try:
        return read()
    except UserError as error:
        message = str(error)
        assert PLACED.search(message), message
        assert all(line.isprintable() for line in message.split("\n")), message
        return None


def check(cohort: Cohort) -> None:
    """What was read has legal ids, patients that do not look alike, and labels of a task."""
    rows = cohort.rows
    assert rows
    assert len({folded_id(row.slide_id) for row in rows}) == len(rows)
    patients = {row.patient_id for row in rows}
    assert len(set(map(folded_id, patients))) == len(patients)
    assert all(re.fullmatch(NAME_PATTERN, row.slide_id + row.patient_id) for row in rows)
    assert {value for row in rows for value in row.labels.values()} <= {"0", "1+", "3+", "3"}
    assert all(row.mpp is None or 0.05 <= row.mpp <= 20 for row in rows)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_a_manifest_is_read_as_written_or_refused_with_the_place(tmp_path: Path, count: int):
    path, read, written = tmp_path / "slides.csv", 0, 0
    for seed in range(count):
        content = text(random.Random(seed))
        path.write_bytes(content)
        try:
            found = attempt(lambda: read_cohort(path, tasks=TASKS, named=NAMED, fixed_split=True))
            job = attempt(lambda: read_labels(path, labels=("her2",), named=tuple(NAMED)))
            if found is None:
                continue
            assert job == found
            check(found)
            read += 1
            if b"\0" in content or b";" in content or b"\t" in content or b"|" in content:
                continue
            header, *lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
            at = [name.strip() for name in header]
            full = {n: line for n, line in enumerate(lines, start=2) if "".join(line).strip()}
            assert {row.number for row in found.rows} == set(full)
            for row in found.rows:
                for name in ("slide_id", "path", "patient_id"):
                    assert row.value(name) == full[row.number][at.index(name)].strip()
                label = full[row.number][at.index("her2")].strip()
                assert row.labels.get("her2", label) == label
            written += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert read > count / 20
    assert written > count / 40


@pytest.mark.parametrize("count", [FEW // 4, SOME])
def test_a_parquet_manifest_is_read_or_refused_with_the_place(tmp_path: Path, count: int):
    path, read = tmp_path / "slides.parquet", 0
    for seed in range(count):
        path.write_bytes(parquet(random.Random(seed)))
        try:
            found = attempt(lambda: read_cohort(path, tasks=TASKS, named=NAMED))
            if found is not None:
                check(found)
                read += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert read > count / 20


@pytest.mark.parametrize("count", [FEW // 4, SOME])
def test_a_sheet_of_patches_is_listed_or_refused_with_the_place(tmp_path: Path, count: int):
    path = tmp_path / "labels.csv"
    section = PatchesSection(format="csv", path=path)
    there = 0
    for seed in range(count):
        content = text(random.Random(seed))
        for name, of_patches in ((b"her2", b"label"), (b"patient_id", b"case_id")):
            content = content.replace(name, of_patches)
        path.write_bytes(content)
        try:
            rows, problems = list_csv(section)
            there += len(rows) == len(ROWS)
            assert problems or not rows  # the images do not exist
            assert all(re.search("column|row|case_id|: |file", one) for one in problems)
            assert all(one.isprintable() for one in problems)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert there > count / 20
