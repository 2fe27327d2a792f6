"""Differences between models are paired, so that cases hard for both cancel out."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from her2.config import Domain, EvaluationSection, Task
from her2.config.jobs import CompareSpec
from her2.core.errors import UserError
from her2.evaluation.compare import COMPARISON, compare, comparison_tables
from her2.evaluation.families import holm
from her2.evaluation.paired import pair_models

TASK = Task(label="x", classes={"a": ["0"], "b": ["1"]})
SECTION = EvaluationSection(bootstrap=500)


def table(scores: np.ndarray, target: np.ndarray) -> pl.DataFrame:
    """Return a model's predictions table, with one slide per patient and one test set."""
    n = len(target)
    scores = 1 / (1 + np.exp(-scores))
    return pl.DataFrame(
        {
            "slide_id": [f"s{i:03d}" for i in range(n)],
            "patient_id": [f"p{i:03d}" for i in range(n)],
            **dict.fromkeys(("repeat", "fold", "seed"), pl.Series([0] * n, dtype=pl.Int32)),
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
    tasks: tuple[str, ...] = ("t",),
) -> CompareSpec:
    known = dict.fromkeys(encoders, "none") | dict(domains or {})
    return CompareSpec(
        tasks=dict.fromkeys(tasks, TASK),
        encoders=encoders,
        domains=known,
        heads=heads,
        evaluation=SECTION,
        seed=1,
    )


def compared(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Return the models of several encoders under one head."""
    models = {(name, "h"): one for name, one in tables.items()}
    paired = {"t": pair_models(models, TASK, SECTION)}
    return comparison_tables(paired, spec_of(tuple(tables)))[0]


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
    assert found["p"].null_count() == len(found)
    assert all("the same for every patient" in note for note in found["note"])


def test_pairing_narrows_the_interval(target: np.ndarray) -> None:
    """For two nearly equal encoders, the difference varies far less than either AUC."""
    first = noisy(target, 1, 1)
    second = first + np.random.default_rng(3).normal(scale=0.05, size=len(first))
    found = only(
        compared({"one": table(first, target), "two": table(second, target)}), **{"class": "b"}
    )
    # Hanley and McNeil 1982: the standard error of one AUC of about 0.76 with 40 + 40 is > 0.05.
    assert found["high"] - found["low"] < 0.05


def test_a_grouping_has_one_test_which_is_that_of_its_auc(target: np.ndarray) -> None:
    good, bad = noisy(target, 2, 1), noisy(target, 0.2, 2)
    found = compared({"good": table(good, target), "bad": table(bad, target)})
    row, same = only(found, grouping="a vs b"), only(found, **{"class": "b"})
    for column in ("first_value", "second_value", "difference", "low", "high", "p"):
        assert row[column] == pytest.approx(same[column])
    assert row["class"] == ""


def test_only_slides_that_all_tested_are_compared_and_the_rest_is_said(target: np.ndarray) -> None:
    whole = table(noisy(target, 1, 1), target)
    other = table(noisy(target, 1, 2), target)
    found = compared({"one": whole, "two": other.filter(pl.col("patient_id") != "p000")})
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
    assert set(found["family_size"]) == {0}
    assert set(found["note"]) == {
        "not defined: a class is absent", "not defined: no patient on the positive side",
        "not defined: no patient on the negative side",
    }  # fmt: skip


def test_one_patient_is_compared_with_reasons_only() -> None:
    one = table(np.array([0.3]), np.array([1]))
    found = compared({"one": one, "two": one})
    assert found["difference"].null_count() == len(found)
    assert all(found["note"])


def test_a_class_of_four_patients_has_a_difference_and_no_test() -> None:
    target = np.array([0] * 10 + [1] * 4)
    found = compared(
        {"one": table(noisy(target, 1, 1), target), "two": table(noisy(target, 1, 2), target)}
    )
    assert found["difference"].null_count() == 0
    for column in ("p", "low", "high"):
        assert found[column].null_count() == len(found)
    assert all("fewer than 5 patients" in note for note in found["note"])


def test_perfect_against_constant_predictions_is_no_certain_difference(target: np.ndarray) -> None:
    perfect, constant = 9.0 * target, np.zeros(len(target))
    found = compared({"one": table(perfect, target), "two": table(constant, target)})
    assert set(found["difference"]) == {0.5}
    assert found["low"].null_count() == found["p"].null_count() == len(found)
    assert all("the same for every patient" in note for note in found["note"])


def test_every_pair_of_encoders_and_of_heads_has_its_rows(target: np.ndarray) -> None:
    encoders, heads, tasks = ("x", "y", "z"), ("g", "h"), ("t", "u")
    paired = {}
    for offset, task in enumerate(tasks):
        models = {
            (encoder, head): table(noisy(target, 0.5, 100 * offset + 10 * i + j), target)
            for i, encoder in enumerate(encoders)
            for j, head in enumerate(heads)
        }
        paired[task] = pair_models(models, TASK, SECTION)
    domains: dict[str, Domain] = {"x": "he", "y": "ihc", "z": "natural"}
    spec = spec_of(encoders, heads, domains, tasks)
    found, claims = comparison_tables(paired, spec)
    macro = found.filter((pl.col("class") == "macro") & (pl.col("task") == "u"))
    pairs = macro.select("kind", "within", "first", "second").rows()
    assert pairs == [
        *(("encoders", head, *pair) for head in heads
          for pair in (("x", "y"), ("x", "z"), ("y", "z"))),
        *(("heads", encoder, "g", "h") for encoder in encoders),
    ]  # fmt: skip
    # A family spans both tasks; that of the encoders also has the claim. The macro AUC, the
    # grouping of two classes and those of both classes are one AUC, and have one p value.
    same = found.group_by("task", "kind", "within", "first", "second", "family").agg(
        pl.len(), pl.col("p_holm").n_unique()
    )
    assert set(same["len"]) == {4}
    assert set(same["p_holm"]) == {1}
    once = found.filter(pl.col("class") == "macro")
    for family, size in (("encoders", 2 * 6 + len(claims)), ("heads", 2 * 3)):
        columns = ["family", "family_size", "p", "p_holm"]
        rows = pl.concat([once.select(columns), claims.select(columns)])
        rows = rows.filter(pl.col("family") == family)
        assert set(rows["family_size"]) == {size} == {len(rows)}
        expected = multipletests(rows["p"].to_numpy(), method="holm")[1]
        assert rows["p_holm"].to_numpy() == pytest.approx(expected)


def test_a_class_that_a_grouping_sets_against_all_others_counts_once() -> None:
    """c against the rest and `a/b vs c` are one AUC; a and b are single classes."""
    task = Task(label="x", classes={"a": ["0"], "b": ["1"], "c": ["2"]})
    grouping = {"a/b vs c": {"negative": ["a", "b"], "positive": ["c"]}}
    section = EvaluationSection(bootstrap=500, groupings=grouping)
    target = np.arange(45) % 3
    models = {}
    for index, name in enumerate("xy"):
        noise = np.random.default_rng(index).normal(size=(45, 3))
        odds = np.exp(noise + np.eye(3)[target])
        shares = odds / odds.sum(axis=1, keepdims=True)
        columns = {f"prob_{one}": shares[:, k] for k, one in enumerate("abc")}
        models[name, "h"] = (
            table(np.zeros(45), target)
            .drop("prob_a", "prob_b")
            .with_columns(**{key: pl.Series(value) for key, value in columns.items()})
        )
    spec = spec_of(("x", "y")).model_copy(update={"tasks": {"t": task}, "evaluation": section})
    found = comparison_tables({"t": pair_models(models, task, section)}, spec)[0]
    rows = {row["grouping"] or row["class"]: row for row in found.to_dicts()}
    assert rows["c"]["p"] == pytest.approx(rows["a/b vs c"]["p"])
    assert rows["c"]["p_holm"] == rows["a/b vs c"]["p_holm"]
    assert {name: row["family"] for name, row in rows.items()} == {
        "a": "encoders, single classes", "b": "encoders, single classes",
        "c": "encoders", "macro": "encoders", "a/b vs c": "encoders",
    }  # fmt: skip
    assert {row["family"]: row["family_size"] for row in rows.values()} == {
        "encoders": 2, "encoders, single classes": 2
    }  # fmt: skip


@settings(max_examples=25)  # each call of statsmodels collects all garbage
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holms_correction_is_that_of_statsmodels(p: list[float]) -> None:
    expected = multipletests(p, method="holm")[1]
    np.testing.assert_array_equal(holm(np.array(p)), expected)


def test_one_model_alone_gives_tables_without_a_test(tmp_path: Path, target: np.ndarray) -> None:
    folder = tmp_path / "t" / "x" / "h"
    folder.mkdir(parents=True)
    table(noisy(target, 1, 1), target).write_parquet(folder / "predictions.parquet")
    found = compare(spec_of(("x",)), tmp_path, tmp_path)
    assert found.shape == (0, len(COMPARISON))
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
    paired = {"t": pair_models(models, TASK, SECTION)}
    _, claims = comparison_tables(paired, spec_of(tuple(signals), domains=domains))
    return {row["statement"]: row for row in claims.to_dicts()}


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
    for end in ("low", "high"):
        both = [found[other][end] for other in ("H&E - IHC", "H&E - non-medical")]
        assert row[end] == min(both)
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


def test_a_claim_below_the_level_before_correction_alone_does_not_hold(target: np.ndarray) -> None:
    """The family has every pair of ten encoders, which a p of about 0.01 does not survive."""
    signals = {"he1": 0.95, "ihc": 0.2, "net": 0.2}
    others = {f"raw{i}": 0.2 for i in range(7)}
    models = {
        (name, "h"): table(noisy(target, signal, seed), target)
        for seed, (name, signal) in enumerate((signals | others).items())
    }
    domains = {name: DOMAINS.get(name, "none") for name in signals | others}
    paired = {"t": pair_models(models, TASK, SECTION)}
    _, claims = comparison_tables(paired, spec_of(tuple(domains), domains=domains))
    row = only(claims, statement="H&E - both")
    assert row["p"] < 0.05 < row["p_holm"]
    assert row["low"] > 0
    assert row["holds"] is False
