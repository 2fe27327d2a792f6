"""Patients whose slides have labels of different classes: what each rule makes of them."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2.cohort.folds import make_folds
from her2.cohort.labels import Conflict, conflicts, patient_classes
from her2.cohort.manifest import Cohort, SlideRow
from her2.cohort.reading import read_cohort, read_labels
from her2.config import Task, ValidationSection, parse_config
from her2.config.external_jobs import ExternalAttentionSpec, ExternalHeatmapSpec, ValidateSpec
from her2.config.jobs import FoldsSpec, dump, load
from her2.config.validation import ExternalTaskSection
from her2.core.errors import UserError
from her2.evaluation.external.cohort import slide_classes
from her2.pipeline.external import (
    external_attention_spec,
    external_heatmap_spec,
    external_plan,
    validate_spec,
)
from her2.pipeline.plan import Plan

SCORE = Task(
    label="her2",
    classes={"0": ["0"], "1+": ["1+"], "2+": ["2+"], "3+": ["3+", "3"]},
    ordinal=True,
)
BINARY = Task(label="her2", classes={"negative": ["0", "1+"], "positive": ["2+", "3+", "3"]})
TASKS = {"score": SCORE, "binary": BINARY}


def slide(patient: str, letter: str, her2: str) -> dict[str, object]:
    slide_id = f"{patient}-{letter}"
    return {"slide_id": slide_id, "path": f"{slide_id}.svs", "patient_id": patient, "her2": her2}


ALIKE = [slide(f"{name}{n}", "a", name) for name in ("0", "1+", "2+", "3+") for n in range(4)]
for cells in ALIKE:  # "+" is not legal in an id
    cells["patient_id"] = str(cells["patient_id"]).replace("+", "p")
    cells["slide_id"] = str(cells["slide_id"]).replace("+", "p")
TWO_LESIONS = [slide("x", "b", "1+"), slide("x", "a", "3+"), slide("x", "c", "")]
"""A patient whose first slide in the manifest has the lower class, and one slide no label."""


def refusal(path: Path, tasks: dict[str, Task], rule: Any = "refuse") -> str:
    with pytest.raises(UserError) as error:
        read_cohort(path, tasks=tasks, patient_label=rule)
    return str(error.value)


def spec(rule: Any, task: Task = SCORE, **changed: Any) -> FoldsSpec:
    return FoldsSpec(
        rows="", task=task, folds=3, repeats=2, tune=0.25, seed=5, patient_label=rule, **changed
    )


def test_patients_with_labels_of_two_classes_are_refused_all_at_once(write_csv):
    rows = [*ALIKE, *TWO_LESIONS, slide("y", "a", "0"), slide("y", "b", "2+")]
    message = refusal(write_csv(rows), TASKS)
    assert (
        "task 'score', column 'her2': 2 patients have slides of different classes: "
        "x ('1+': x-b, '3+': x-a); y ('0': y-a, '2+': y-b). Correct the labels, or set "
        "`cohort.patient_label`: worst (the highest class of an ordered task), first" in message
    )
    assert "task 'binary', column 'her2': 2 patients" in message


def test_labels_of_one_class_do_not_differ(write_csv):
    """3+ and 3 are one class of the score, 0 and 1+ of the binary task alone."""
    same = write_csv([slide("x", "a", "3+"), slide("x", "b", "3")], "same.csv")
    assert read_cohort(same, tasks=TASKS).conflicts(SCORE) == []
    low = write_csv([slide("x", "a", "0"), slide("x", "b", "1+")], "low.csv")
    assert read_cohort(low, tasks={"binary": BINARY}).conflicts(BINARY) == []
    assert "task 'score'" in (message := refusal(low, TASKS))
    assert "task 'binary'" not in message


def test_the_worst_of_classes_without_order_is_refused_with_the_reason(write_csv):
    path = write_csv(TWO_LESIONS)
    message = refusal(path, TASKS, "worst")
    assert (
        "task 'binary', column 'her2': `cohort.patient_label: worst` takes the highest" in message
    )
    assert "x ('1+': x-b, '3+': x-a). Set `ordinal: true` in the task if" in message
    assert "task 'score'" not in message
    assert read_cohort(path, tasks={"score": SCORE}, patient_label="worst").rows


def test_the_worst_of_a_task_without_conflicts_needs_no_order(write_csv):
    path = write_csv([slide("x", "a", "0"), slide("x", "b", "1+")])
    assert read_cohort(path, tasks=TASKS, patient_label="worst").conflicts(BINARY) == []


@given(st.lists(st.sampled_from(["0", "1+", "2+", "3+"]), min_size=2, max_size=6))
def test_rules_choose_among_the_patient_s_own_classes(labels: list[str]) -> None:
    found = conflicts([(f"s{n}", "x", label) for n, label in enumerate(labels)], SCORE)
    assert bool(found) == (len(set(labels)) > 1)
    if found:
        indices = [SCORE.class_names.index(label) for label in labels]
        assert patient_classes(found, SCORE, "worst") == {"x": max(indices)}
        assert patient_classes(found, SCORE, "first") == {"x": indices[0]}
        assert patient_classes(found, SCORE, "exclude") == {"x": None}


def test_a_conflict_names_each_label_once_with_its_first_slide() -> None:
    found = conflicts([("c", "x", "3+"), ("a", "x", "0"), ("b", "x", "3+"), ("d", "y", "0")], SCORE)
    assert found == [Conflict("x", (("3+", "c"), ("0", "a")))]


@pytest.mark.parametrize(("rule", "expected"), [("worst", 3), ("first", 1)])
@pytest.mark.parametrize("protocol", ["sound", "published"])
def test_all_labelled_slides_of_the_patient_get_the_class(
    write_csv, tmp_path, rule, expected, protocol
):
    cohort = read_labels(write_csv([*ALIKE, *TWO_LESIONS]), labels=("her2",))
    table = make_folds(spec(rule, protocol=protocol), cohort, tmp_path / "folds.parquet")
    own = table.filter(pl.col("patient_id") == "x")
    labelled = own.filter(pl.col("slide_id") != "x-c")
    assert labelled["label"].unique().to_list() == [expected]
    if protocol == "sound":
        assert own.filter(pl.col("slide_id") == "x-c")["role"].unique().to_list() == ["predict"]
        assert labelled.group_by("repeat", "fold").agg(pl.col("role").n_unique())["role"].max() == 1


@pytest.mark.parametrize("protocol", ["sound", "published"])
def test_an_excluded_patient_is_left_out_of_that_task_alone(write_csv, tmp_path, protocol):
    rows = [*ALIKE, *TWO_LESIONS, slide("y", "a", "0"), slide("y", "b", "1+")]
    cohort = read_labels(write_csv(rows), labels=("her2",))
    patients = {
        name: set(
            make_folds(
                spec("exclude", task, protocol=protocol), cohort, tmp_path / "folds.parquet"
            )["patient_id"]
        )
        for name, task in TASKS.items()
    }
    everyone = {str(cells["patient_id"]) for cells in rows}
    assert patients == {"score": everyone - {"x", "y"}, "binary": everyone - {"x"}}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extra=st.lists(
        st.tuples(st.sampled_from("uvw"), st.sampled_from(["0", "1+", "2+", "3+", ""])),
        max_size=12,
    ),
    rule=st.sampled_from(["worst", "first", "exclude"]),
)
def test_under_every_rule_a_patient_has_one_class_and_one_role_in_a_fold(
    tmp_path: Path, extra: list[tuple[str, str]], rule: str
) -> None:
    cells = [*ALIKE, *(slide(patient, f"s{n}", label) for n, (patient, label) in enumerate(extra))]
    rows = tuple(
        SlideRow(
            str(one["slide_id"]), str(one["path"]), str(one["patient_id"]),
            {"her2": str(one["her2"])} if one["her2"] else {}, number=number,
        )
        for number, one in enumerate(cells)
    )  # fmt: skip
    table = make_folds(spec(rule), Cohort(rows, tmp_path), tmp_path / "folds.parquet")
    labelled = table.filter(pl.col("role") != "predict")
    assert labelled.group_by("patient_id").agg(pl.col("label").n_unique())["label"].max() == 1
    by_fold = labelled.group_by("patient_id", "repeat", "fold").agg(pl.col("role").n_unique())
    assert by_fold["role"].max() == 1


def test_the_folds_job_refuses_what_its_spec_does_not_settle(write_csv, tmp_path):
    cohort = read_labels(write_csv([*ALIKE, *TWO_LESIONS]), labels=("her2",))
    with pytest.raises(UserError, match="column 'her2': 1 patient has slides of different"):
        make_folds(spec("refuse"), cohort, tmp_path / "folds.parquet")


# What runs again


def plan(path: Path, rule: str | None, *, binary: bool = False) -> Plan:
    tasks = {
        "score": {"label": "her2", "classes": dict(SCORE.classes), "ordinal": True},
        **({"binary": {"label": "her2", "classes": dict(BINARY.classes)}} if binary else {}),
    }
    config = parse_config(
        {
            "cohort": {"slides": path} | ({"patient_label": rule} if rule else {}),
            "tasks": tasks,
            "encoders": {
                "e": {"source": "random", "model": "timm/resnet18", "mpp": 0.5, "size": 224}
            },
            "heads": {"abmil": {}},
        }
    )
    section = config.cohort
    return Plan(config, read_cohort(path, tasks=config.tasks, patient_label=section.patient_label))


def test_a_cohort_without_conflicts_has_the_same_spec_under_every_rule(write_csv):
    path = write_csv(ALIKE)
    specs = {plan(path, rule).folds_spec("score") for rule in (None, "worst", "first", "exclude")}
    assert len(specs) == 1
    assert "patient_label" not in json.loads(specs.pop())


def test_the_rule_is_part_of_the_folds_spec_of_tasks_with_conflicts_alone(write_csv):
    path = write_csv([*ALIKE, slide("x", "a", "0"), slide("x", "b", "1+")])
    found = {rule: plan(path, rule, binary=True) for rule in ("worst", "first", "exclude")}
    assert len({one.folds_spec("score") for one in found.values()}) == 3
    assert len({one.folds_spec("binary") for one in found.values()}) == 1
    assert len({one.audit_spec() for one in found.values()}) == 1
    for rule, one in found.items():
        parsed = load(FoldsSpec, text := one.folds_spec("score"))
        assert (parsed.patient_label, dump(parsed)) == (rule, text)


@pytest.mark.parametrize(("rule", "same"), [("first", False), ("worst", True), ("exclude", True)])
def test_only_the_first_slide_s_class_depends_on_the_order_of_the_manifest(write_csv, rule, same):
    rows = [*ALIKE, *TWO_LESIONS]
    one, other = (
        plan(write_csv(rows[::step], f"{step}.csv"), rule).folds_spec("score") for step in (1, -1)
    )
    assert (one == other) == same


@pytest.mark.parametrize("step", [1, -1])
def test_the_first_slide_of_an_external_patient_is_that_of_its_manifest(write_csv, step):
    """Tables of slides are sorted by their ids, so that the order comes with the spec."""
    development = plan(write_csv(ALIKE), "first")
    rows = [slide("y", "b", "0"), slide("y", "a", "3+"), slide("z", "c", "1+")][::step]
    config = development.config.model_copy(
        update={"validation": {"yale": ValidationSection(slides=write_csv(rows, "yale.csv"))}}
    )
    own = external_plan(config, "yale", development.cohort)
    whole, part = Plan(config, development.cohort, external={"yale": own}), "validation/yale/"
    first = {"y": "0" if step == 1 else "3+"}
    texts = [
        validate_spec(whole, part, "score", "e"),
        external_heatmap_spec(whole, part, "score"),
        external_attention_spec(whole, part, "score"),
    ]
    for kind, text in zip(
        (ValidateSpec, ExternalHeatmapSpec, ExternalAttentionSpec), texts, strict=True
    ):
        spec: Any = load(kind, text)
        assert spec.first == first
        table = pl.DataFrame(
            [(row.slide_id, row.patient_id, row.labels["her2"]) for row in own.cohort.rows],
            schema=["slide_id", "patient_id", "label_her2"],
            orient="row",
        )
        targets = dict(slide_classes(table, spec).select("slide_id", "target").iter_rows())
        assert targets == {"y-a": 3 * (step == -1), "y-b": 3 * (step == -1), "z-c": 1}


@pytest.mark.parametrize(("label", "refused"), [(None, False), ("status", False), ("sttus", True)])
def test_a_label_column_that_an_external_cohort_names_must_be_there(write_csv, label, refused):
    """Without one that is named the slides would be predicted, and silently not evaluated."""
    development = plan(write_csv(ALIKE), None)
    rows = [{"slide_id": "y", "path": "y.svs", "patient_id": "y", "status": "3+"}]
    section = ValidationSection(
        slides=write_csv(rows, "yale.csv"), tasks={"score": ExternalTaskSection(label=label)}
    )
    config = development.config.model_copy(update={"validation": {"yale": section}})
    if not refused:
        assert len(external_plan(config, "yale", development.cohort).cohort.rows) == 1
        return
    with pytest.raises(UserError) as caught:
        external_plan(config, "yale", development.cohort)
    assert "column 'sttus' is missing, which validation.yale.tasks.score.label names" in str(
        caught.value
    )
    assert "the columns are slide_id, path, patient_id, status" in str(caught.value)
