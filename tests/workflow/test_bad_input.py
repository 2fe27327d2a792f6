"""A user's mistake ends in one message and no traceback; a bad slide stops nothing else."""

import os
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.workflow.project import Project


def refused(project: Project, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """What a run prints that must not begin any job."""
    run = project.snakemake(*arguments, prefix=prefix)
    assert run.code != 0
    assert "Traceback" not in run.output
    assert not run.rules
    return run.output


def test_a_misspelt_key_is_named_with_the_right_one(project: Project) -> None:
    project.edit(folds={"nunber": 5})
    message = refused(project)
    assert "folds.nunber: unknown key" in message
    assert "did you mean 'number'" in message


def test_folds_that_the_cohort_cannot_have_are_refused_with_what_would_work(
    project: Project,
) -> None:
    project.edit(folds={"sites": "leave_one_out", "number": 5})
    message = refused(project)
    assert re.search(r"are of (\d) \(.*\); set folds.number to \1\.", message)


def test_all_problems_of_a_manifest_come_at_once(project: Project) -> None:
    rows = project.rows()
    project.write_rows(
        [
            *rows,
            "../escape,slides/a.svs,p1,0,north",
            "<script>,slides/a.svs,p2,0,north",
            f"{rows[0].split(',')[0]},slides/a.svs,p3,0,north",
            "fine,slides/a.svs,p4,5+,north",
        ]
    )
    message = refused(project)
    for part in ("'../escape' is not a legal id", "'<script>' is not", "is used 2 times", "'5+'"):
        assert part in message


def test_missing_files_are_all_named(project: Project) -> None:
    project.write_rows([*project.rows(), "gone-a,slides/gone-a.svs,g,0,north",
                        "gone-b,slides/gone-b.svs,g,0,north"])  # fmt: skip
    message = refused(project)
    assert "slides/gone-a.svs" in message
    assert "slides/gone-b.svs" in message


def test_a_slide_that_snakemake_would_take_for_a_pattern_is_refused_by_its_row(
    project: Project,
) -> None:
    """In a finished project the old slide's features would stand under the row of the new one."""
    slide = next((project.folder / "slides").glob("*.svs"))
    shutil.copyfile(slide, slide.with_name("S1{rescan}.svs"))
    header, first, *rows = (project.folder / "slides.csv").read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index("path")] = "slides/S1{rescan}.svs"
    (project.folder / "slides.csv").write_text("\n".join([header, ",".join(cells), *rows]))
    message = refused(project)
    assert "row 2: column 'path': 'slides/S1{rescan}.svs' contains { }" in message


def test_a_key_twice_is_refused_before_snakemake_drops_the_first(project: Project) -> None:
    with (project.folder / "config.yaml").open("a") as stream:
        stream.write("heads: {mean: {}}\n")
    message = refused(project)
    assert re.search(r"config\.yaml: .*the key 'heads' is there twice, first in line \d+", message)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_read_only_results_folder_is_named(project: Project) -> None:
    results = project.folder / "results"
    shutil.rmtree(results)
    results.mkdir(mode=0o555)
    # Root may write anywhere; without its capabilities it is a user like any other.
    drop = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()
    try:
        message = refused(project, prefix=drop)
    finally:
        results.chmod(0o755)
    assert "results: 'results' cannot be written" in message


def test_one_class_with_fewer_patients_than_folds_says_what_would_work(project: Project) -> None:
    project.edit(folds={"number": 9})
    run = project.snakemake()
    assert run.code != 0
    assert "folds.number 9 needs 9 patients in each class" in run.output
    assert "Set folds.number to 6, or merge classes" in run.output
    assert "Traceback" not in run.output
    assert set(run.work["trained"]) == set()


def test_bad_slides_are_reported_and_the_good_ones_go_on(project: Project) -> None:
    folder = project.folder / "slides"
    whole = next(folder.glob("demo-*.svs")).read_bytes()
    (folder / "text.svs").write_text("this is not a slide\n" * 50)
    (folder / "empty.svs").write_bytes(b"")
    (folder / "cut.svs").write_bytes(whole[: len(whole) // 3])
    bad = {"text", "empty", "cut"}
    project.write_rows([*project.rows(), *(f"{n},slides/{n}.svs,p-{n},0,north" for n in bad)])
    run = project.snakemake()
    assert run.code == 0, run.output
    table = pl.read_parquet(project.folder / "results/cohort/slides.parquet")
    unusable = table.filter(pl.col("status") != "ok")
    assert set(unusable["slide_id"]) == bad
    assert unusable["reason"].str.len_chars().min() > 10
    page = (project.folder / "results/report/report.html").read_text()
    for name in bad:
        assert name in page
    assert run.work["embedded"] == []


def test_too_many_bad_slides_stop_the_run_and_are_named(project: Project) -> None:
    project.edit(cohort={"max_excluded": 0.0})
    (project.folder / "slides/text.svs").write_text("this is not a slide\n" * 50)
    project.write_rows([*project.rows(), "text,slides/text.svs,p-text,0,north"])
    run = project.snakemake()
    assert run.code != 0
    assert "1 of 13 slides cannot be used" in run.output
    assert "text: not a slide" in run.output


def test_a_class_without_usable_patients_stops_the_run_at_the_folds(project: Project) -> None:
    """Before, the run stopped at training, after all embedding."""
    project.edit(cohort={"max_excluded": 0.5})  # of slides; and the class "low" keeps one patient
    rows = [row.split(",") for row in project.rows()]
    lost = [row[0] for row in rows if row[3] in ("0", "1+")][1:]
    for name in lost:
        (project.folder / f"slides/{name}.svs").write_text("this is not a slide\n" * 50)
    run = project.snakemake()
    assert run.code != 0
    assert "Traceback" not in run.output
    assert "1 of 6 patients usable" in run.output
    advice = re.search(
        r"replace or repair one of the slides ((?:demo-[0-9]+-a(?:, )?)+)", run.output
    )
    assert advice
    assert set(advice[1].split(", ")) < set(lost)  # another slide of the survivor's fold is no help
    assert run.rules["audit_cohort"] == 1
    assert run.rules["train_folds"] == 0


def test_paths_with_spaces_and_quotes_are_quoted(project: Project, tmp_path: Path) -> None:
    odd = tmp_path / "a b'c; touch hacked"
    shutil.copytree(project.folder / "slides", odd / "slides")
    project.edit(cohort={"root": str(odd)}, results="my results", cache="my cache")
    run = project.snakemake("features")
    assert run.code == 0, run.output
    assert not (project.folder / "hacked").exists()
    assert (project.folder / "my results/cohort/slides.csv").exists()
