"""The published protocol runs beside the sound one, labelled, and never mixes with it."""

import polars as pl

from tests.workflow.project import Project


def test_the_published_protocol_is_evaluated_beside_the_sound_one(project: Project) -> None:
    before = (project.folder / "results/evaluation/score/tiny/abmil/metrics.csv").read_text()
    project.edit(published_protocol=True)
    run = project.snakemake()
    assert run.code == 0, run.output
    assert run.work["embedded"] == []
    assert run.work["trained"] == ["r0f0", "r0f1"]  # those of the other protocol alone
    folder = project.folder / "results/evaluation/score/tiny"
    assert (folder / "abmil/metrics.csv").read_text() == before
    table = pl.read_parquet(folder / "abmil.as-published/metrics.parquet")
    counted = table.filter(pl.col("level") == "bag")
    assert counted["n"].unique().to_list() == [2 * 1600]
    assert counted["low"].null_count() == len(counted)  # bags of a slide are not independent
    assert "slide" in table["level"].to_list()
    page = (project.folder / "results/report/report.html").read_text()
    assert "Effect of the evaluation protocol" in page


def test_the_published_folds_split_slides_and_the_sound_ones_patients(project: Project) -> None:
    rows = project.rows()
    second = rows[0].split(",")  # a second slide of the first patient
    project.write_rows([*rows, ",".join(["spare-a", "slides/spare-a.svs", *second[2:]])])
    project.edit(published_protocol=True)
    run = project.snakemake("train")
    assert run.code == 0, run.output
    sound = pl.read_parquet(project.folder / "results/folds/score.parquet")
    published = pl.read_parquet(project.folder / "results/folds/score.as-published.parquet")
    assert set(published["role"]) == {"train", "test"}
    tested = published.filter(pl.col("role") == "test")
    assert sorted(tested["slide_id"]) == sorted(row.split(",")[0] for row in project.rows())
    parts = sound.group_by("repeat", "fold", "patient_id").agg(pl.col("role").n_unique())
    assert parts["role"].to_list() == [1] * len(parts)
