"""Covariates are learned on development patients, and read once on the external ones."""

import numpy as np
import polars as pl
import pytest

from her2.config import EvaluationSection
from her2.evaluation.external.covariates import external_covariates
from tests.unit.external_makers import BINARY, World, one, spec_of, world


def read(own: World, **changed: object) -> tuple[pl.DataFrame, pl.DataFrame]:
    spec = spec_of(BINARY, **changed)
    evaluated = own.evaluated(spec)
    return external_covariates(spec, own.cohorts(evaluated), evaluated.reason)


def by_label(own: World, *, inside: pl.Expr, outside: pl.Expr) -> World:
    """Return the cohorts with a changed column, given `target` inside and `outside`."""
    assert own.development is not None
    positive = pl.col("label_her2").is_in(["2+", "3+"]).alias("positive")
    development = own.development.with_columns(positive).with_columns(inside).drop("positive")
    positive = (pl.col("label_status") == "Positive").alias("positive")
    cohort = own.cohort.with_columns(positive).with_columns(outside).drop("positive")
    return World(own.given, cohort, own.trained, development)


TISSUE = pl.when("positive").then(80.0 + pl.col("tissue_mm2") / 100).otherwise(5.0)


def test_what_tells_the_class_in_both_cohorts_reaches_the_model() -> None:
    tissue = TISSUE.alias("tissue_mm2")
    _, found = read(by_label(world(60, truth=BINARY), inside=tissue, outside=tissue))
    row = one(found, **{"class": "macro"})
    assert row["covariates"] == 1
    assert row["reached"]
    assert row["difference"] < 0


def test_what_is_turned_around_elsewhere_is_worse_than_chance_there() -> None:
    """The external labels teach nothing: otherwise this would read 1."""
    tissue = TISSUE.alias("tissue_mm2")
    turned = pl.when("positive").then(5.0).otherwise(80.0).alias("tissue_mm2")
    _, found = read(by_label(world(60, truth=BINARY), inside=tissue, outside=turned))
    row = one(found, **{"class": "positive"})
    assert row["logistic"] < 0.2
    assert row["forest"] < 0.2
    assert not one(found, **{"class": "macro"})["reached"] or row["model"] < 0.6


@pytest.mark.parametrize("column", ["site", "scanner"])
def test_the_site_is_left_out_and_the_scanner_is_not(column: str) -> None:
    told = pl.when("positive").then(pl.lit("x")).otherwise(pl.lit("y")).alias(column)
    alike = [pl.lit(1.0).alias(name) for name in ("tissue_mm2", "mpp_x", "mpp_y")]
    alike += [pl.lit(100).alias(name) for name in ("tiles", "width_px", "height_px")]
    own = by_label(world(60, truth=BINARY), inside=told, outside=told)
    assert own.development is not None
    own = World(own.given, own.cohort, own.trained, own.development.with_columns(alike))
    inputs, found = read(own)
    used = one(inputs, covariate=column)
    assert used["used"] == (column == "scanner")
    if column == "scanner":
        assert one(found, **{"class": "macro"})["covariates"] == 1
    else:
        assert used["note"] == "left out: the sites of another cohort are others"


def test_a_scanner_that_development_does_not_have_counts_neither_way() -> None:
    own = world(60, truth=BINARY)
    told = pl.when("positive").then(pl.lit("x")).otherwise(pl.lit("y")).alias("scanner")
    own = by_label(own, inside=told, outside=pl.lit("new").alias("scanner"))
    other = World(own.given, own.cohort.with_columns(scanner=pl.lit("newer")), own.trained,
                  own.development)  # fmt: skip
    assert read(own)[1].equals(read(other)[1])


@pytest.mark.parametrize("change", [
    lambda table: table.drop("scanner"),
    lambda table: table.with_columns(scanner=pl.lit(None, pl.String)),
])  # fmt: skip
def test_a_covariate_that_the_external_cohort_lacks_is_left_out_and_said(change) -> None:
    own = world(60, truth=BINARY)
    inputs, found = read(World(own.given, change(own.cohort), own.trained, own.development))
    row = one(inputs, covariate="scanner")
    assert not row["used"]
    assert row["note"].startswith("left out: ")
    assert found["covariates"].null_count() == 0


def test_a_named_column_that_is_the_external_label_is_never_a_covariate() -> None:
    own = world(60, truth=BINARY)
    assert own.development is not None
    named = own.development.with_columns(
        label_status=pl.when(pl.col("label_her2").is_in(["2+", "3+"]))
        .then(pl.lit("Positive"))
        .otherwise(pl.lit("Negative"))
    )
    section = EvaluationSection(bootstrap=100, covariates=("status", "age"))
    ages = [pl.Series("column_age", np.arange(len(table)) % 7 + 40) for table in
            (named, own.cohort)]  # fmt: skip
    own = World(own.given, own.cohort.with_columns(ages[1]), own.trained,
                named.with_columns(ages[0]))  # fmt: skip
    inputs, found = read(own, evaluation=section)
    assert one(inputs, covariate="age")["used"]
    assert "status" not in inputs["covariate"]
    assert one(found, **{"class": "macro"})["covariates"] < 0.9


def test_slides_of_the_same_name_in_both_cohorts_are_two_slides() -> None:
    own = world(60, truth=BINARY)
    inputs, found = read(own)
    assert own.development is not None
    first = own.trained.unique("slide_id").sort("slide_id")["slide_id"][:60]
    names = dict(zip(own.given["slide_id"], first, strict=True))
    same = World(
        own.given.with_columns(pl.col("slide_id").replace(names)),
        own.cohort.with_columns(pl.col("slide_id").replace(names)),
        own.trained,
        own.development,
    )
    assert read(same)[0].equals(inputs)
    assert read(same)[1].equals(found)


def test_without_a_covariate_that_differs_there_is_no_comparison() -> None:
    own = world(24, truth=BINARY)
    assert own.development is not None
    alike = {name: pl.lit(1.0) for name in ("tissue_mm2", "mpp_x", "mpp_y")}
    alike |= {name: pl.lit(10) for name in ("tiles", "width_px", "height_px")}
    alike |= {name: pl.lit("x") for name in ("site", "scanner")}
    _, found = read(
        World(own.given, own.cohort, own.trained, own.development.with_columns(**alike))
    )
    assert set(found["note"]) == {
        "not defined: no covariate is known in both cohorts and differs in development"
    }
