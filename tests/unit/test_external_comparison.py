"""Models on an external cohort are compared on the same patients; its cases stand beside ours."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from her2.config.external_jobs import ExternalSpec, Truth
from her2.evaluation.external.case_mix import Cases, category, number
from her2.evaluation.external.compare import compare_external, external_comparison
from her2.evaluation.external.tables import CASE_MIX
from tests.unit.external_makers import BINARY, SAME, SECTION, World, frozen, one, spec_of, world

ENCODERS, HEADS = ("he", "net"), ("abmil", "mean")


def spec(**truths: Truth) -> ExternalSpec:
    return ExternalSpec(
        cohort="yale",
        truths=truths or {"status": BINARY},
        encoders=ENCODERS,
        domains={"he": "he", "net": "natural"},
        grids=dict.fromkeys(ENCODERS, "g"),
        heads=HEADS,
        evaluation=SECTION,
        seed=1,
    )


def models(
    own: World, truth: Truth = BINARY, keep: Callable[[int], slice] = lambda _: slice(None)
) -> dict[tuple[str, str], pl.DataFrame]:
    """Return the predictions of four models; `keep` tells which slides each predicted."""
    labels = [i % 4 for i in range(len(own.given))]
    return {
        (encoder, head): World(
            frozen(labels, signal=1 + place / 2, seed=place)[keep(place)], own.cohort
        )
        .evaluated(spec_of(truth))
        .predictions
        for place, (encoder, head) in enumerate((e, h) for e in ENCODERS for h in HEADS)
    }


def test_models_are_compared_on_the_patients_that_all_of_them_predicted() -> None:
    own = world(60, truth=BINARY)
    found = models(own, keep=lambda place: slice(place, None))
    comparison, _ = external_comparison(spec(), {"status": found})
    row = one(comparison, kind="encoders", within="mean", grouping="negative vs positive")
    truth = np.arange(60)[3:] % 4 >= 2
    values = [
        roc_auc_score(truth, found[name, "mean"]["prob_positive"].to_numpy()[-57:])
        for name in ENCODERS
    ]
    assert [row["first_value"], row["second_value"]] == pytest.approx(values)
    assert row["difference"] == pytest.approx(values[0] - values[1])
    assert row["n"] == 57
    assert row["note"] == "patients left out because not all models tested them: 3"


def test_p_values_are_corrected_over_all_truths_of_the_cohort() -> None:
    by_status, by_score = world(60, truth=BINARY), world(60)
    comparison, _ = external_comparison(
        spec(status=BINARY, score=SAME),
        {"status": models(by_status), "score": models(by_score, SAME)},
    )
    family = comparison.filter(pl.col("family") == "heads")
    # All rows of a truth of two classes are one test, as is 3+ against the rest.
    tests = family.filter(
        (pl.col("task") == "status") & (pl.col("class") == "macro")
        | (pl.col("task") == "score") & (pl.col("class") != "3+")
    )
    _, expected, *_ = multipletests(tests["p"].to_numpy(), method="holm")
    assert tests["p_holm"].to_list() == pytest.approx(expected)
    assert set(family["family_size"]) == {len(tests)}


@pytest.mark.parametrize("given", ["no label", "nothing in common"])
def test_models_without_a_common_patient_have_rows_and_the_reason(given: str) -> None:
    own = world(40, truth=BINARY)
    if given == "no label":
        own = World(own.given, own.cohort.with_columns(label_status=pl.lit(None, pl.String)))
        found = models(own)
    else:
        found = models(own, keep=lambda place: slice(10 * place, 10 * place + 10))
    comparison, statement = external_comparison(spec(), {"status": found})
    assert len(comparison) == 4 * 4
    assert comparison["difference"].null_count() == len(comparison)
    for table in (comparison, statement):
        assert table["p_holm"].null_count() == len(table)
        assert all(table["note"])
    assert comparison["note"].str.contains("no evaluated patient was predicted by all").all()


def test_a_single_model_is_compared_with_nothing_and_its_cases_are_described(
    tmp_path: Path,
) -> None:
    own = world(40, truth=BINARY)
    alone = spec().model_copy(update={"encoders": ("he",), "heads": ("abmil",),
                                      "domains": {"he": "he"}, "grids": {"he": "g"}})  # fmt: skip
    comparison, cases = written(tmp_path, own, alone)
    assert not len(comparison)
    assert len(cases)


def written(folder: Path, own: World, given: ExternalSpec) -> tuple[pl.DataFrame, pl.DataFrame]:
    places = own.write(folder)
    for (encoder, head), table in models(own).items():
        where = folder / "evaluation" / "status" / encoder / head
        where.mkdir(parents=True)
        table.write_parquet(where / "predictions.parquet")
    comparison = compare_external(
        given,
        evaluation=folder / "evaluation",
        cohort=places["cohort"],
        development_cohort=places["development_cohort"],
        folds=places["folds"].parent,
        output=folder / "out",
    )
    for name in ("comparison", "statement", "case_mix"):
        assert (folder / "out" / f"{name}.csv").exists()
    return comparison, pl.read_parquet(folder / "out" / "case_mix.parquet")


def test_case_mix_has_the_counts_shares_and_quartiles_of_both_cohorts(tmp_path: Path) -> None:
    own = world(60, truth=BINARY)
    own.cohort = own.cohort.with_columns(
        label_status=pl.Series(["Positive"] * 45 + ["Negative"] * 15),
        vendor=pl.lit("hamamatsu"),
        status=pl.Series(["ok"] * 60),
    )
    comparison, cases = written(tmp_path, own, spec())
    assert len(comparison) == 4 * 4
    assert cases.schema == pl.Schema(CASE_MIX)
    row = one(cases, what="class", level="positive")
    assert (row["development"], row["external"], row["unit"]) == (40, 45, "patients")
    assert (row["development_share"], row["external_share"]) == (0.5, 0.75)
    assert row["difference"] == pytest.approx(0.25 / math.sqrt((0.25 + 0.1875) / 2))
    assert own.development is not None
    row = one(cases, what="tissue area (mm2)")
    for name, table in (("development", own.development), ("external", own.cohort)):
        quartiles = [row[f"{name}_{end}"] for end in ("low", "median", "high")]
        expected = np.quantile(table["tissue_mm2"].to_numpy(), [0.25, 0.5, 0.75])
        assert quartiles == pytest.approx(expected)
        assert row[name] == len(table)
    assert one(cases, what="tiles")["grid"] == "g"
    vendors = cases.filter(what="vendor")
    assert vendors["development_share"].to_list() == [1, 0]
    assert vendors["note"].to_list() == ["no difference: all cases of a cohort are alike"] * 2
    sites = cases.filter(what="site")
    assert set(sites["level"]) == {"a", "b", "c", "d", "hospital A", "hospital B"}
    assert sites["external"].sum() == 60


def test_unusable_slides_are_no_cases(tmp_path: Path) -> None:
    own = world(60, truth=BINARY)
    extra = own.cohort[:1].with_columns(
        slide_id=pl.lit("bad"), status=pl.lit("failed"), vendor=pl.lit("unheard of"),
        tiles=pl.lit(0, pl.Int64), tissue_mm2=pl.lit(None, pl.Float64),
    )  # fmt: skip
    own.cohort = pl.concat([own.cohort, extra], how="vertical_relaxed")
    _, cases = written(tmp_path, own, spec())
    assert one(cases, what="tiles")["external"] == 60
    assert "unheard of" not in cases["level"]


@given(
    inside=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20),
    outside=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20),
)
def test_the_standardised_difference_has_no_unit(inside: list[float], outside: list[float]) -> None:
    def difference(factor: float) -> object:
        values = [pl.Series([factor * x for x in own]) for own in (inside, outside)]
        return number(Cases("x", "slides", values), on_logs=False)["difference"]

    variance = (np.var(inside, ddof=1) + np.var(outside, ddof=1)) / 2
    if variance > 1e-6:
        expected = (np.mean(outside) - np.mean(inside)) / math.sqrt(variance)
        assert difference(1) == pytest.approx(expected, abs=1e-9)
        assert difference(1000) == pytest.approx(expected, abs=1e-9)


def test_shares_add_up_and_unknown_values_are_a_level() -> None:
    values = [pl.Series(["a", "b", None]), pl.Series(["a", "a", "c", None])]
    rows = category(Cases("site", "slides", values))
    assert [row["level"] for row in rows] == ["a", "b", "c", "(not known)"]
    for name in ("development_share", "external_share"):
        assert sum(float(str(row[name])) for row in rows) == pytest.approx(1)


def test_what_no_slide_of_either_cohort_has_is_no_row() -> None:
    nothing = pl.Series([None, None], dtype=pl.String)
    assert category(Cases("scanner", "slides", [nothing, nothing])) == []


def test_an_empty_cohort_has_counts_of_0_and_no_share() -> None:
    empty = pl.Series([], dtype=pl.String)
    row = category(Cases("class", "patients", [pl.Series(["a"]), empty]), levels=["a"])[0]
    assert (row["external"], row["external_share"], row["difference"]) == (0, None, None)
    measured = number(Cases("tiles", "slides", [pl.Series([1.0, 2.0]), empty.cast(pl.Float64)]),
                      on_logs=True)  # fmt: skip
    assert measured["external"] == 0
    assert measured["note"] == "no difference: fewer than 2 cases are known"
