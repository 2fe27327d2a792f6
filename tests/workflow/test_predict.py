"""`her2 predict` beside a run of the workflow: the same cache, the same digits."""

from pathlib import Path

import numpy as np
import polars as pl
from typer.testing import CliRunner

from her2.cli.main import app
from her2.storage.cache import Cache
from tests.workflow.project import Project


def test_after_a_run_predict_makes_nothing_and_says_the_same_as_its_models(
    project: Project, tmp_path: Path
) -> None:
    """The digits are those of `her2 predict` with the folds' folders, by a pattern of the shell.

    The slide that the run never saw is embedded; it was not in the training data, all others were.
    """
    root, out = project.folder, tmp_path / "out.csv"
    cache = Cache(root / "cache")

    def command(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(one) for one in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    bundle = tmp_path / "her2.bundle"
    command("bundle", root / "results", "--out", bundle, "--include-encoder", "drawn for this test")
    before = {one.path for one in cache.products()}
    command("predict", "--bundle", bundle, root / "slides.csv", "--out", out,
            "--cache", cache.root, "--threads", 1)  # fmt: skip
    assert {one.path for one in cache.products()} == before
    table = pl.read_csv(out).filter(level="slide")
    assert set(table["status"]) == {"ok"}
    assert table["cautions"].str.contains("training data").all()

    head = root / "results" / "models" / "score" / "tiny" / "abmil"
    command("predict", *sorted(head.glob("r0f*")), "--features", root / "results/features/tiny",
            "--out", tmp_path / "folds.csv", "--threads", 1)  # fmt: skip
    folds = pl.read_csv(tmp_path / "folds.csv")
    assert folds["models"].to_list() == table["models"].to_list()
    assert folds["slide_id"].to_list() == table["slide_id"].to_list()
    np.testing.assert_allclose(folds["prob_high"], table["prob_high"], rtol=1e-9)

    done = command("predict", "--bundle", bundle, root / "slides/spare-a.svs", "--out", out,
                   "--cache", cache.root, "--threads", 1)  # fmt: skip
    assert "slides predicted: 1 of 1" in done
    assert {one.kind for one in cache.products() if one.path not in before} == {
        "tiles", "qc", "features",
    }  # fmt: skip
    row = pl.read_csv(out).row(0, named=True)
    assert "training data" not in (row["cautions"] or "")
