from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2.cohort.folds import check_disjoint, class_of, make_folds
from her2.cohort.manifest import Cohort, SlideRow
from her2.cohort.split import assign_roles
from her2.config import Task
from her2.config.jobs import FoldsSpec
from her2.core.errors import UserError

TASK = Task(label="her2", classes={"0": ["0"], "1+": ["1+"], "2+": ["2+"], "3+": ["3+"]})
BINARY = Task(label="her2", classes={"negative": ["0", "1+"], "positive": ["2+", "3+"]})
QUICK = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def row(patient: str, letter: str, her2: str | None) -> SlideRow:
    slide_id = f"{patient}-{letter}"
    labels = {} if her2 is None else {"her2": her2}
    return SlideRow(slide_id, f"{slide_id}.svs", patient, labels)


def cohort(rows: list[SlideRow]) -> Cohort:
    return Cohort(tuple(sorted(rows, key=lambda r: r.slide_id)), Path("/nowhere"))


def balanced(per_class: int = 6, classes: int = 4) -> list[SlideRow]:
    scores = ["0", "1+", "2+", "3+"][:classes]
    return [row(f"p{i}{c}", "a", c) for c in scores for i in range(per_class)]


def spec(task: Task = TASK, **changed: object) -> FoldsSpec:
    values = {"rows": "", "task": task, "folds": 3, "repeats": 1, "tune": 0.25, "seed": 5}
    return FoldsSpec(**(values | changed))


def folds_of(rows: list[SlideRow], folder: Path, **changed: object) -> pl.DataFrame:
    return make_folds(spec(**changed), cohort(rows), folder / "folds.parquet")


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[SlideRow], int, int]:
    """Rows of patients with 1 to 3 slides and one label or none; a number of folds that fits."""
    folds = draw(st.integers(2, 5))
    rows, number = [], 0
    for her2 in (*TASK.class_names, None):
        least = 0 if her2 is None else max(4 if folds == 2 else 3, folds)
        for _ in range(draw(st.integers(least, least + 7))):
            number += 1
            # Ids whose order is not the order in which they are made.
            patient = f"p{number * 7919 % 104729:06d}"
            for letter in "abc"[: draw(st.integers(1, 3))]:
                missing = letter != "a" and draw(st.booleans())
                rows.append(row(patient, letter, None if missing else her2))
    return rows, folds, draw(st.integers(1, 2))


@QUICK
@given(case=cohorts(), seed=st.integers(0, 2**31 - 1), tune=st.floats(0.01, 0.49))
def test_a_patient_never_crosses_folds(
    tmp_path: Path, case: tuple[list[SlideRow], int, int], seed: int, tune: float
) -> None:
    rows, folds, repeats = case
    table = folds_of(rows, tmp_path, folds=folds, repeats=repeats, seed=seed, tune=tune)
    labelled = table.filter(pl.col("role") != "predict")
    roles = labelled.group_by("repeat", "fold", "patient_id").agg(pl.col("role").n_unique())
    assert (roles["role"] == 1).all()
    check_disjoint(table)


@QUICK
@given(case=cohorts(), seed=st.integers(0, 2**31 - 1))
def test_each_labelled_slide_is_tested_exactly_once_in_a_repeat(
    tmp_path: Path, case: tuple[list[SlideRow], int, int], seed: int
) -> None:
    rows, folds, repeats = case
    table = folds_of(rows, tmp_path, folds=folds, repeats=repeats, seed=seed)
    tested = Counter(
        table.filter(pl.col("role") == "test").select("repeat", "slide_id").iter_rows()
    )
    expected = {(r, s.slide_id): 1 for r in range(repeats) for s in rows if s.labels}
    assert tested == expected


@QUICK
@given(case=cohorts(), seed=st.integers(0, 2**31 - 1), tune=st.floats(0.01, 0.49))
def test_every_part_of_every_fold_holds_every_class(
    tmp_path: Path, case: tuple[list[SlideRow], int, int], seed: int, tune: float
) -> None:
    rows, folds, repeats = case
    table = folds_of(rows, tmp_path, folds=folds, repeats=repeats, seed=seed, tune=tune)
    parts = (
        table.filter(pl.col("role") != "predict")
        .group_by("repeat", "fold", "role")
        .agg(pl.col("label").unique().sort())
    )
    assert len(parts) == repeats * folds * 3
    assert all(labels == [0, 1, 2, 3] for labels in parts["label"].to_list())


@QUICK
@given(case=cohorts(), seed=st.integers(0, 2**31 - 1))
def test_test_parts_differ_by_at_most_one_patient_of_a_class(
    tmp_path: Path, case: tuple[list[SlideRow], int, int], seed: int
) -> None:
    rows, folds, repeats = case
    table = folds_of(rows, tmp_path, folds=folds, repeats=repeats, seed=seed)
    counts = (
        table.filter(pl.col("role") == "test")
        .group_by("repeat", "label", "fold")
        .agg(pl.col("patient_id").n_unique())
        .group_by("repeat", "label")
        .agg(spread=pl.col("patient_id").max() - pl.col("patient_id").min())
    )
    assert len(counts) == repeats * len(TASK.classes)
    assert counts["spread"].max() <= 1


@QUICK
@given(case=cohorts(), seed=st.integers(0, 2**31 - 1))
def test_an_unlabelled_slide_is_predicted_in_every_fold_and_learnt_from_in_none(
    tmp_path: Path, case: tuple[list[SlideRow], int, int], seed: int
) -> None:
    rows, folds, repeats = case
    table = folds_of(rows, tmp_path, folds=folds, repeats=repeats, seed=seed)
    assert len(table) == len(rows) * folds * repeats
    unlabelled = pl.col("slide_id").is_in([r.slide_id for r in rows if not r.labels])
    assert table.filter(unlabelled)["role"].unique().to_list() in ([], ["predict"])
    assert table.filter(unlabelled)["label"].null_count() == table.filter(unlabelled).height
    assert "predict" not in table.filter(~unlabelled)["role"].to_list()


@QUICK
@given(case=cohorts(), random=st.randoms(use_true_random=False))
def test_the_order_of_patients_changes_no_role(
    case: tuple[list[SlideRow], int, int], random: Random
) -> None:
    rows, folds, repeats = case
    patients = {r.patient_id: TASK.class_index(r.labels["her2"]) for r in rows if r.labels}
    names = list(patients)
    random.shuffle(names)
    options = {"folds": folds, "repeats": repeats, "tune": 0.2, "seed": 1}
    shuffled = assign_roles({name: patients[name] for name in names}, TASK, **options)
    assert shuffled == assign_roles(patients, TASK, **options)


def test_the_seed_decides_the_folds(tmp_path: Path) -> None:
    rows = balanced()
    first = folds_of(rows, tmp_path, seed=1)
    assert first.equals(folds_of(rows, tmp_path, seed=1))
    assert not first.equals(folds_of(rows, tmp_path, seed=2))


def test_repeats_are_different_cross_validations(tmp_path: Path) -> None:
    table = folds_of(balanced(), tmp_path, repeats=2)
    tested = [
        set(table.filter((pl.col("repeat") == r) & (pl.col("role") == "test"))
            .select("fold", "slide_id").iter_rows())
        for r in (0, 1)
    ]  # fmt: skip
    assert tested[0] != tested[1]


def test_a_second_repeat_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    once = folds_of(balanced(), tmp_path, repeats=1)
    twice = folds_of(balanced(), tmp_path, repeats=2)
    assert twice.filter(pl.col("repeat") == 0).equals(once)


def test_another_slide_of_a_patient_moves_nobody(tmp_path: Path) -> None:
    rows = balanced()
    more = folds_of([*rows, row(rows[0].patient_id, "b", "0")], tmp_path)
    known = pl.col("slide_id") != f"{rows[0].patient_id}-b"
    assert more.filter(known).equals(folds_of(rows, tmp_path))


@pytest.mark.parametrize(("tune", "patients"), [(0.2, 2), (0.25, 3), (0.4, 4), (0.01, 1)])
def test_the_tune_part_is_the_share_of_each_class_that_was_asked_for(
    tmp_path: Path, tune: float, patients: int
) -> None:
    # 15 patients a class in 3 folds leave 10 a class for train and tune; round(2.5) is 2 or 3.
    table = folds_of(balanced(15), tmp_path, tune=tune)
    counts = table.filter(pl.col("role") == "tune").group_by("fold", "label").len()["len"]
    assert len(counts) == 12
    assert all(abs(count - patients) <= (tune == 0.25) for count in counts)


def test_the_written_table_is_the_returned_one(tmp_path: Path) -> None:
    table = folds_of(balanced(), tmp_path)
    assert pl.read_parquet(tmp_path / "folds.parquet").equals(table)
    assert table.schema == {
        "slide_id": pl.String,
        "patient_id": pl.String,
        "label": pl.Int32,
        "repeat": pl.Int32,
        "fold": pl.Int32,
        "role": pl.String,
    }


def test_a_task_regroups_the_label_values(tmp_path: Path) -> None:
    table = folds_of(balanced(), tmp_path, task=BINARY)
    pairs = set(table.select(pl.col("slide_id").str.slice(2, 1), "label").iter_rows())
    assert pairs == {("0", 0), ("1", 0), ("2", 1), ("3", 1)}


def test_a_value_that_a_task_does_not_name_counts_as_unlabelled(tmp_path: Path) -> None:
    low = Task(label="her2", classes={"zero": ["0"], "one": ["1+"]})
    table = folds_of(balanced(), tmp_path, task=low)
    others = table.filter(pl.col("slide_id").str.slice(2, 1).is_in(["2", "3"]))
    assert others["role"].unique().to_list() == ["predict"]
    assert class_of(low, {"her2": "3+"}) is None
    assert class_of(low, {}) is None
    assert class_of(low, {"her2": "1+"}) == 1


def test_a_class_with_fewer_patients_than_folds_is_named_with_its_count_and_the_mend(
    tmp_path: Path,
) -> None:
    rows = [*balanced(6, classes=3), *(row(f"q{i}", "a", "3+") for i in range(4))]
    with pytest.raises(UserError) as caught:
        folds_of(rows, tmp_path, folds=5)
    text = str(caught.value)
    assert "folds.number 5" in text
    assert "'3+' (4)" in text
    assert "'2+'" not in text
    assert "set folds.number to 4," in text
    assert not (tmp_path / "folds.parquet").exists()
    assert len(folds_of(rows, tmp_path, folds=4))  # the mend works


def test_two_folds_need_four_patients_of_a_class_and_three_folds_need_three(
    tmp_path: Path,
) -> None:
    # Of three patients, two are tested together: one is left for train and tune.
    rows = balanced(3)
    with pytest.raises(UserError, match="needs 4 patients.*: set folds.number to 3,"):
        folds_of(rows, tmp_path, folds=2)
    assert len(folds_of(rows, tmp_path, folds=3))


def test_slides_do_not_make_up_for_patients(tmp_path: Path) -> None:
    rows = [*balanced(6, classes=3), *(row("q", letter, "3+") for letter in "abcdef")]
    with pytest.raises(UserError, match=r"'3\+' \(1\): merge classes"):
        folds_of(rows, tmp_path, folds=2)


def test_a_class_without_any_patient_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'3\+' \(0\)"):
        folds_of(balanced(classes=3), tmp_path)


def test_a_crossing_patient_is_named_with_repeat_fold_and_parts(tmp_path: Path) -> None:
    rows = balanced()
    table = folds_of([*rows, row(rows[0].patient_id, "b", "0")], tmp_path)
    crossed = table.with_columns(
        role=pl.when((pl.col("slide_id") == f"{rows[0].patient_id}-b") & (pl.col("fold") == 1))
        .then(pl.lit("test"))
        .otherwise(pl.lit("train"))
    )
    with pytest.raises(UserError, match="repeat 0, fold 1: p00 in test and train") as caught:
        check_disjoint(crossed)
    assert str(caught.value).count("repeat") == 1


def test_a_patient_may_have_labelled_and_unlabelled_slides(tmp_path: Path) -> None:
    rows = balanced()
    table = folds_of([*rows, row(rows[0].patient_id, "b", None)], tmp_path)
    check_disjoint(table)
    assert np.unique(table.filter(pl.col("slide_id") == "p00-b")["role"]).tolist() == ["predict"]


# Sites


def sited(counts: dict[str, dict[str, int]]) -> list[SlideRow]:
    """Patients by site and score."""
    return [
        replace(row(f"{site}{her2[0]}{i}", "a", her2), site=site)
        for site, scores in counts.items()
        for her2, count in scores.items()
        for i in range(count)
    ]


EVEN = {site: {"0": 4, "1+": 4, "2+": 4, "3+": 4} for site in ("east", "north", "south", "west")}


def sites_of(table: pl.DataFrame, rows: list[SlideRow], role: str) -> dict[int, set[str]]:
    places = {r.slide_id: r.site for r in rows}
    found: dict[int, set[str]] = {}
    for slide, fold in table.filter(pl.col("role") == role).select("slide_id", "fold").iter_rows():
        found.setdefault(fold, set()).add(places[slide])
    return found


@QUICK
@given(
    counts=st.dictionaries(
        st.sampled_from(["a", "b", "c", "d", "e"]),
        st.fixed_dictionaries({s: st.integers(1, 6) for s in ("0", "1+", "2+", "3+")}),
        min_size=4,
    ),
    folds=st.integers(3, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_stratified_sites_spread_each_score_and_each_score_of_a_site_evenly(
    tmp_path: Path, counts: dict[str, dict[str, int]], folds: int, seed: int
) -> None:
    rows = sited(counts)
    table = folds_of(rows, tmp_path, folds=folds, seed=seed, sites="stratified")
    check_disjoint(table)
    place = {r.slide_id: r.site for r in rows}
    test = table.filter(pl.col("role") == "test").with_columns(
        site=pl.col("slide_id").replace_strict(place)
    )
    assert sorted(test["slide_id"]) == sorted(place)
    for keys in ([], ["label"], ["label", "site"]):
        pairs = test.select(*keys, "fold").rows()
        tally = Counter(pairs)
        for key in {pair[:-1] for pair in pairs}:
            sizes = [tally[(*key, fold)] for fold in range(folds)]
            assert max(sizes) - min(sizes) <= 1, key


@QUICK
@given(seed=st.integers(0, 2**31 - 1), folds=st.integers(2, 4), repeats=st.integers(1, 2))
def test_a_preserved_site_is_never_on_both_sides(
    tmp_path: Path, seed: int, folds: int, repeats: int
) -> None:
    rows = sited(EVEN)
    table = folds_of(rows, tmp_path, seed=seed, folds=folds, repeats=repeats, sites="preserved")
    check_disjoint(table)
    for repeat in range(repeats):
        part = table.filter(pl.col("repeat") == repeat)
        tested = sites_of(part, rows, "test")
        assert sorted(site for sites in tested.values() for site in sites) == sorted(EVEN)
        for role in ("train", "tune"):
            learnt = sites_of(part, rows, role)
            assert all(not tested[fold] & learnt[fold] for fold in range(folds))


def test_leaving_one_site_out_tests_each_site_once(tmp_path: Path) -> None:
    rows = sited(EVEN)
    table = folds_of(rows, tmp_path, folds=4, sites="leave_one_out")
    assert sites_of(table, rows, "test") == {i: {s} for i, s in enumerate(sorted(EVEN))}
    assert all(
        labels == [0, 1, 2, 3]
        for labels in table.filter(pl.col("role") != "predict")
        .group_by("fold", "role")
        .agg(pl.col("label").unique().sort())["label"]
        .to_list()
    )


def test_folds_that_ignore_sites_are_those_without_sites(tmp_path: Path) -> None:
    rows = sited(EVEN)
    bare = [replace(r, site=None) for r in rows]
    assert folds_of(rows, tmp_path).equals(folds_of(bare, tmp_path))


def refused(rows: list[SlideRow], folder: Path, **changed: object) -> str:
    with pytest.raises(UserError) as caught:
        folds_of(rows, folder, **changed)
    assert not (folder / "folds.parquet").exists()
    return str(caught.value)


def test_fewer_sites_than_folds_say_how_many_and_what_would_work(tmp_path: Path) -> None:
    text = refused(sited(EVEN), tmp_path, folds=5, sites="preserved")
    assert "are of 4 sites (east, north, south, west); set folds.number to 4, or use" in text
    one = refused(sited({"east": EVEN["east"]}), tmp_path, folds=2, sites="leave_one_out")
    assert "are of 1 site (east); use `sites: stratified`" in one


def test_a_score_that_one_site_holds_alone_is_named_with_the_site(tmp_path: Path) -> None:
    counts = {**EVEN, "west": {**EVEN["west"], "3+": 9}}
    for site in ("east", "north", "south"):
        counts[site] = {**EVEN[site], "3+": 0}
    text = refused(sited(counts), tmp_path, folds=4, sites="leave_one_out")
    assert "with west held out, class '3+' of 'her2' has 0 patients left" in text
    assert len(folds_of(sited(counts), tmp_path, folds=4, sites="stratified"))  # the mend works


def test_a_patient_without_a_site_or_of_two_is_named(tmp_path: Path) -> None:
    rows = sited(EVEN)
    rows[0] = replace(rows[0], site=None)
    rows.append(replace(rows[1], slide_id="again", site="west"))
    text = refused(rows, tmp_path, sites="preserved")
    assert f"patient {rows[0].patient_id}: has no site" in text
    assert f"patient {rows[1].patient_id}: is of east and west" in text
    assert len(folds_of(rows, tmp_path, sites="stratified"))


# A fixed split


def split(rows: list[SlideRow], test: int = 2, tune: int = 0) -> list[SlideRow]:
    """The first patients of each score are tested, the next tuned on."""
    seen: Counter[str] = Counter()
    found = []
    for r in rows:
        her2 = r.labels["her2"]
        seen[her2] += 1
        role = "test" if seen[her2] <= test else "tune" if seen[her2] <= test + tune else "train"
        found.append(replace(r, split=role))
    return found


def test_a_fixed_split_is_honoured_as_it_stands(tmp_path: Path) -> None:
    rows = split(balanced(), tune=1)
    table = folds_of(rows, tmp_path, split=True)
    assert dict(table.select("slide_id", "role").iter_rows()) == {r.slide_id: r.split for r in rows}
    assert table.select("repeat", "fold").unique().rows() == [(0, 0)]


def test_a_split_without_a_tune_part_gets_one_from_its_train_patients(tmp_path: Path) -> None:
    rows = split(balanced(12))
    table = folds_of(rows, tmp_path, split=True, tune=0.2)
    assert table.equals(folds_of(rows, tmp_path, split=True, tune=0.2))
    tested = table.filter(pl.col("role") == "test")["slide_id"].to_list()
    assert sorted(tested) == sorted(r.slide_id for r in rows if r.split == "test")
    counts = table.filter(pl.col("role") == "tune").group_by("label").len()["len"].to_list()
    assert counts == [2, 2, 2, 2]  # a fifth of ten


@pytest.mark.parametrize("word", ["val", "Validation", "TUNE"])
def test_other_words_for_tune_are_understood(tmp_path: Path, word: str) -> None:
    rows = [replace(r, split=word) if r.split == "tune" else r for r in split(balanced(), tune=1)]
    assert folds_of(rows, tmp_path, split=True).filter(pl.col("role") == "tune").height == 4


def test_a_split_that_does_not_fit_is_refused_with_every_problem(tmp_path: Path) -> None:
    rows = split(balanced())
    rows[0] = replace(rows[0], split="holdout")
    rows[1] = replace(rows[1], split=None)
    rows.append(replace(rows[2], slide_id="again", split="test"))
    text = refused(rows, tmp_path, split=True)
    assert f"slide {rows[0].slide_id}, column 'split': 'holdout'" in text
    assert f"slide {rows[1].slide_id}, column 'split': is empty" in text
    assert f"patient {rows[2].patient_id}: has slides in test and train" in text
    assert "set `folds.split: ignore`" in text


def test_a_split_whose_train_part_lacks_a_class_names_it(tmp_path: Path) -> None:
    rows = [replace(r, split="test") if r.labels["her2"] == "3+" else r for r in split(balanced())]
    assert "leaves 0 train patients of class '3+'" in refused(rows, tmp_path, split=True)
    trained = [replace(r, split="train") for r in rows]
    assert "names no test patient" in refused(trained, tmp_path, split=True)


def test_an_unlabelled_slide_needs_no_split(tmp_path: Path) -> None:
    rows = [*split(balanced()), row("u", "a", None)]
    table = folds_of(rows, tmp_path, split=True)
    assert table.filter(pl.col("slide_id") == "u-a")["role"].to_list() == ["predict"]
