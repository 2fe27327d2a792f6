"""Differences between models are paired, so that cases hard for both cancel out."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from her2.evaluation.delong import compare_areas
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from her2.config import Domain, EvaluationSection, Task
from her2.config.jobs import CompareSpec
from her2.core.errors import UserError
from her2.evaluation.bootstrap import bootstrapped, tail_p
from her2.evaluation.compare import compare, comparison_table, holm
from her2.evaluation.paired import difference, pair_models
from her2.evaluation.paper_claim import statement_table
from her2.metrics.auc import auc
from her2.metrics.base import Binary

TASK = Task(label="x", classes={"a": ["0"], "b": ["1"]})
SECTION = EvaluationSection(bootstrap=500)


def table(scores: np.ndarray, target: np.ndarray) -> pl.DataFrame:
    """Return a model's predictions table, with one slide per patient and two folds."""
    n = len(target)
    scores = 1 / (1 + np.exp(-scores))
    return pl.DataFrame(
        {
            "slide_id": [f"s{i:03d}" for i in range(n)],
            "patient_id": [f"p{i:03d}" for i in range(n)],
            "repeat": pl.Series([0] * n, dtype=pl.Int32),
            "fold": pl.Series(np.arange(n) % 2, dtype=pl.Int32),
            "role": ["test"] * n,
            "target": pl.Series(target, dtype=pl.Int32),
            "prob_a": 1 - scores,
            "prob_b": scores,
        }
    )


def noisy(target: np.ndarray, signal: float, seed: int) -> np.ndarray:
    return signal * target + np.random.default_rng(seed).normal(size=len(target))


@pytest.fixture
def target() -> np.ndarray:
    return np.repeat([0, 1], 40)


def spec_of(
    encoders: tuple[str, ...],
    heads: tuple[str, ...] = ("h",),
    domains: Mapping[str, Domain] | None = None,
) -> CompareSpec:
    known = dict.fromkeys(encoders, "none") | dict(domains or {})
    return CompareSpec(
        task=TASK, encoders=encoders, domains=known, heads=heads, evaluation=SECTION, seed=1
    )


def compared(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Return the models of several encoders under one head."""
    models = {(name, "h"): one for name, one in tables.items()}
    return comparison_table(pair_models(models, TASK, SECTION, seed=1), spec_of(tuple(tables)))


def only(found: pl.DataFrame, **values: object) -> dict:
    chosen = found.filter(pl.all_horizontal(pl.col(k) == v for k, v in values.items()))
    assert len(chosen) == 1, chosen
    return chosen.row(0, named=True)


def test_the_difference_is_that_of_the_aucs(target: np.ndarray) -> None:
    good, bad = noisy(target, 2, 1), noisy(target, 0.2, 2)
    found = only(
        compared({"good": table(good, target), "bad": table(bad, target)}), **{"class": "b"}
    )
    areas = roc_auc_score(target, good), roc_auc_score(target, bad)
    assert (found["first_value"], found["second_value"]) == pytest.approx(areas)
    assert found["difference"] == pytest.approx(areas[0] - areas[1])
    assert found["low"] > 0
    assert found["p"] < 0.05


def test_an_encoder_does_not_differ_from_itself(target: np.ndarray) -> None:
    scores = table(noisy(target, 1, 1), target)
    found = compared({"one": scores, "two": scores})
    assert found["difference"].abs().max() == 0
    assert found["p"].min() == 1
    assert found["p_holm"].min() == 1


def test_pairing_narrows_the_interval(target: np.ndarray) -> None:
    """For two nearly equal encoders, the difference varies far less than either AUC."""
    first = noisy(target, 1, 1)
    second = first + np.random.default_rng(3).normal(scale=0.05, size=len(first))
    found = only(
        compared({"one": table(first, target), "two": table(second, target)}), **{"class": "b"}
    )
    # Hanley and McNeil 1982: the standard error of one AUC of about 0.76 with 40 + 40 is > 0.05.
    assert found["high"] - found["low"] < 0.05


def test_a_grouping_is_tested_by_bootstrap_and_by_delong(target: np.ndarray) -> None:
    good, bad = noisy(target, 2, 1), noisy(target, 0.2, 2)
    found = compared({"good": table(good, target), "bad": table(bad, target)})
    rows = {method: only(found, grouping="a vs b", method=method)
            for method in ("bootstrap", "delong")}  # fmt: skip
    assert {row["class"] for row in rows.values()} == {""}
    expected = compare_areas(target == 1, good, bad, 0.95)
    assert rows["delong"]["p"] == pytest.approx(expected.p)
    assert (rows["delong"]["low"], rows["delong"]["high"]) == pytest.approx(
        (expected.low, expected.high)
    )
    # Two ways to one thing: the ends agree to about a tenth of the width.
    assert rows["bootstrap"]["low"] == pytest.approx(expected.low, abs=0.03)
    assert rows["bootstrap"]["high"] == pytest.approx(expected.high, abs=0.03)


def test_only_slides_that_all_tested_are_compared_and_the_rest_is_said(target: np.ndarray) -> None:
    whole = table(noisy(target, 1, 1), target)
    found = compared({"one": whole, "two": whole.filter(pl.col("patient_id") != "p000")})
    assert found["n"].unique().to_list() == [79]
    assert set(found["note"]) == {"patients left out because not all models tested them: 1"}


def test_a_patient_counts_with_the_slides_that_all_tested(target: np.ndarray) -> None:
    """A slide that one encoder lacks has no counterpart to be compared with."""
    first = table(noisy(target, 1, 1), target)
    spare = first.head(1).with_columns(
        pl.lit("spare").alias("slide_id"), prob_a=pl.lit(0.999), prob_b=pl.lit(0.001)
    )
    second = table(noisy(target, 0.5, 2), target)
    with_spare = compared({"one": pl.concat([first, spare]), "two": second})
    assert with_spare.equals(compared({"one": first, "two": second}))


def test_train_and_tune_rows_are_not_compared(target: np.ndarray) -> None:
    first, second = table(noisy(target, 1, 1), target), table(noisy(target, 0.5, 2), target)
    tuned = first.with_columns(role=pl.lit("tune"), fold=1 - pl.col("fold"))
    swapped = tuned.with_columns(prob_a="prob_b", prob_b="prob_a")
    plain = compared({"one": first, "two": second})
    assert compared({"one": pl.concat([first, swapped]), "two": second}).equals(plain)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target": 1 - pl.col("target")}, "different labels"),
        ({"fold": 1 - pl.col("fold")}, "different folds"),
    ],
)
def test_other_labels_or_folds_are_refused(
    target: np.ndarray, changed: dict[str, pl.Expr], words: str
) -> None:
    scores = table(noisy(target, 1, 1), target)
    with pytest.raises(UserError, match=f"s000: .*{words}"):
        compared({"one": scores, "two": scores.with_columns(**changed)})


def test_no_common_patient_is_refused(target: np.ndarray) -> None:
    scores = table(noisy(target, 1, 1), target)
    with pytest.raises(UserError, match="no patient in common"):
        compared({"one": scores.head(10), "two": scores.tail(10)})


def test_an_absent_class_is_not_compared_and_counts_in_no_family(target: np.ndarray) -> None:
    scores = table(noisy(target, 1, 1), np.zeros_like(target))
    found = compared({"one": scores, "two": scores})
    for column in ("difference", "p", "p_holm", "low"):
        assert found[column].null_count() == len(found)
    assert set(found["family"]) == {0}
    assert set(found["note"]) == {
        "not defined: a class is absent", "not defined: no patient on the positive side",
    }  # fmt: skip


def test_one_patient_is_compared_with_reasons_only() -> None:
    one = table(np.array([0.3]), np.array([1]))
    found = compared({"one": one, "two": one})
    assert found["difference"].null_count() == len(found)
    assert all(found["note"])


def test_a_class_of_one_patient_has_a_difference_and_no_test() -> None:
    target = np.array([0] * 10 + [1])
    found = compared(
        {"one": table(noisy(target, 1, 1), target), "two": table(noisy(target, 1, 2), target)}
    )
    assert found["difference"].null_count() == 0
    assert found["p"].null_count() == len(found)
    assert all("1 patient" in note for note in found["note"])


def test_every_pair_of_encoders_and_of_heads_has_its_rows(target: np.ndarray) -> None:
    encoders, heads = ("x", "y", "z"), ("g", "h")
    models = {
        (encoder, head): table(noisy(target, 0.5, 10 * i + j), target)
        for i, encoder in enumerate(encoders)
        for j, head in enumerate(heads)
    }
    found = comparison_table(pair_models(models, TASK, SECTION, seed=1), spec_of(encoders, heads))
    macro = found.filter(pl.col("class") == "macro")
    pairs = macro.select("kind", "within", "first", "second").rows()
    assert pairs == [
        *(("encoders", head, *pair) for head in heads
          for pair in (("x", "y"), ("x", "z"), ("y", "z"))),
        *(("heads", encoder, "g", "h") for encoder in encoders),
    ]  # fmt: skip
    # A family: one kind, one sort of AUC, one method.
    for kind, size in (("encoders", 6), ("heads", 3)):
        own = found.filter(pl.col("kind") == kind)
        for rows, number in (
            (own.filter(pl.col("class") == "macro"), size),
            (own.filter(pl.col("class").is_in(["a", "b"])), 2 * size),
            (own.filter((pl.col("grouping") != "") & (pl.col("method") == "delong")), size),
            (own.filter((pl.col("grouping") != "") & (pl.col("method") == "bootstrap")), size),
        ):
            assert set(rows["family"]) == {number} == {len(rows)}
            expected = multipletests(rows["p"].to_numpy(), method="holm")[1]
            assert rows["p_holm"].to_numpy() == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holms_correction_is_that_of_statsmodels(p: list[float]) -> None:
    expected = multipletests(p, method="holm")[1]
    np.testing.assert_array_equal(holm(np.array(p)), expected)


def test_a_family_too_large_for_the_resamples_is_told(target: np.ndarray) -> None:
    """500 resamples give no p below that of a tail of 1 / 501; 28 times that is above 0.05."""
    encoders = tuple("abcdefgh")
    models = {
        (name, "h"): table(noisy(target, 9.0 * (name == "a"), i), target)
        for i, name in enumerate(encoders)
    }
    found = comparison_table(pair_models(models, TASK, SECTION, seed=1), spec_of(encoders))
    row = only(found, **{"class": "macro", "first": "a", "second": "b"})
    least = tail_p(1 / 501, np.bincount(target).tolist())
    assert least > 2 / 501
    assert row["p"] == pytest.approx(least)
    assert row["p_holm"] == pytest.approx(28 * least)
    assert "evaluation.bootstrap" in row["note"]
    delong = found.filter((pl.col("first") == "a") & (pl.col("method") == "delong"))
    assert delong["p_holm"].max() < 1e-6
    assert set(delong["note"]) == {""}


def test_one_model_alone_gives_tables_without_a_test(tmp_path: Path, target: np.ndarray) -> None:
    folder = tmp_path / "x" / "h"
    folder.mkdir(parents=True)
    table(noisy(target, 1, 1), target).write_parquet(folder / "predictions.parquet")
    found = compare(spec_of(("x",)), tmp_path, tmp_path)
    assert found.shape == (0, 17)
    assert pl.read_parquet(tmp_path / "comparison.parquet").equals(found)
    said = pl.read_parquet(tmp_path / "statement.parquet")
    assert said["holds"].to_list() == [None] * 3
    assert "no encoder whose domain is H&E or IHC" in said["note"].to_list()


DOMAINS: dict[str, Domain] = {
    "he1": "he", "he2": "he", "ihc": "ihc", "net": "natural", "both": "he_ihc", "raw": "none",
}  # fmt: skip


def stated(signals: Mapping[str, float], target: np.ndarray) -> dict[str, dict]:
    """Return the rows by statement, for encoders with these signals."""
    models = {
        (name, "h"): table(noisy(target, signal, seed), target)
        for seed, (name, signal) in enumerate(signals.items())
    }
    domains = {name: DOMAINS[name] for name in signals}
    paired = pair_models(models, TASK, SECTION, seed=1)
    return {row["statement"]: row for row in statement_table(paired, domains, ("h",)).to_dicts()}


def test_the_statement_holds_where_he_beats_both(target: np.ndarray) -> None:
    signals = {"he1": 3.0, "he2": 3.0, "ihc": 0.2, "net": 0.4, "both": 9.0, "raw": 9.0}
    found = stated(signals, target)
    assert [*found] == ["H&E - IHC", "H&E - non-medical", "H&E - both"]
    macro = {
        name: roc_auc_score(target, noisy(target, signal, seed))
        for seed, (name, signal) in enumerate(signals.items())
    }
    he = (macro["he1"] + macro["he2"]) / 2
    assert found["H&E - IHC"]["difference"] == pytest.approx(he - macro["ihc"])
    assert found["H&E - non-medical"]["difference"] == pytest.approx(he - macro["net"])
    row = found["H&E - both"]
    assert row["difference"] == pytest.approx(he - max(macro["ihc"], macro["net"]))
    assert row["p"] == max(found["H&E - IHC"]["p"], found["H&E - non-medical"]["p"])
    # The smaller of two lies at or below either, and so do its quantiles.
    for other in ("H&E - IHC", "H&E - non-medical"):
        assert row["low"] <= found[other]["low"]
        assert row["high"] <= found[other]["high"]
    assert row["first"] == "he1, he2"
    assert row["second"] == "ihc, net"
    assert row["n"] == 80
    assert [one["holds"] for one in found.values()] == [True] * 3


def test_the_statement_does_not_hold_where_one_of_both_is_as_good(target: np.ndarray) -> None:
    found = stated({"he1": 3.0, "ihc": 0.2, "net": 3.0}, target)
    assert found["H&E - IHC"]["holds"] is True
    assert found["H&E - non-medical"]["holds"] is False
    assert found["H&E - both"]["holds"] is False
    ps = [found[name]["p"] for name in ("H&E - IHC", "H&E - non-medical")]
    assert ps[0] < ps[1] == found["H&E - both"]["p"]


def test_a_significant_defeat_is_no_proof_of_the_statement(target: np.ndarray) -> None:
    row = stated({"he1": 0.5, "ihc": 9.0, "net": 9.0}, target)["H&E - both"]
    assert row["difference"] < 0
    assert row["p"] < 0.05
    assert row["holds"] is False
    assert "does not support the statement" in row["note"]


def test_a_domain_without_encoder_leaves_its_line_open(target: np.ndarray) -> None:
    found = stated({"he1": 3.0, "ihc": 0.2, "both": 3.0}, target)
    assert found["H&E - IHC"]["holds"] is True
    for name in ("H&E - non-medical", "H&E - both"):
        row = found[name]
        assert (row["difference"], row["p"], row["holds"]) == (None, None, None)
        assert row["note"] == "no encoder whose domain is non-medical"


@pytest.mark.nightly
@pytest.mark.simulation
def test_two_equal_models_differ_in_about_5_of_100_studies() -> None:
    """500 studies of 90 patients, whose two scores share half of their noise."""
    target = np.arange(90) % 3 == 0
    generator = np.random.default_rng(5)
    rejected = {"bootstrap": 0, "delong": 0}
    for study in range(500):
        shared = target + generator.normal(size=90)
        one, other = (shared + generator.normal(size=90) for _ in range(2))
        areas = bootstrapped(
            lambda weights, scores=(one, other): np.stack(
                [auc(Binary(target, score, weights)) for score in scores], axis=1
            ),
            np.arange(90),
            target.astype(int),
            resamples=1000,
            seed=study,
        )
        rejected["bootstrap"] += difference(areas[:, 0] - areas[:, 1], 0.95, (30, 60))["p"] < 0.05
        rejected["delong"] += compare_areas(target, one, other, 0.95).p < 0.05
    print({name: count / 500 for name, count in rejected.items()})
    for name, count in rejected.items():
        assert 0.03 <= count / 500 <= 0.08, (name, count)
