"""Controls of one model in parts of the cohort: subgroups, their differences, within sites."""

import math
from collections.abc import Mapping

import numpy as np
import polars as pl
import polars.testing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm
from sklearn.metrics import roc_auc_score

from her2.config import EvaluationSection
from her2.config.learning import TISSUE
from her2.core.errors import UserError
from her2.evaluation.areas import class_area, held_out, within
from her2.evaluation.controls.covariates import covariates_of
from her2.evaluation.controls.patient_groups import UNKNOWN, patient_groups
from her2.evaluation.controls.subgroups import FAMILY, interactions, subgroup_figures, wald
from her2.evaluation.controls.within_groups import within_figures
from her2.evaluation.families import holm
from her2.evaluation.intervals import spread
from tests.unit.prediction_makers import SCORE, cohort_of, predictions

SECTION = EvaluationSection(bootstrap=100)
Groups = Mapping[str, Mapping[str, str]]


def groups_of(model: pl.DataFrame, cohort: pl.DataFrame, *columns: str) -> Groups:
    return patient_groups(model.filter(pl.col("role") == "test"), cohort, columns)


def by_patient(model: pl.DataFrame) -> pl.DataFrame:
    return (
        model.filter(pl.col("role") == "test")
        .group_by("patient_id", "repeat", "fold")
        .agg(pl.col("target").first(), pl.col("^prob_.*$").mean())
    )


def over_pairs(table: pl.DataFrame, same: list[str], name: str) -> float:
    """Return the share of pairs in order among those that agree in `same`, one by one."""
    score = pl.col(f"prob_{name}")
    positive = table["target"] == SCORE.class_names.index(name)
    pairs = table.filter(positive).join(table.filter(~positive), on=same, suffix="_other")
    other = pl.col(f"prob_{name}_other")
    won = pl.when(score > other).then(1.0).when(score == other).then(0.5).otherwise(0.0)
    return float(pairs.select(won.mean()).item())


def of_class(
    table: pl.DataFrame, by: str, name: str, group: str | None = None
) -> dict[str, object]:
    rows = table.filter((pl.col("by") == by) & (pl.col("class") == name))
    if group is not None:
        rows = rows.filter(pl.col("group") == group)
    return rows.row(0, named=True)


def test_the_auc_of_a_subgroup_is_over_pairs_of_its_patients_within_folds() -> None:
    model = predictions(90, slides=2)
    groups = groups_of(model, cohort_of(model))
    table = subgroup_figures(held_out(model, SCORE, level="patient"), groups, SCORE, SECTION)
    own = by_patient(model).filter(
        pl.col("patient_id").replace_strict(dict(groups["scanner"])) == "x"
    )
    row = of_class(table, "scanner", "0", "x")
    assert row["value"] == pytest.approx(over_pairs(own, ["fold"], "0"))
    assert (row["n"], row["n_positive"]) == (len(own), (own["target"] == 0).sum())


def test_the_subgroups_of_a_property_hold_every_patient_once() -> None:
    model = predictions(90, slides=2)
    groups = groups_of(model, cohort_of(model))
    table = subgroup_figures(held_out(model, SCORE, level="patient"), groups, SCORE, SECTION)
    of_macro = table.filter(pl.col("class") == "macro")
    for by in ("site", "scanner", TISSUE):
        assert of_macro.filter(pl.col("by") == by)["n"].sum() == 90
    assert of_macro.filter(pl.col("by") == TISSUE)["n"].to_list() == [30, 30, 30]


def test_the_first_third_has_the_patients_of_least_tissue_over_all_their_slides() -> None:
    model = predictions(60, slides=2)
    cohort = cohort_of(model)
    found = groups_of(model, cohort)[TISSUE]
    least = (
        cohort.group_by("p" + pl.col("slide_id").str.slice(1, 3).alias("patient_id"))
        .agg(pl.col("tissue_mm2").sum())
        .sort("tissue_mm2")
    ).to_series()[:20]
    assert {name for name, group in found.items() if group == "1 (least)"} == set(least)


@given(st.lists(st.integers(0, 20), min_size=12, max_size=60))
def test_patients_of_equal_numbers_are_in_the_same_third_and_more_is_never_in_a_lower_one(
    values: list[int],
) -> None:
    model = predictions(len(values), folds=2, tuned=False)
    numbers = {f"p{index:03d}": value for index, value in enumerate(values)}
    cohort = cohort_of(model).with_columns(
        column_age=pl.Series([str(numbers["p" + name[1:4]]) for name in model["slide_id"].sort()])
    )
    found = groups_of(model, cohort, "age").get("age", {})
    if len(set(values)) <= 10:
        assert set(found.values()) <= {str(value) for value in values}
        return
    thirds = {numbers[name]: set() for name in found}  # type: ignore[var-annotated]
    for name, group in found.items():
        thirds[numbers[name]].add(group)
    assert all(len(own) == 1 for own in thirds.values())
    in_order = [min(thirds[value]) for value in sorted(thirds)]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize("tissue", [5.0, None])
def test_what_is_the_same_for_everyone_or_not_known_is_no_property(tissue: float | None) -> None:
    model = predictions(40)
    cohort = cohort_of(model).with_columns(
        site=pl.lit("a"),
        scanner=pl.lit(None, pl.String),
        tissue_mm2=pl.lit(tissue, pl.Float64),
    )
    assert groups_of(model, cohort) == {}


def test_a_patient_has_the_value_of_the_first_slide_that_has_one() -> None:
    model = predictions(20, slides=2)
    cohort = cohort_of(model).with_columns(
        site=pl.when(pl.col("slide_id").str.ends_with("-1")).then(pl.lit("b"))
        .when(pl.col("slide_id") == "s000-0").then(pl.lit("a"))
    )  # fmt: skip
    found = groups_of(model, cohort)["site"]
    assert found["p000"] == "a"
    assert {group for name, group in found.items() if name != "p000"} == {"b"}


def test_a_column_of_the_config_is_a_property_and_a_covariate_by_its_values() -> None:
    model = predictions(40)
    n = 40
    cohort = cohort_of(model).with_columns(
        column_year=pl.Series([str(2000 + index % 3) for index in range(n)]),
        column_lab=pl.Series(["east", None] * (n // 2)),
        column_tiles=pl.Series(["few", "many"] * (n // 2)),
    )
    found = groups_of(model, cohort, "year", "lab", "tiles")
    assert list(found) == ["site", "scanner", "year", "lab", "tiles", TISSUE]
    assert set(found["year"].values()) == {"2000", "2001", "2002"}
    assert set(found["lab"].values()) == {"east", UNKNOWN}
    # Not the number of tiles, which the table has under that name.
    assert set(found["tiles"].values()) == {"few", "many"}
    inputs = covariates_of(cohort, cohort["slide_id"].to_list(), columns=("year", "lab", "tiles"))
    kinds = {row["covariate"]: row["kind"] for row in inputs.inputs.to_dicts()}
    assert (kinds["year"], kinds["lab"], kinds["tiles"]) == ("number", "category", "category")
    assert inputs.table["column_year"].to_list()[:3] == [2000.0, 2001.0, 2002.0]
    assert {"column_lab", "column_tiles"} < set(inputs.categories)


def test_a_declared_column_that_the_config_names_again_is_there_once() -> None:
    model = predictions(40)
    cohort = cohort_of(model)
    assert list(groups_of(model, cohort, "site")) == ["site", "scanner", TISSUE]
    slides = cohort["slide_id"].to_list()
    assert covariates_of(cohort, slides, columns=("site",)).inputs.equals(
        covariates_of(cohort, slides).inputs
    )


def test_the_label_of_the_task_is_no_covariate_but_that_of_another_task_may_be() -> None:
    model = predictions(40)
    cohort = cohort_of(model).with_columns(
        label_her2=pl.Series(["0", "3+"] * 20), label_er=pl.Series(["-", "+"] * 20)
    )
    found = covariates_of(
        cohort, cohort["slide_id"].to_list(), columns=("her2", "er"), label="her2"
    )
    assert "label_her2" not in found.categories
    assert "label_er" in found.categories
    row = found.inputs.filter(pl.col("covariate") == "her2").row(0, named=True)
    assert (row["used"], row["note"]) == (False, "the label of the task")


def test_a_column_that_the_table_lacks_is_named() -> None:
    model = predictions(12)
    with pytest.raises(UserError, match="no column 'year'; run snakemake again"):
        groups_of(model, cohort_of(model), "year")


def test_a_subgroup_without_a_class_is_null_with_the_reason_and_a_small_one_is_noted() -> None:
    model = predictions(40)
    cohort = cohort_of(model).with_columns(
        site=pl.when(pl.col("slide_id") < "s003").then(pl.lit("small")).otherwise(pl.lit("large"))
    )
    rows = held_out(model, SCORE, level="patient")
    table = subgroup_figures(rows, groups_of(model, cohort), SCORE, SECTION)
    row = of_class(table, "site", "macro", "small")
    assert row["n"] == 3
    assert row["value"] is None
    assert row["note"] == "not defined: no patient of 3+; fewer than 10 patients"
    assert of_class(table, "site", "macro", "large")["note"] == ""


def test_the_rows_within_groups_keep_the_pairs_of_the_same_test_set_and_group() -> None:
    model = predictions(60, repeats=2, slides=2)
    cohort = cohort_of(model)
    groups = groups_of(model, cohort)
    rows = held_out(model, SCORE, level="patient")
    table = within_figures(rows, groups, SCORE, SECTION)
    own = by_patient(model).with_columns(
        site=pl.col("patient_id").replace_strict(dict(groups["site"]))
    )
    each = [own.filter(pl.col("repeat") == repeat) for repeat in (0, 1)]
    row = of_class(table, "site", "2+")
    inside = [over_pairs(one, ["fold", "site"], "2+") for one in each]
    everywhere = [over_pairs(one, ["fold"], "2+") for one in each]
    assert row["value"] == pytest.approx(np.mean(inside))
    assert row["overall"] == pytest.approx(np.mean(everywhere))


def test_within_one_group_of_everyone_every_figure_is_the_overall_one() -> None:
    model = predictions(60, repeats=2)
    rows = held_out(model, SCORE, level="patient")
    all_of_one = {"site": dict.fromkeys(rows.names, "a")}
    for row in within_figures(rows, all_of_one, SCORE, SECTION).to_dicts():
        assert row["value"] == pytest.approx(row["overall"])
        assert row["pairs"] == 1
        assert row["n"] == 60


def test_the_number_of_test_sets_is_not_raised_by_groups() -> None:
    """Or a single fixed test set would be treated as if it were cross-validated."""
    rows = held_out(predictions(40, folds=1, tuned=False), SCORE, level="patient")
    assert rows.folds == within(rows, np.arange(40) % 4).folds == 1


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), groups=st.integers(1, 6))
def test_the_order_of_groups_changes_nothing(seed: int, groups: int) -> None:
    generator = np.random.default_rng(seed)
    model = predictions(40, tuned=False, seed=seed)
    rows = held_out(model, SCORE, level="patient")
    codes = generator.integers(0, groups, 40)
    other = generator.permutation(groups)[codes]
    found = [
        within_figures(
            rows, {"g": {n: str(c) for n, c in zip(rows.names, one, strict=True)}}, SCORE, SECTION
        )
        for one in (codes, other)
    ]
    pl.testing.assert_frame_equal(*found)


def test_a_pure_site_signature_is_above_chance_overall_and_chance_within_sites() -> None:
    """A model that only knows how frequent each score is at the patient's site."""
    generator = np.random.default_rng(4)
    model = predictions(240, tuned=False)
    shares = np.array([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.3, 0.5], [0.1, 0.4, 0.4, 0.1]])
    targets = model.sort("patient_id")["target"].to_numpy()
    sites = np.array([generator.choice(3, p=shares[:, k] / shares[:, k].sum()) for k in targets])
    place = {f"p{index:03d}": int(site) for index, site in enumerate(sites)}
    own = np.array([place[name] for name in model["patient_id"]])
    model = model.with_columns(
        pl.Series(f"prob_{name}", shares[own, index])
        for index, name in enumerate(SCORE.class_names)
    )
    rows = held_out(model, SCORE, level="patient")
    groups = {"site": {name: "abc"[site] for name, site in place.items()}}
    row = of_class(within_figures(rows, groups, SCORE, SECTION), "site", "macro")
    assert row["overall"] > 0.6
    assert row["value"] == 0.5  # all patients of a site have the same prediction
    pairs = row["pairs"]
    assert isinstance(pairs, float)
    assert 0.2 < pairs < 0.5


def test_a_signal_in_the_tissue_is_as_high_within_sites() -> None:
    model = predictions(240, signal=1.5)
    rows = held_out(model, SCORE, level="patient")
    table = within_figures(rows, groups_of(model, cohort_of(model)), SCORE, SECTION)
    row = of_class(table, "site", "macro")
    assert row["value"] == pytest.approx(row["overall"], abs=0.03)


def test_patients_of_an_unknown_site_are_left_out_and_counted() -> None:
    model = predictions(80)
    known = cohort_of(model)
    cohort = known.with_columns(
        site=pl.when(pl.col("slide_id") < "s020").then(None).otherwise("site")
    )
    rows = held_out(model, SCORE, level="patient")
    row = of_class(within_figures(rows, groups_of(model, cohort), SCORE, SECTION), "site", "macro")
    only = model.filter(pl.col("slide_id") >= "s020")
    expected = of_class(
        within_figures(
            held_out(only, SCORE, level="patient"), groups_of(only, known), SCORE, SECTION
        ),
        "site",
        "macro",
    )
    assert row["note"] == "patients whose site is not known: 20"
    for name in ("value", "low", "high", "n"):
        assert row[name] == expected[name]


def test_where_each_site_has_one_class_nothing_is_left_within_sites() -> None:
    model = predictions(40)
    rows = held_out(model, SCORE, level="patient")
    groups = groups_of(model, cohort_of(model, site="label"))
    for row in within_figures(rows, {"site": groups["site"]}, SCORE, SECTION).to_dicts():
        assert row["value"] is None
        assert row["pairs"] == 0
        assert row["n"] == 0
        name = "some class" if row["class"] == "macro" else row["class"]
        assert row["note"] == (
            f"not defined: no patient of {name} shares test set and site with one of another class"
        )


def test_patients_without_a_partner_make_the_interval_no_narrower() -> None:
    """Patients alone at their site are not compared, so they do not count."""
    model = predictions(80, tuned=False)
    rows = held_out(model, SCORE, level="patient")
    alone = {name: "a" if index < 40 else name for index, name in enumerate(rows.names)}
    part = model.filter(pl.col("patient_id") < "p040")
    one, expected = (
        of_class(within_figures(own, {"g": groups}, SCORE, SECTION), "g", "1+")
        for own, groups in (
            (rows, alone),
            (held_out(part, SCORE, level="patient"), dict.fromkeys(rows.names[:40], "a")),
        )
    )
    assert expected["n"] == 40
    for name in ("value", "low", "high", "n", "n_positive"):
        assert one[name] == expected[name]


def test_wald_of_two_groups_is_the_square_of_the_difference_over_its_standard_error() -> None:
    model = predictions(160, tuned=False)
    rows = held_out(model, SCORE, level="patient")
    halves = [within(rows, np.where(np.arange(160) // 80 == half, 0, -1)) for half in (0, 1)]
    areas = [class_area(half, 0) for half in halves]
    logits = [math.log(area.value / (1 - area.value)) for area in areas]
    variances = [spread(area)[0] / (area.value * (1 - area.value)) ** 2 for area in areas]
    z = (logits[0] - logits[1]) / math.sqrt(sum(variances))
    found, p = wald(areas)
    assert found == pytest.approx(z**2)
    assert p == pytest.approx(2 * norm.sf(abs(z)))
    # Three of which two are the same: by the formula for any number of groups.
    three = [*areas, areas[1]]
    weights = 1 / np.array([*variances, variances[1]])
    values = np.array([*logits, logits[1]])
    q = (weights * (values - np.average(values, weights=weights)) ** 2).sum()
    assert wald(three)[0] == pytest.approx(q)
    assert wald(three)[1] == pytest.approx(chi2.sf(q, 2))


def test_an_auc_that_differs_between_sites_is_found_and_others_are_not() -> None:
    good, useless = predictions(80, signal=3.0), predictions(80, signal=0.0, seed=1)
    other = useless.with_columns(
        slide_id="t" + pl.col("slide_id"), patient_id="q" + pl.col("patient_id")
    )
    model = pl.concat([good, other])
    rows = held_out(model, SCORE, level="patient")
    groups = {
        "site": {name: "good" if name.startswith("p") else "useless" for name in rows.names},
        "year": {name: str(int(name[-3:]) // 4 % 2) for name in rows.names},
    }
    table = interactions(rows, groups, SCORE)
    site, year = table.to_dicts()
    assert site["p_holm"] < 0.001
    assert (site["lowest_group"], site["highest_group"]) == ("useless", "good")
    assert site["highest"] > 0.9 > 0.6 > site["lowest"]
    assert year["p"] > 0.05
    assert (site["n"], year["n"]) == (160, 160)
    np.testing.assert_allclose(table["p_holm"], holm(table["p"].to_numpy()))
    assert set(table["family"]) == {FAMILY}
    assert set(table["family_size"]) == {2}


def test_groups_that_differ_in_nothing_give_few_small_p_values() -> None:
    found = []
    for seed in range(150):
        model = predictions(96, tuned=False, seed=seed)
        rows = held_out(model, SCORE, level="patient")
        groups = {name: "abc"[index // 4 % 3] for index, name in enumerate(rows.names)}
        found.append(interactions(rows, {"g": groups}, SCORE)["p"].item())
    assert 0.0 < np.mean(np.array(found) <= 0.1) < 0.15
    assert np.mean(np.array(found) <= 0.05) < 0.09


def test_a_group_of_few_patients_of_a_class_is_left_out_by_name() -> None:
    model = predictions(100, tuned=False)
    rows = held_out(model, SCORE, level="patient")
    groups = {
        name: "c" if index >= 84 else "ab"[index // 4 % 2] for index, name in enumerate(rows.names)
    }
    row = interactions(rows, {"g": groups}, SCORE).row(0, named=True)
    assert row["groups"] == 2
    assert row["n"] == 84
    assert row["note"] == "left out: c: fewer than 5 patients of 0 and 1+ and 2+ and 3+"
    kept = {name: group for name, group in groups.items() if group != "c"}
    part = held_out(model.filter(pl.col("patient_id").is_in(list(kept))), SCORE, level="patient")
    assert interactions(part, {"g": kept}, SCORE)["p"].item() == pytest.approx(row["p"])


def test_a_perfect_group_is_left_out_with_its_auc_and_one_group_is_not_tested() -> None:
    model = predictions(80, tuned=False)
    perfect = pl.col("patient_id") < "p040"
    model = model.with_columns(
        pl.when(perfect)
        .then((pl.col("target") == index).cast(pl.Float64))
        .otherwise(f"prob_{name}")
        .alias(f"prob_{name}")
        for index, name in enumerate(SCORE.class_names)
    )
    rows = held_out(model, SCORE, level="patient")
    groups = {name: "best" if name < "p040" else "rest" for name in rows.names}
    row = interactions(rows, {"g": groups}, SCORE).row(0, named=True)
    assert row["p"] is None
    assert row["p_holm"] is None
    assert row["family_size"] == 0
    assert row["note"] == (
        "not tested: fewer than 2 groups can be; left out: best: an AUC of 1.000 has no variance"
    )
    # The one group that is left is neither the lowest nor the highest.
    ends = ("lowest_group", "lowest", "highest_group", "highest")
    assert [row[end] for end in ends] == [None] * 4


def test_without_a_property_the_tables_are_empty_and_have_their_columns() -> None:
    rows = held_out(predictions(20), SCORE, level="patient")
    for table, column in (
        (subgroup_figures(rows, {}, SCORE, SECTION), "group"),
        (interactions(rows, {}, SCORE), "p_holm"),
        (within_figures(rows, {}, SCORE, SECTION), "pairs"),
    ):
        assert len(table) == 0
        assert column in table.columns


def test_the_auc_of_a_subgroup_in_one_test_set_is_scikit_learns() -> None:
    model = predictions(60, folds=1, tuned=False)
    rows = held_out(model, SCORE, level="patient")
    groups = {"g": {name: "ab"[index // 4 % 2] for index, name in enumerate(rows.names)}}
    row = of_class(subgroup_figures(rows, groups, SCORE, SECTION), "g", "3+", "a")
    own = model.filter(pl.col("patient_id").replace_strict(groups["g"]) == "a")
    assert row["value"] == pytest.approx(roc_auc_score(own["target"] == 3, own["prob_3+"]))
