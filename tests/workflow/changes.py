"""Every kind of change to a finished project, as a user makes it.

A change is a function that edits the project and returns the work it ought to cost: which slides
are tiled and embedded, which folds trained. Its name is that of its row in docs/reruns.md, which
says the jobs that run, so that the page and the test cannot drift apart.
"""

import re
import shutil
from collections.abc import Callable

import pyarrow.parquet

from tests.workflow.conftest import add_validation, elsewhere, write_weights
from tests.workflow.project import REPOSITORY, WEIGHTS, Project

Work = dict[str, list[str]]
Change = Callable[[Project], Work]

FOLDS = ["r0f0", "r0f1"]
SPARE = "spare-a,slides/spare-a.svs,spare,0,north"


def work(tiled: list[str] = [], embedded: list[str] = [], trained: list[str] = []) -> Work:  # noqa: B006 (never changed)
    return {"tiled": tiled, "embedded": embedded, "trained": trained}


def slides(project: Project) -> list[str]:
    return sorted(row.split(",")[0] for row in project.rows())


def edit_row(project: Project, index: int, column: int, value: str) -> str:
    """Change a cell of the manifest; returns the row's slide id."""
    rows = project.rows()
    cells = rows[index].split(",")
    cells[column] = value
    rows[index] = ",".join(cells)
    project.write_rows(rows)
    return cells[0]


def clone(project: Project) -> None:
    """Put the workflow's code into the project's own folder, as a user's clone has it."""
    for name in ("workflow", "her2", "envs", "profiles"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, project.folder / name, ignore=ignore)
    shutil.copy2(REPOSITORY / "Snakefile", project.folder / "Snakefile")


def a_validation_cohort_added(project: Project) -> Work:
    found = add_validation(project)
    return work(found, found)


def an_external_slide_added(project: Project) -> Work:
    spare = elsewhere()[-1]
    project.write_rows([*project.rows("east.csv"), ",".join(spare.values())], "east.csv")
    return work([spare["slide_id"]], [spare["slide_id"]])


def an_external_label_changed(project: Project) -> Work:
    rows = project.rows("east.csv")
    project.write_rows([rows[0].replace(",0,", ",2+,"), *rows[1:]], "east.csv")
    return work()


def nothing(project: Project) -> Work:
    return work()


def a_slide_added(project: Project) -> Work:
    project.write_rows([*project.rows(), SPARE])
    return work(["spare-a"], ["spare-a"], FOLDS)


def a_slide_removed(project: Project) -> Work:
    project.write_rows(project.rows()[:-1])
    return work(trained=FOLDS)


def a_slide_replaced(project: Project) -> Work:
    first = project.rows()[0].split(",")
    shutil.copyfile(project.folder / "slides/spare-a.svs", project.folder / first[1])
    return work([first[0]], [first[0]], FOLDS)


def a_slide_renamed(project: Project) -> Work:
    """Give a slide another id and another file name, with the same content."""
    first = project.rows()[0].split(",")
    (project.folder / first[1]).rename(project.folder / "slides/renamed.svs")
    edit_row(project, 0, 1, "slides/renamed.svs")
    edit_row(project, 0, 0, "renamed")
    return work(trained=FOLDS)


def the_manifest_reordered(project: Project) -> Work:
    project.write_rows(project.rows()[::-1])
    return work()


def a_label_changed(project: Project) -> Work:
    high = next(i for i, row in enumerate(project.rows()) if row.split(",")[3] == "3+")
    edit_row(project, high, 3, "0")
    return work(trained=FOLDS)


def a_site_changed(project: Project) -> Work:
    edit_row(project, 0, 4, "elsewhere")
    return work()


def the_tissue_threshold_changed(project: Project) -> Work:
    """Some slides lose their emptiest tile, the others none: those keep their features."""
    least = {
        path.stem: min(pyarrow.parquet.read_table(path)["tissue"].to_pylist())
        for path in project.folder.glob("results/tiles/*/*.parquet")
    }
    threshold = sorted(least.values())[len(least) // 2] + 1e-4
    project.edit(tiling={"min_tissue": threshold})
    losing = sorted(name for name, share in least.items() if share < threshold)
    assert 0 < len(losing) < len(least)
    return work(slides(project), losing, FOLDS)


def the_um_px_of_an_encoder_changed(project: Project) -> Work:
    project.edit(encoders={"tiny": {**WEIGHTS, "mpp": 0.9}})
    return work(slides(project), slides(project), FOLDS)


def the_um_px_of_a_slide_changed(project: Project) -> Work:
    lines = (project.folder / "slides.csv").read_text().splitlines()
    cells = ["mpp", *("0.55" if number == 0 else "" for number in range(len(lines) - 1))]
    text = "\n".join(f"{line},{cell}" for line, cell in zip(lines, cells, strict=True))
    (project.folder / "slides.csv").write_text(text + "\n")
    first = slides(project)[0]
    return work([first], [first], FOLDS)


def an_encoder_added(project: Project) -> Work:
    random = {"source": "random", "model": "timm/resnet10t", "mpp": 1.0, "size": 64}
    project.edit(encoders={"other": random})
    return work(embedded=slides(project), trained=FOLDS)


def an_encoder_removed(project: Project) -> Work:
    """One is added and embedded first, then taken out again."""
    an_encoder_added(project)
    before = project.snakemake()
    assert before.code == 0, before.output
    project.edit(encoders=None)
    project.edit(encoders={"tiny": WEIGHTS})
    return work()


def the_weights_of_an_encoder_changed(project: Project) -> Work:
    write_weights(project.folder / "weights.safetensors", seed=2)
    return work(embedded=slides(project), trained=FOLDS)


def a_head_option_changed(project: Project) -> Work:
    project.edit(heads={"abmil": {"attention": 8}})
    return work(trained=FOLDS)


def a_head_option_changed_and_back(project: Project) -> Work:
    project.edit(heads={"abmil": {"attention": 8}})
    before = project.snakemake("train")
    assert before.work["trained"] == FOLDS, before.output
    project.edit(heads={"abmil": {"attention": 16}})
    return work()


def a_head_added(project: Project) -> Work:
    project.edit(heads={"mean": {}})
    return work(trained=FOLDS)


def the_training_seeds_raised(project: Project) -> Work:
    project.edit(training={"seeds": 2})
    return work(trained=[f"{run}s1" for run in FOLDS])


def the_folds_seed_changed(project: Project) -> Work:
    project.edit(folds={"seed": 99})
    return work(trained=FOLDS)


def the_bootstrap_size_changed(project: Project) -> Work:
    project.edit(evaluation={"bootstrap": 300})
    return work()


def the_report_title_changed(project: Project) -> Work:
    project.edit(report={"title": "Another title"})
    return work()


def the_version_of_a_stage_raised(project: Project) -> Work:
    """The embed stage's: all its features are made anew, in new places of the cache."""
    clone(project)
    module = project.folder / "her2/config/jobs.py"
    raised = re.sub(r'"embed": (\d+)', lambda m: f'"embed": {int(m[1]) + 1}', module.read_text())
    assert raised != module.read_text()
    module.write_text(raised)
    return work(embedded=slides(project), trained=FOLDS)


def a_rule_reformatted(project: Project) -> Work:
    clone(project)
    rules = project.folder / "workflow/rules/embed.smk"
    text = rules.read_text().replace(
        "    threads: 8\n", "    # A comment.\n    threads:\n        8\n"
    )
    assert text != rules.read_text()
    rules.write_text(text)
    return work()


def a_slide_touched(project: Project) -> Work:
    """Its time is another one; the content is not."""
    (project.folder / project.rows()[0].split(",")[1]).touch()
    return work()


def results_deleted(project: Project) -> Work:
    shutil.rmtree(project.folder / "results")
    return work()


def the_cache_deleted(project: Project) -> Work:
    shutil.rmtree(project.folder / "cache")
    return work()


def the_cache_deleted_and_a_head_added(project: Project) -> Work:
    """Stage 2 goes on from the features that stand in results/."""
    shutil.rmtree(project.folder / "cache")
    project.edit(heads={"mean": {}})
    return work(trained=FOLDS)


def both_deleted(project: Project) -> Work:
    shutil.rmtree(project.folder / "results")
    shutil.rmtree(project.folder / "cache")
    return work(slides(project), slides(project), FOLDS)


def the_number_of_buckets_changed(project: Project) -> Work:
    project.edit(cohort={"slides_per_bucket": 16})
    return work()


def the_folder_moved(project: Project) -> Work:
    moved = project.folder.with_name("moved")
    project.folder.rename(moved)
    moved.joinpath("link").symlink_to(moved)
    object.__setattr__(project, "folder", moved)
    return work()


def a_failed_slide_fixed(project: Project) -> Work:
    """A slide truncated in copying is left out of the run, and used once it is complete."""
    name, path = project.rows()[0].split(",")[:2]
    whole = (project.folder / path).read_bytes()
    (project.folder / path).write_bytes(whole[:20_000])
    before = project.snakemake()
    assert before.code == 0, before.output
    table = (project.folder / "results/cohort/slides.csv").read_text()
    assert "truncated" in next(line for line in table.splitlines() if line.startswith(name))
    (project.folder / path).write_bytes(whole)
    return work()  # the cache has held it since the first run


CHANGES: dict[str, Change] = {
    function.__name__.replace("_", " "): function
    for function in (
        nothing, a_slide_added, a_slide_removed, a_slide_replaced, a_slide_renamed,
        the_manifest_reordered, a_label_changed, a_site_changed, the_tissue_threshold_changed,
        the_um_px_of_an_encoder_changed, the_um_px_of_a_slide_changed, an_encoder_added,
        an_encoder_removed, the_weights_of_an_encoder_changed, a_head_option_changed,
        a_head_option_changed_and_back, a_head_added, the_training_seeds_raised,
        the_folds_seed_changed, the_bootstrap_size_changed, the_report_title_changed,
        the_version_of_a_stage_raised, a_rule_reformatted, a_slide_touched, results_deleted,
        the_cache_deleted, the_cache_deleted_and_a_head_added, both_deleted,
        the_number_of_buckets_changed, the_folder_moved, a_failed_slide_fixed,
        a_validation_cohort_added, an_external_slide_added, an_external_label_changed,
    )
}  # fmt: skip
