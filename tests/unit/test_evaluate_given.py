"""`her2.evaluate`: figures of anybody's table, what it assumes, and what it refuses."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import brier_score_loss, cohen_kappa_score, roc_auc_score

import her2

FEW = {"bootstrap": 100}


def table(
    classes: tuple[str, ...] = ("low", "high"), patients: int = 40, seed: int = 1
) -> pl.DataFrame:
    """Patients of each class in turn, with probabilities that lean to their class."""
    rng = np.random.default_rng(seed)
    target = np.arange(patients) % len(classes)
    weights = rng.random((patients, len(classes))) + 0.5 * np.eye(len(classes))[target]
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    return pl.DataFrame(
        {
            "patient_id": [f"p{i}" for i in range(patients)],
            "target": [classes[i] for i in target],
            **{f"prob_{name}": probabilities[:, i] for i, name in enumerate(classes)},
        }
    )


def value(found: her2.Evaluation, metric: str, name: str = "") -> float:
    rows = found.metrics.filter(level="patient", metric=metric).filter(pl.col("class") == name)
    return float(rows["value"].item())


def test_figures_are_those_of_scikit_learn() -> None:
    given = table()
    found = her2.evaluate(given, evaluation=FEW)
    truth, score = (given["target"] == "high").to_numpy(), given["prob_high"].to_numpy()
    assert value(found, "auc", "high") == pytest.approx(roc_auc_score(truth, score))
    brier = found.calibration.filter(state="as predicted", metric="brier")["value"].item()
    assert brier == pytest.approx(2 * brier_score_loss(truth, score))  # over both classes
    assert found.metrics["level"].unique().to_list() == ["patient"]


def test_ordered_classes_have_kappa_and_others_have_none() -> None:
    classes = ("0", "1+", "2+", "3+")
    given = table(classes)
    found = her2.evaluate(given, classes=classes, ordinal=True, evaluation=FEW)
    guessed = given.select(f"prob_{name}" for name in classes).to_numpy().argmax(axis=1)
    truth = [classes.index(one) for one in given["target"]]
    expected = cohen_kappa_score(truth, guessed, weights="quadratic")
    assert value(found, "quadratic_kappa") == pytest.approx(expected)
    nominal = her2.evaluate(given, classes=classes, evaluation=FEW)
    assert "quadratic_kappa" not in set(nominal.metrics["metric"])


def test_the_order_of_the_classes_is_the_given_one() -> None:
    found = her2.evaluate(table(), classes=("high", "low"), evaluation=FEW)
    assert found.classes == ("high", "low")
    assert not any("order of their columns" in one for one in found.assumed)


@pytest.mark.parametrize("form", ["polars", "pandas", "dict", "csv", "parquet"])
def test_every_form_of_a_table_gives_the_same(form: str, tmp_path: Path) -> None:
    given = table()
    given.write_csv(tmp_path / "a.csv")
    given.write_parquet(tmp_path / "a.parquet")
    forms: dict[str, Any] = {
        "polars": given,
        "pandas": given.to_pandas(),
        "dict": given.to_dict(),
        "csv": tmp_path / "a.csv",
        "parquet": str(tmp_path / "a.parquet"),
    }
    found = her2.evaluate(forms[form], evaluation=FEW)
    expected = her2.evaluate(given, evaluation=FEW)
    assert found.metrics.equals(expected.metrics)
    assert found.assumed == expected.assumed


@pytest.mark.parametrize(
    "change", ["one probability", "target as number", "target as truth", "no patient_id"]
)
def test_a_table_may_say_less_and_the_rest_is_assumed(change: str) -> None:
    given = table()
    other, words = {
        "one probability": (given.drop("prob_low"), "prob_low is 1 - prob_high"),
        "target as number": (
            given.with_columns(target=(pl.col("target") == "high").cast(pl.Int64)),
            "each row is a patient",
        ),
        "target as truth": (
            given.with_columns(target=pl.col("target") == "high"),
            "each row is a patient",
        ),
        "no patient_id": (
            given.rename({"patient_id": "slide_id"}),
            "each slide is of another patient",
        ),
    }[change]
    found = her2.evaluate(other, evaluation=FEW)
    assert value(found, "auc", "macro") == value(
        her2.evaluate(given, evaluation=FEW), "auc", "macro"
    )
    assert any(one.startswith(words) for one in found.assumed)


@pytest.mark.parametrize("names", [("low", "high"), ("false", "true"), ("False", "True")])
@pytest.mark.parametrize("turned", [False, True])
def test_targets_that_are_true_or_false_are_never_turned_round_in_silence(
    names: tuple[str, str], turned: bool
) -> None:
    """By name where a class has it, whatever the order of the columns; else the order is said."""
    given = table()
    low, high = names
    columns = {f"prob_{low}": given["prob_low"], f"prob_{high}": given["prob_high"]}
    found = her2.evaluate(
        {
            "patient_id": given["patient_id"],
            "target": given["target"] == "high",
            **dict(sorted(columns.items(), reverse=list(columns) == sorted(columns)) if turned
                   else columns.items()),
        },
        evaluation=FEW,
    )  # fmt: skip
    right = value(her2.evaluate(given, evaluation=FEW), "auc", "macro")
    said = [one for one in found.assumed if one.startswith("of the targets, ")]
    if low == "low":
        first, second = found.classes
        assert said == [f"of the targets, false is {first}, true is {second}"]
        assert value(found, "auc", "macro") == pytest.approx(1 - right if turned else right)
    else:
        assert found.classes == (names[::-1] if turned else names)
        assert not said
        assert value(found, "auc", "macro") == pytest.approx(right)


def test_ids_in_a_csv_are_names_and_numbers_are_known_by_all_rows(tmp_path: Path) -> None:
    """`007` is not `7`, and whole numbers in the first rows say nothing of later ones."""
    count = 240
    given = pl.DataFrame(
        {
            "patient_id": [f"{'00' if i % 2 else ''}{i // 2}" for i in range(count - 1)] + ["P-1"],
            "target": ["low", "high"] * (count // 2),
            "prob_low": [str(i % 3 % 2) if i < 200 else "0.5" for i in range(count)],
        }
    )
    given.write_csv(tmp_path / "a.csv")
    found = her2.evaluate(tmp_path / "a.csv", evaluation=FEW)
    assert found.metrics.filter(metric="auc")["n"].to_list() == [count] * 4


def test_without_folds_the_patients_are_one_test_set() -> None:
    """Those of a cross-validation rest on one another, so that their interval is wider."""
    given = table(patients=60)
    folds = given.with_columns(fold=pl.Series([i // 2 % 3 for i in range(60)]))
    widths = []
    for one in (given, folds):
        row = her2.evaluate(one, evaluation=FEW).metrics.filter(metric="auc").row(0, named=True)
        widths.append(row["high"] - row["low"])
    assert widths[1] > widths[0]
    assert any("no model was trained on these" in one for one in her2.evaluate(given).assumed)
    assert not any("no column fold" in one for one in her2.evaluate(folds, evaluation=FEW).assumed)


def test_slides_of_a_patient_count_once_at_patient_level() -> None:
    given = table()
    slides = pl.concat(
        [given.with_columns(slide_id=pl.col("patient_id") + f"-{letter}") for letter in "ab"]
    )
    found = her2.evaluate(slides, evaluation=FEW).metrics.filter(metric="auc")
    sizes = dict(found.select("level", "n").unique().iter_rows())
    assert sizes == {"patient": 40, "slide": 80}


def test_models_are_compared_on_the_same_patients() -> None:
    good, bad = table(seed=1), table(seed=2).with_columns(prob_low=0.5, prob_high=0.5)
    both = pl.concat([good.with_columns(model=pl.lit("good")),
                      bad.head(30).with_columns(model=pl.lit("bad"))])  # fmt: skip
    found = her2.evaluate(both, evaluation=FEW)
    assert found.models == ("good", "bad")
    row = found.comparison.filter(pl.col("class") == "macro").row(0, named=True)
    common = good.head(30)
    auc = roc_auc_score(common["target"] == "high", common["prob_high"])
    assert row["first_value"] == pytest.approx(auc)
    assert row["difference"] == pytest.approx(auc - 0.5)
    assert row["n"] == 30
    assert "not all models tested them: 10" in row["note"]
    with pytest.raises(her2.UserError, match="there is one model"):
        _ = her2.evaluate(good, evaluation=FEW).comparison


def set_to(row: int, **values: Any) -> pl.DataFrame:
    """The table with other values in a row."""
    given = table(patients=8).to_dict(as_series=False)
    for name, one in values.items():
        given[name][row] = one
    return pl.DataFrame(given, strict=False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (set_to(2, prob_high=1.5), "column 'prob_high', row 3: 1.5 is no probability"),
        (set_to(2, prob_high=-0.1), "column 'prob_high', row 3: -0.1 is no probability"),
        (set_to(2, prob_high=float("nan")), "column 'prob_high', row 3: nan is no probability"),
        (set_to(2, prob_high=None), "column 'prob_high', row 3: nothing is no probability"),
        (set_to(2, prob_high=0.9, prob_low=0.9), "row 3: sum to 1.8, not to 1"),
        (
            set_to(2, target="hihg"),
            "column 'target', row 3: 'hihg' is none of the classes low, high",
        ),
        (set_to(2, target=None), "column 'target', row 3: nothing is none of the classes"),
        (set_to(2, patient_id=None), "column 'patient_id', row 3: nothing is no value"),
        (set_to(2, patient_id="p0"), "column 'patient_id', rows 1, 3: 'p0' is there again"),
        (
            table(patients=8).with_columns(role=pl.lit("tests")),
            "column 'role', row 1: 'tests'; it is",
        ),
        (table(patients=8).with_columns(fold=pl.lit("a")), "column 'fold', row 1: 'a' is no value"),
        (table(patients=8).drop("target"), "the column(s) target are missing; the columns are"),
        (table(patients=8).drop("patient_id"), "patient_id or slide_id are missing"),
        (table(patients=8).drop("prob_low", "prob_high"), "prob_CLASS are missing"),
        (table(patients=8).clear(), "there are no rows"),
        (3, "predictions, int: is no table; give a polars or pandas frame"),
        ([{"patient_id": 1}], "predictions, list: is no table"),
        (table(("HER2 low", "x")), "HER2 low"),
        (table(("macro", "x")), "class 'macro': the tables have a mean of this name"),
        ("absent.csv", "absent.csv: cannot be read as a table"),
    ],
)
def test_what_cannot_be_evaluated_is_named_by_column_row_and_value(given: Any, words: str) -> None:
    with pytest.raises(her2.UserError, match=re.escape(words)):
        her2.evaluate(given, evaluation=FEW)


def test_a_patient_of_two_classes_or_two_test_sets_is_refused() -> None:
    parts = (
        table(patients=8).with_columns(slide_id=pl.col("patient_id") + end, fold=fold)
        for end, fold in (("-a", 0), ("-b", 1))
    )
    slides = pl.concat(parts)
    with pytest.raises(her2.UserError, match="patient 'p0' is in the test sets of folds 0, 1"):
        her2.evaluate(slides, evaluation=FEW)
    torn = slides.with_columns(
        fold=0,
        target=pl.when(pl.col("slide_id") == "p0-b").then(pl.lit("high")).otherwise("target"),
    )
    with pytest.raises(her2.UserError, match=r"'p0' has targets of two classes \(low, high\)"):
        her2.evaluate(torn, evaluation=FEW)


def test_classes_and_columns_that_differ_are_refused() -> None:
    with pytest.raises(her2.UserError, match="are there for low, high, and the classes are a, b"):
        her2.evaluate(table(), classes=("a", "b"))
    with pytest.raises(her2.UserError, match="bootstrp: unknown key"):
        her2.evaluate(table(), evaluation={"bootstrp": 100})
