import copy
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TrainingSection, jobs, parse_config
from her2.config.names import Run, parse_run, run_name
from her2.core.errors import UserError
from her2.core.files import canonical_json
from her2.core.stamps import files_state
from her2.pipeline.plan import Plan

VALUES: dict[str, Any] = {
    "cohort": {"slides": "slides.csv", "slides_per_bucket": 4},
    "tasks": {
        "score": {"label": "her2", "classes": {"0": ["0"], "3+": ["3+"]}},
        "er": {"label": "er", "classes": {"no": ["0"], "yes": ["1"]}},
    },
    "encoders": {
        "fine": {"source": "random", "model": "timm/resnet18", "mpp": 0.5, "size": 224},
        "coarse": {"source": "random", "model": "timm/resnet18", "mpp": 1.0, "size": 96},
    },
    "heads": {"abmil": {}, "wide": {"head": "abmil", "attention": 512}},
    "folds": {"number": 5, "repeats": 2, "per_job": 4},
}
ROWS = tuple(
    SlideRow(f"s{n:02d}", f"s{n:02d}.svs", f"p{n}", {"her2": "0", "er": "1"}, site="north")
    for n in range(16)
)


def plan(changed: dict[str, object] | None = None, rows: tuple[SlideRow, ...] = ROWS) -> Plan:
    """Return a plan; `changed` maps slash/separated keys to values."""
    values = copy.deepcopy(VALUES)
    for path, value in (changed or {}).items():
        *parents, last = path.split("/")
        section = values
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return Plan(parse_config(values), Cohort(rows, Path("root")))


def all_specs(of: Plan) -> dict[str, str]:
    """Return the spec of every job, by stage and wildcards."""
    config, found = of.config, {"audit": of.audit_spec(), "cohort": of.cohort_spec()}
    found["report"] = of.report_spec("her2 0.1.0")
    found["similar"] = of.similar_spec()
    found["compare"] = of.compare_spec()
    found["robustness"] = of.robustness_spec()
    for grid in config.grids:
        found |= {f"tile {grid} {bucket}": of.tile_spec(grid, bucket) for bucket in of.buckets}
    found |= {
        f"embed {name}/{bucket}": of.embed_spec(name, bucket)
        for name in of.config.encoders
        for bucket in of.buckets
    }
    found |= {f"encoder {name}": of.encoder_spec(name) for name in config.encoders}
    for task in config.tasks:
        found[f"folds {task}"] = of.folds_spec(task)
        found[f"heatmap {task}"] = of.heatmap_spec(task)
        found[f"attention {task}"] = of.attention_spec(task)
        for head in of.models:
            found[f"evaluate {task} {head}"] = of.evaluate_spec(task, head)
            for chunk in of.chunks:
                found[f"train {task} {head} {chunk}"] = of.train_spec(task, head, chunk)
    return found


def stages_that_change(other: Plan, first: Plan | None = None) -> set[str]:
    before, after = all_specs(first or plan()), all_specs(other)
    assert before.keys() == after.keys()
    return {name.split()[0] for name in before if before[name] != after[name]}


def with_row(index: int, **changed: object) -> tuple[SlideRow, ...]:
    return tuple(replace(row, **changed) if n == index else row for n, row in enumerate(ROWS))


def test_every_spec_is_canonical_json_of_its_stage_s_version():
    for name, text in all_specs(plan()).items():
        assert canonical_json(json.loads(text)) == text
        assert json.loads(text)["version"] == jobs.VERSIONS[name.split()[0]]


KINDS: dict[str, type] = {
    "audit": jobs.AuditSpec,
    "cohort": jobs.CohortSpec,
    "similar": jobs.SimilarSpec,
    "report": jobs.ReportSpec,
    "tile": jobs.TileSpec,
    "embed": jobs.EmbedSpec,
    "encoder": jobs.EncoderSpec,
    "folds": jobs.FoldsSpec,
    "evaluate": jobs.EvaluateSpec,
    "compare": jobs.CompareSpec,
    "robustness": jobs.RobustnessSpec,
    "heatmap": jobs.HeatmapSpec,
    "attention": jobs.AttentionSpec,
    "train": jobs.TrainSpec,
}


def test_a_job_reads_its_spec_as_it_was_written():
    for name, text in all_specs(plan()).items():
        assert jobs.dump(jobs.load(KINDS[name.split()[0]], text)) == text


@given(st.permutations(ROWS))
def test_the_order_of_the_manifest_changes_nothing(rows):
    cohort = Cohort(tuple(sorted(rows, key=lambda row: row.slide_id)), Path("root"))
    assert all_specs(Plan(plan().config, cohort)) == all_specs(plan())


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_in_the_config_is_seen_where_tables_are_ordered_at_most(generator):
    def shuffled(value: object) -> object:
        if not isinstance(value, dict):
            return value
        items = list(value.items())
        generator.shuffle(items)
        return {key: item if key == "classes" else shuffled(item) for key, item in items}

    other = Plan(parse_config(shuffled(VALUES)), plan().cohort)
    assert stages_that_change(other) <= {"compare", "report"}


def test_the_order_of_classes_survives_the_spec_and_is_part_of_it():
    """The order is an ordinal scale, although canonical JSON sorts keys."""
    key, names = "tasks/score/classes", ("low", "mid", "high")
    one, two = (plan({key: {name: [name] for name in order}}) for order in (names, sorted(names)))
    assert stages_that_change(one, two) == {
        "folds", "train", "evaluate", "compare", "heatmap", "attention", "report",
    }  # fmt: skip
    folds = jobs.load(jobs.FoldsSpec, one.folds_spec("score"))
    evaluation = jobs.load(jobs.EvaluateSpec, one.evaluate_spec("score", "abmil"))
    assert folds.task.class_names == evaluation.task.class_names == names


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ({"embedding/batch_size": 7}, {"report"}),
        ({"results": "elsewhere", "cache": "/scratch"}, {"report"}),
        ({"cohort/slides": "other.csv", "cohort/root": "/data"}, {"report"}),
        ({"report/title": "Another"}, {"report"}),
        ({"heads/wide/attention": 256}, {"train", "report"}),
        ({"training/epochs": 3}, {"train", "report"}),
        ({"training/balance": "loss"}, {"train", "evaluate", "report"}),
        ({"evaluation/bootstrap": 100}, {"evaluate", "compare", "report"}),
        ({"evaluation/selection": "nested"}, {"compare", "report"}),
        ({"heatmaps/faithfulness_slides": 5}, {"attention", "report"}),
        ({"cohort/mask_classes": ["Tumor"]}, {"heatmap", "attention", "report"}),
        ({"heatmaps/slides": 1}, {"heatmap", "report"}),
        ({"heatmaps/formats": ["png"]}, {"heatmap", "report"}),
        ({"tiling/min_tissue": 0.6}, {"tile", "report"}),
        ({"embedding/max_failed_tiles": 0.5}, {"embed", "report"}),
        ({"encoders/fine/storage": "float32"}, {"encoder", "report"}),
        ({"folds/tune": 0.3}, {"folds", "report"}),
        ({"folds/max_shared_tiles": 0.9}, {"similar", "report"}),
        ({"cohort/max_excluded": 0.5}, {"audit", "train", "report"}),
        (
            {"seed": 1},
            {
                "encoder",
                "folds",
                "train",
                "evaluate",
                "compare",
                "robustness",
                "heatmap",
                "attention",
                "report",
            },
        ),
    ],
)
def test_a_changed_key_changes_the_specs_of_those_stages_only(changed, stages):
    assert stages_that_change(plan(changed)) == stages


def test_a_head_s_option_leaves_the_other_heads_alone():
    before, after = all_specs(plan()), all_specs(plan({"heads/wide/attention": 256}))
    changed = {name for name in before if before[name] != after[name]} - {"report"}
    assert changed
    assert all(" wide " in name for name in changed)


def test_a_new_encoder_leaves_the_others_alone():
    added = {"source": "random", "model": "timm/vit_tiny_patch16_224", "mpp": 0.5, "size": 224}
    before, after = all_specs(plan()), all_specs(plan({"encoders/new": added}))
    changed = {name for name in after if before.get(name) != after[name]}
    stages = {name.split()[0] for name in changed}
    assert stages == {"encoder", "embed", "compare", "robustness", "report"}
    own = {name.split("/")[0] for name in changed if name.startswith(("encoder", "embed"))}
    assert own == {"encoder new", "embed new"}


def test_augmented_views_are_embedded_for_one_encoder_and_are_no_part_of_it():
    added = {"source": "random", "model": "timm/vit_tiny_patch16_224", "mpp": 0.5, "size": 224}
    none = plan({"encoders/new": added})
    zero = plan({"encoders/new": {**added, "augmentations": 0}})
    two = plan({"encoders/new": {**added, "augmentations": 2}})
    assert all_specs(zero) == all_specs(none)
    before, after = all_specs(none), all_specs(two)
    changed = {name for name in after if before[name] != after[name]}
    assert changed == {"report", *(f"embed new/{bucket}" for bucket in two.buckets)}
    assert "views" not in before[f"embed new/{two.buckets[0]}"]
    spec = jobs.load(jobs.EmbedSpec, after[f"embed new/{two.buckets[0]}"])
    assert (spec.views, spec.seed) == (2, two.config.seed)


@pytest.mark.parametrize(
    ("row", "stages"),
    [
        ({"labels": {"her2": "3+", "er": "1"}}, {"audit", "cohort", "folds"}),
        ({"labels": {"er": "1"}}, {"audit", "cohort", "folds"}),
        ({"patient_id": "another"}, {"audit", "cohort", "folds"}),
        ({"site": "south"}, {"cohort"}),
        ({"scanner": "x"}, {"cohort"}),
        ({"mpp": 0.5}, {"tile", "embed", "cohort"}),
        ({"path": "moved.svs"}, {"tile", "embed", "cohort"}),
    ],
)
def test_a_changed_cell_changes_the_specs_of_those_stages_only(row, stages):
    assert stages_that_change(plan(rows=with_row(3, **row))) == stages


def test_sites_concern_the_folds_only_where_the_config_says_so():
    ask = {"folds/sites": "stratified"}
    changed = stages_that_change(plan(ask, with_row(3, site="south")), plan(ask))
    assert changed == {"cohort", "folds"}


def test_a_split_column_stands_in_the_place_of_cross_validation():
    rows = tuple(replace(row, split="test" if n < 4 else "train") for n, row in enumerate(ROWS))
    found = plan(rows=rows)
    assert found.chunks == {"r0f0-r0f0": (Run(0, 0),)}
    spec = jobs.load(jobs.FoldsSpec, found.folds_spec("score"))
    assert (spec.split, spec.folds, spec.repeats) == (True, 1, 1)
    report = jobs.load(jobs.ReportSpec, found.report_spec("x"))
    assert report.split
    assert report.chunks == ("r0f0-r0f0",)
    assert report.config.folds.number == 5  # as the user wrote it
    moved = (*rows[:5], replace(rows[5], split="test"), *rows[6:])
    assert stages_that_change(plan(rows=moved), found) == {"cohort", "folds"}


def test_a_split_column_can_be_ignored():
    rows = tuple(replace(row, split="train") for row in ROWS)
    ignored = plan({"folds/split": "ignore"}, rows)
    assert ignored.chunks == plan().chunks
    assert not ignored.split


def test_the_published_protocol_does_not_go_with_a_split_column():
    found = plan({"published_protocol": True}, with_row(0, split="test"))
    with pytest.raises(UserError, match="Set folds.split: ignore, or published_protocol: false"):
        _ = found.chunks


def test_leaving_one_site_out_needs_as_many_folds_as_there_are_labelled_sites():
    rows = tuple(replace(row, site="abc"[n % 3]) for n, row in enumerate(ROWS))
    rows = (*rows, replace(rows[0], slide_id="x", patient_id="x", site="d", labels={}))
    with pytest.raises(UserError, match=r"are of 3 \(a, b, c\); set folds.number to 3\."):
        _ = plan({"folds/sites": "leave_one_out"}, rows).chunks
    found = plan({"folds/sites": "leave_one_out", "folds/number": 3, "folds/repeats": 1}, rows)
    assert list(found.chunks.values()) == [(Run(0, 0), Run(0, 1), Run(0, 2))]
    with pytest.raises(UserError, match="the column site is empty.*set folds.sites"):
        _ = plan(
            {"folds/sites": "leave_one_out"}, tuple(replace(r, site=None) for r in ROWS)
        ).chunks


def test_a_label_of_one_task_leaves_the_folds_of_the_other_alone():
    before = plan()
    after = plan(rows=with_row(3, labels={"her2": "3+", "er": "1"}))
    assert before.folds_spec("score") != after.folds_spec("score")
    assert before.folds_spec("er") == after.folds_spec("er")


def test_a_changed_slide_concerns_its_bucket_only():
    before, after = plan(), plan(rows=with_row(3, mpp=0.25))
    changed = [
        bucket
        for bucket in before.buckets
        if before.tile_spec("224px-0.5mpp", bucket) != after.tile_spec("224px-0.5mpp", bucket)
    ]
    assert len(before.buckets) > 1
    assert [row.slide_id for row in before.by_bucket[changed[0]]].count("s03") == 1
    assert len(changed) == 1


def test_a_moved_root_changes_no_spec():
    moved = Plan(plan().config, Cohort(ROWS, Path("/another/disk")))
    assert all_specs(moved) == all_specs(plan())


@given(st.integers(2, 10), st.integers(1, 5), st.integers(1, 12), st.integers(1, 4))
def test_chunks_hold_every_model_once_and_in_order(number, repeats, per_job, seeds):
    changed = {"folds/number": number, "folds/repeats": repeats, "folds/per_job": per_job}
    chunks = plan(changed | {"training/seeds": seeds}).chunks
    runs = [run for part in chunks.values() for run in part]
    assert runs == [
        Run(repeat, fold, seed)
        for seed in range(seeds) for repeat in range(repeats) for fold in range(number)
    ]  # fmt: skip
    assert all(1 <= len(part) <= per_job for part in chunks.values())
    for name, part in chunks.items():
        assert name == f"{part[0].name}-{part[-1].name}"


@given(st.integers(1, 19), st.integers(1, 12))
def test_another_training_seed_adds_chunks_and_leaves_those_of_before(seeds, per_job):
    fewer, more = (
        plan({"training/seeds": k, "folds/per_job": per_job}) for k in (seeds, seeds + 1)
    )
    assert list(more.chunks.items())[: len(fewer.chunks)] == list(fewer.chunks.items())
    added = set(more.chunks) - set(fewer.chunks)
    assert {run.seed for name in added for run in more.chunks[name]} == {seeds}
    for chunk in fewer.chunks:
        assert more.train_spec("er", "wide", chunk) == fewer.train_spec("er", "wide", chunk)


def test_more_training_seeds_run_nothing_again_but_figures_and_report():
    """Attention is measured and drawn for the first seed."""
    before, after = all_specs(plan()), all_specs(plan({"training/seeds": 3}))
    changed = {name.split()[0] for name in before if before[name] != after[name]}
    assert changed == {"evaluate", "report"}
    assert {name.split()[0] for name in after.keys() - before.keys()} == {"train"}


def test_a_job_of_the_first_seed_is_written_as_before_there_were_seeds():
    """Snakemake compares the text, so another form would train every fold again."""
    spec = json.loads(plan({"training/seeds": 2}).train_spec("score", "abmil", "r0f0-r0f3"))
    assert spec["runs"] == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert spec["training"].keys() == TrainingSection.model_fields.keys()
    assert "seeds" not in spec["training"]


def test_a_job_of_another_seed_says_which():
    found = plan({"training/seeds": 2})
    text = found.train_spec("score", "abmil", "r0f0s1-r0f3s1")
    assert json.loads(text)["runs"] == [[0, fold, 1] for fold in range(4)]
    assert jobs.load(jobs.TrainSpec, text).runs == found.chunks["r0f0s1-r0f3s1"]


@pytest.mark.parametrize("seeds", [0, 21])
def test_a_number_of_seeds_that_cannot_be_meant_is_refused(seeds):
    with pytest.raises(UserError, match=rf"training.seeds: {seeds}: .*(1|20)"):
        plan({"training/seeds": seeds})


def tile_text(change: Callable[[dict], None]) -> str:
    spec = plan()
    values = json.loads(spec.tile_spec("224px-0.5mpp", spec.buckets[0]))
    change(values)
    return json.dumps(values)


def test_a_spec_of_another_version_of_the_code_is_refused():
    text = tile_text(lambda values: values.update(version=values["version"] + 1))
    with pytest.raises(UserError, match=r"for version \d+ of this stage.*Run snakemake again"):
        jobs.load(jobs.TileSpec, text)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("bucket"),
        lambda values: values.update(unknown=1),
        lambda values: values["tiling"].update(min_tissue=2),
        lambda values: values.update(mpp="half"),
    ],
)
def test_a_spec_that_is_none_of_the_stage_is_refused(change):
    with pytest.raises(UserError, match="is not a TileSpec"):
        jobs.load(jobs.TileSpec, tile_text(change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_text_that_is_no_spec_is_refused(text):
    with pytest.raises(UserError, match="--spec: is not a TileSpec"):
        jobs.load(jobs.TileSpec, text)


def test_a_demo_slide_is_drawn_from_its_row():
    found = plan()
    specs = {name: jobs.load(jobs.SyntheticSpec, x) for name, x in found.synthetic_specs.items()}
    for name, rows in found.by_bucket.items():
        assert [s.slide_id for s in specs[name].slides] == [row.slide_id for row in rows]
    slides = {slide.slide_id: slide for spec in specs.values() for slide in spec.slides}
    drawn = slides["s03"]
    assert (drawn.patient_id, drawn.her2, drawn.site) == ("p3", "0", "north")


def test_demo_slides_without_a_score_are_refused_by_name():
    rows = (ROWS[0], replace(ROWS[1], labels={}), replace(ROWS[2], labels={}))
    with pytest.raises(UserError, match=f"^{ROWS[1].slide_id}, {ROWS[2].slide_id}: .*synthetic"):
        _ = plan(rows=rows).synthetic_specs


def test_buckets_are_named_in_order_and_hold_all_slides():
    found = plan()
    assert list(found.buckets) == sorted(found.buckets)
    assert random.Random(0).choice(found.buckets).endswith("-of-0004")
    slides = [row.slide_id for rows in found.by_bucket.values() for row in rows]
    assert sorted(slides) == sorted(row.slide_id for row in ROWS)


def test_truths_are_the_files_that_are_there(tmp_path):
    for name in ("s03.geojson", "s01.png", "s02.xml", "s01.txt", "other.png"):
        (tmp_path / name).touch()
    found = plan({"cohort/masks": str(tmp_path)}).truth_files
    assert [Path(path).name for path in found] == ["s01.png", "s02.xml", "s03.geojson"]
    assert plan().truth_files == []
    assert plan({"cohort/masks": str(tmp_path / "absent")}).truth_files == []


def test_the_demo_s_truths_are_those_that_its_slides_bring():
    """Otherwise a second run would find new inputs and run again."""
    drawn = plan({"cohort/masks": "root/masks", "cohort/synthetic": True}).truth_files
    assert drawn == [f"root/masks/{row.slide_id}.png" for row in ROWS]


@given(st.builds(Run, *[st.integers(0, 30)] * 3))
def test_the_name_of_a_run_tells_its_repeat_fold_and_seed(run: Run) -> None:
    assert parse_run(run.name) == run
    assert parse_run(run_name(run.repeat, run.fold)) == run._replace(seed=0)


def test_a_run_of_the_first_seed_is_named_as_before_there_were_seeds() -> None:
    assert [Run(10, 3).name, Run(0, 3, 1).name] == ["r10f3", "r0f3s1"]


def test_the_state_of_files_is_their_place_size_and_time_whatever_the_project_s_place(tmp_path):
    first, second = tmp_path / "a/masks/x.png", tmp_path / "b/masks/x.png"
    for path in (first, second, tmp_path / "a/other/x.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345678")
        os.utime(path, ns=(0, 4102444800 * 10**9))  # from the future
    state = files_state([first], tmp_path / "a")
    assert files_state([second], tmp_path / "b") == state, "a project that moved"
    assert files_state([tmp_path / "a/other/x.png"], tmp_path / "a") != state, "another folder"
    second.write_bytes(b"1")
    os.utime(second, ns=(0, 4102444800 * 10**9))
    assert files_state([second], tmp_path / "b") != state, "another size"
    os.utime(first, ns=(0, 1))
    assert files_state([first], tmp_path / "a") != state, "another time"
    first.unlink()
    assert files_state([first], tmp_path / "a") != state, "gone"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a/2.png").write_bytes(b"22"),
        lambda folder: (folder / "a/1.png").write_bytes(b"other"),
        lambda folder: (folder / "a/1.png").rename(folder / "b/1.png"),
        lambda folder: (folder.parent / "cut.csv").write_text("path\nanother.svs\n"),
        lambda folder: (folder.parent / "s.svs").write_bytes(b"another slide"),
    ],
    ids=["an image added", "one replaced", "one moved to another class", "other slides", "a slide"],
)
def test_an_encoder_depends_on_every_patch_and_on_the_slides_they_were_cut_from(tmp_path, change):
    folder = tmp_path / "patches"
    for label in "ab":
        (folder / label).mkdir(parents=True)
    (folder / "a/1.png").write_bytes(b"1")
    (tmp_path / "s.svs").write_bytes(b"slide")
    (tmp_path / "cut.csv").write_text("path\ns.svs\n")
    patches = {"format": "folders", "path": str(folder), "slides": str(tmp_path / "cut.csv")}
    encoder = {"source": "pretrain", "model": "timm/resnet18", "data": "mine", "init": "random",
               "domain": "he", "mpp": 0.5, "size": 224}  # fmt: skip
    values = {"patches": {"mine": patches}, "encoders/own": encoder}
    before = plan(values).encoder_spec("own")
    assert plan(values).encoder_spec("own") == before
    change(folder)
    assert plan(values).encoder_spec("own") != before
