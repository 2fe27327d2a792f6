"""Several training seeds in a real run: what they add, and what they leave as it was."""

from pathlib import Path

import polars as pl
import pytest

from tests.workflow.project import Project


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_seeds_are_evaluated_together_and_the_first_stays_as_it_was(project: Project) -> None:
    evaluation = project.folder / "results/evaluation/score/tiny"
    models = project.folder / "results/models/score/tiny/abmil"
    first = files(models, "r0f[01]/*")
    metrics = (evaluation / "abmil/metrics.csv").read_text()
    alone = pl.read_parquet(evaluation / "abmil/seeds.parquet")
    assert set(alone["note"]) == {"one training seed"}

    project.edit(training={"seeds": 2}, published_protocol=True)
    run = project.snakemake()
    assert run.code == 0, run.output
    # Those of the published protocol are all new.
    assert run.work["trained"] == ["r0f0", "r0f0s1", "r0f0s1", "r0f1", "r0f1s1", "r0f1s1"]
    assert files(models, "r0f[01]/*") == first
    assert sorted(path.name for path in models.glob("*.json")) == [
        "r0f0-r0f1.json", "r0f0s1-r0f1s1.json",
    ]  # fmt: skip
    spread = pl.read_parquet(evaluation / "abmil/seeds.parquet")
    macro = spread.filter((pl.col("level") == "patient") & (pl.col("class") == "macro"))
    assert macro["seeds"].to_list() == [2]
    low, high = macro["lowest"][0], macro["highest"][0]
    assert macro["sd"][0] == pytest.approx((high - low) / 2**0.5)
    found = pl.read_parquet(evaluation / "abmil/metrics.parquet").filter(
        (pl.col("level") == "patient") & (pl.col("metric") == "auc") & (pl.col("class") == "macro")
    )
    assert found["value"][0] == pytest.approx((low + high) / 2)
    bags = pl.read_parquet(evaluation / "abmil.as-published/metrics.parquet")
    assert bags.filter(pl.col("level") == "bag")["n"].unique().to_list() == [2 * 2 * 1600]
    page = (project.folder / "results/report/report.html").read_text()
    assert "Spread over 2 training seeds" in page
    assert "the attention is that of the first training seed" in page
    done = project.her2("predict", str(models), "--features", "results/features/tiny",
                        "--out", "new.csv")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(pl.read_csv(project.folder / "new.csv")["models"]) == {4}

    project.edit(training={"seeds": 1}, published_protocol=False)
    back = project.snakemake()
    assert back.code == 0, back.output
    assert back.work["trained"] == []
    assert (evaluation / "abmil/metrics.csv").read_text() == metrics
