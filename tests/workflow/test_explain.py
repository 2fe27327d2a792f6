"""`her2 explain` on a finished project, before and after a change."""

from tests.workflow.project import Project


def test_explain_says_what_exists_and_what_a_change_would_cost(project: Project) -> None:
    slide = project.rows()[0].split(",")[0]
    finished = project.her2("explain", slide)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("now   the same key, in the cache") == 2
    assert finished.stdout.endswith("Snakemake would run nothing for it.\n")
    (project.folder / "cache/features").rename(project.folder / "cache/lost")
    project.edit(heads={"abmil": {"attention": 8}})
    changed = project.her2("explain", slide).stdout
    assert "now   the same key, not in the cache: it would be embedded" in changed
    assert "train_folds task=score, encoder=tiny, head=abmil" in changed
    assert "head.attention: 16 -> 8" in changed
    assert "tile_bucket" not in changed


def test_a_slide_that_is_not_in_the_manifest_is_said(project: Project) -> None:
    done = project.her2("explain", "nobody")
    assert done.returncode == 1
    assert done.stderr.endswith("nobody: is not in slides.csv.\n")
