import re
from pathlib import Path

import polars as pl
import pytest

from her2.cohort.audit import audit_cohort, read_cohort_table, tabulate_cohort
from her2.cohort.manifest import Cohort, SlideRow
from her2.config.jobs import AuditSpec, CohortSpec
from her2.core.errors import UserError
from her2.storage.entries import TileEntry, check_excluded, write_entries
from tests.unit.tile_makers import slide_facts

GRIDS = ("224px-0.5mpp", "96px-1mpp")


def entry(number: int, status="ok", **changed: object) -> TileEntry:
    reason = None if status == "ok" else f"reason {number}"
    facts = slide_facts(**{"fingerprint": f"print-{number}"} | changed)
    return TileEntry(status, reason, f"{number:064x}", 10 + number, facts)


def audit(folder: Path, entries: dict[str, TileEntry], **changed: object) -> pl.DataFrame:
    """Write two buckets of the same entries for two grids."""
    names = sorted(entries)
    rows = tuple(
        SlideRow(name, f"{name}.svs", f"p-{name}", {"her2": "0"} if name != names[-1] else {})
        for name in names
    )
    buckets = ("0000-of-0002", "0001-of-0002")
    for grid in GRIDS:
        for part, bucket in enumerate(buckets):
            chosen = {name: entries[name] for name in names[part::2]}
            write_entries(folder / "tiles" / grid / f"{bucket}.json", chosen)
    cohort = Cohort(rows, folder)
    of = {"rows": "", "buckets": buckets, "grids": GRIDS, "labels": ("her2",)}
    spec = AuditSpec(**of | {"max_excluded": 0.2} | changed)
    audit_cohort(spec, cohort, folder / "tiles", folder / "cohort" / "audited.parquet")
    return tabulate_cohort(CohortSpec(**of), cohort, folder / "tiles", folder / "cohort")


def refusal(folder: Path, entries: dict[str, TileEntry], **changed: object) -> str:
    with pytest.raises(UserError) as error:
        audit(folder, entries, **changed)
    assert not (folder / "cohort" / "audited.parquet").exists()
    return str(error.value)


def good(count: int) -> dict[str, TileEntry]:
    return {f"s{number}": entry(number) for number in range(count)}


def test_the_table_has_a_row_for_each_slide_and_grid(tmp_path):
    table = audit(tmp_path, good(5))
    assert table.select("slide_id", "grid").rows() == [
        (f"s{number}", grid) for number in range(5) for grid in GRIDS
    ]
    first = table.row(0, named=True)
    assert (first["patient_id"], first["label_her2"], first["tiles"]) == ("p-s0", "0", 10)
    assert table["label_her2"].to_list()[-1] is None


def test_what_later_checks_read_is_one_row_a_slide_without_site_or_scale(tmp_path):
    audit(tmp_path, good(3) | {"bad": TileEntry(status="failed", reason="x")}, max_excluded=0.5)
    table = pl.read_parquet(tmp_path / "cohort" / "audited.parquet")
    assert table.columns == [
        *("slide_id", "patient_id", "fingerprint", "label_her2"),
        *(f"excluded_{grid}" for grid in GRIDS),
    ]
    assert table.rows()[0] == ("bad", "p-bad", None, "0", "x", "x")
    assert table[f"excluded_{GRIDS[0]}"].to_list()[1:] == [None] * 3
    assert table["fingerprint"].to_list()[1:] == ["print-0", "print-1", "print-2"]
    assert table["label_her2"].to_list() == ["0", "0", "0", None]


def test_the_table_is_read_as_it_was_written_and_people_have_a_csv(tmp_path):
    table = audit(tmp_path, good(3))
    assert read_cohort_table(tmp_path / "cohort").equals(table)
    csv = (tmp_path / "cohort" / "slides.csv").read_text().splitlines()
    assert len(csv) == 1 + 3 * 2
    assert csv[0].startswith("slide_id,patient_id,label_her2,")


def test_a_slide_that_cannot_be_used_stays_in_the_table_with_its_reason(tmp_path):
    entries = good(9) | {"bad": TileEntry(status="failed", reason="cut off")}
    row = audit(tmp_path, entries).filter(slide_id="bad").row(0, named=True)
    assert (row["status"], row["reason"], row["tiles"]) == ("failed", "cut off", 0)


def test_one_content_under_two_ids_stops_the_run(tmp_path):
    entries = good(4) | {"twin": entry(9, fingerprint="print-2"), "other": entry(8)}
    message = refusal(tmp_path, entries)
    assert "keep one row of each" in message
    assert re.findall(r"^  - (.*)$", message, re.MULTILINE) == ["s2 = twin"]


def test_slides_that_were_never_read_are_no_twins(tmp_path):
    bad = {name: TileEntry(status="failed", reason="x") for name in ("a", "b")}
    assert len(audit(tmp_path, good(8) | bad)) == 20


def test_more_unusable_slides_than_allowed_stop_the_run_by_name(tmp_path):
    entries = good(7) | {f"bad{n}": entry(n, "excluded") for n in (20, 21, 22)}
    message = refusal(tmp_path, entries, max_excluded=0.2)
    assert message.startswith(f"3 of 10 slides cannot be used (grid {GRIDS[0]}), more than")
    assert "cohort.max_excluded 0.2; fix them, or raise the limit" in message
    for number in (20, 21, 22):
        assert f"  - bad{number}: reason {number}" in message
    assert "s1" not in message
    assert len(audit(tmp_path, entries, max_excluded=0.3)) == 20


@pytest.mark.parametrize(
    ("bad", "total", "limit", "stops"),
    [
        (0, 10, 0.0, False),
        (1, 10, 0.0, True),
        (2, 10, 0.2, False),
        (3, 10, 0.2, True),
        (29, 100, 0.29, False),  # 0.29 * 100 is 28.999... in floating point
        (30, 100, 0.29, True),
        (9, 10, 1.0, False),
        (10, 10, 1.0, True),  # nothing is left to work on
    ],
)
def test_the_limit_is_the_largest_share_that_may_be_left_out(bad, total, limit, stops):
    reasons = {f"s{number}": "x" for number in range(bad)}
    if stops:
        with pytest.raises(UserError, match=f"{bad} of {total} slides"):
            check_excluded(reasons, total=total, limit=limit, where="here")
    else:
        check_excluded(reasons, total=total, limit=limit, where="here")


def test_an_absent_or_broken_file_of_entries_is_named(tmp_path):
    audit(tmp_path, good(4))
    path = tmp_path / "tiles" / GRIDS[1] / "0001-of-0002.json"
    spec = AuditSpec(rows="", buckets=("0001-of-0002",), grids=GRIDS, labels=(), max_excluded=1.0)
    damaged = {
        "Delete it and run snakemake again": lambda: path.write_text("{"),
        f"does not exist. Make it again with `snakemake --cores 1 {path}": path.unlink,
    }
    for message, damage in damaged.items():
        damage()
        with pytest.raises(UserError, match=re.escape(message)) as error:
            audit_cohort(spec, Cohort((), tmp_path), tmp_path / "tiles", tmp_path / "out")
        assert str(path) in str(error.value)


def test_an_absent_table_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="Run `snakemake` up to the cohort's table"):
        read_cohort_table(tmp_path)
