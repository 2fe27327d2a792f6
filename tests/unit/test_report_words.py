"""The report's text: flow, methods, checklist and warnings, with every number from a table."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from her2.core.tables import guard_cells
from her2.report.build import tables
from her2.report.results import Results, read_results
from her2.report.sections import comparison, controls, flow, model_detail, summary
from her2.report.sections.paper import checklist, methods
from tests.unit.report_maker import HOSTILE, Cohort, build_page

LOST = Cohort(
    encoders=("one", "two"),
    labels=("0", "1", "2") * 8 + (None, "9"),
    tile_reasons={0: ("excluded", "no tissue"), 1: ("failed", "cut off")},
    embed_reasons={5: ("excluded", "7 of 20 tiles cannot be read")},
    signal=0.3,
)


def read(tmp_path: Path, cohort: Cohort) -> Results:
    return read_results(cohort.write(tmp_path / "results"), tmp_path / "results")


def test_the_slides_that_leave_and_those_in_the_figures_add_up(tmp_path: Path) -> None:
    results = read(tmp_path, LOST)
    (found,) = flow.flows(results)  # both encoders lost the same
    assert found.encoders == ("one", "two")
    assert found.slides == 26
    assert [step.left for step in found.steps] == [1, 1, 1, 1, 1]
    assert found.slides - sum(step.left for step in found.steps) == found.tested_slides == 21
    assert found.steps[-1].rest == found.tested_slides == len(results.models[0].slides)
    words = " ".join(step.reason for step in found.steps)
    for reason in ("excluded", "failed", "without features", "without a label", "no class of"):
        assert reason in words


def test_encoders_that_lost_other_slides_have_their_own_flow(tmp_path: Path) -> None:
    results = read(tmp_path, LOST)
    entries = dict(results.features["two"])
    name = next(name for name, entry in entries.items() if entry.status == "ok")
    entries[name] = replace(entries[name], status="excluded")
    models = tuple(
        replace(m, slides=m.slides.filter(pl.col("slide_id") != name)) if m.encoder == "two" else m
        for m in results.models
    )
    changed = replace(results, features=results.features | {"two": entries}, models=models)
    first, second = flow.flows(changed)
    assert (first.encoders, second.encoders) == (("one",), ("two",))
    assert first.tested_slides == second.tested_slides + 1


def test_the_methods_state_the_numbers_of_the_run(tmp_path: Path) -> None:
    results = read(tmp_path, LOST)
    text = " ".join(methods.methods(results))
    for words in (
        "of 26 slides from 26 patients",
        "for 21 slides from 21 patients",
        "224 x 224 px at 0.5 um/px",
        "each of 2 frozen encoders",
        "with 3 folds",
        "100 bootstrap resamples",
        f"seed {results.config.seed}",
        "1,000 times",
        "Holm",
        "Attention is not HER2 staining",
        "[author:",
    ):
        assert words in text
    assert not re.search(r"\bNone\b|\bnan\b|\b1 (slides|patients|encoders|tiles)\b", text)
    assert "synthetic" not in text.lower()


def test_the_methods_of_drawn_slides_say_so_first(tmp_path: Path) -> None:
    results = read(tmp_path, Cohort(synthetic=True))
    assert methods.methods(results)[0].startswith("All slides of this study are synthetic")


def test_the_checklist_has_all_27_items_and_marks_what_only_the_author_knows(
    tmp_path: Path,
) -> None:
    items = checklist.checklist(read(tmp_path, LOST))
    numbers = [int(re.match(r"\d+", item.number).group()) for item in items]
    assert sorted(set(numbers)) == list(range(1, 28))
    assert numbers == sorted(numbers)
    assert len({item.number for item in items}) == len(items)
    for item in items:
        assert item.content
        assert item.by_author == item.content.startswith("[author: ")
    filled = {item.number: item.content for item in items if not item.by_author}
    assert "21 patients" in filled["20a"]
    assert not {"1", "8b", "17", "18a", "26"} & set(filled)


def test_text_and_checklist_lie_beside_the_page_and_formulas_stay_text(tmp_path: Path) -> None:
    cohort = Cohort(sites=("=1+1", HOSTILE))
    spec = cohort.write(tmp_path / "results")
    build_page(spec, tmp_path / "results", tmp_path / "report" / "report.html")
    results = read_results(spec, tmp_path / "results")
    folder = tmp_path / "report"
    text = (folder / "methods.txt").read_text(encoding="utf-8")
    assert text == "\n\n".join(methods.methods(results)) + "\n"
    written = pl.read_csv(folder / "checklist.csv", infer_schema=False)
    expected = guard_cells(checklist.checklist_table(results))
    assert written.rows() == [tuple(row) for row in expected.rows()]
    groups = pl.read_csv(folder / "tables" / "subgroups.csv")["group"].to_list()
    assert "'=1+1" in groups
    assert "=1+1" not in groups


def test_covariates_that_reach_a_headline_get_a_box(tmp_path: Path) -> None:
    results = read(tmp_path, Cohort(signal=0.0))
    (model,) = results.models
    table = model.controls["covariates"].with_columns(
        reached=pl.lit(True), covariates=pl.lit(0.91), note=pl.lit("")
    )
    reached = replace(model, controls=dict(model.controls) | {"covariates": table})
    (box,) = controls.covariate_warnings(replace(results, models=(reached,)))
    assert "0.910" in box.text
    assert model.name in box.text
    cleared = table.with_columns(reached=pl.lit(False))
    above = replace(model, controls=dict(model.controls) | {"covariates": cleared})
    assert controls.covariate_warnings(replace(results, models=(above,))) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"holds": True}, "Shown here."),
        ({"holds": False}, "Not shown here."),
        (
            {"difference": None, "holds": None, "note": "no IHC encoder"},
            "Not tested: it needs encoders pre-trained on H&E, IHC and non-medical",
        ),
    ],
)
def test_the_statement_of_the_paper_is_one_line(
    tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    results = read(tmp_path, Cohort(encoders=("one", "two")))
    row = {
        "head": "abmil", "statement": "H&E - both", "first": "one", "second": "two",
        "difference": 0.05, "low": -0.01, "high": 0.11, "p": 0.08, "p_holm": 0.4,
        "family_size": 5, "n": 18, "holds": False,
        "note": "",
    } | changed  # fmt: skip
    table = pl.DataFrame([row], infer_schema_length=None)
    (found,) = comparison.statements(replace(results, statements={"score": table}))
    assert words in found.text
    if row["difference"] is not None:
        assert (
            "+0.050 [-0.010, 0.110], p 0.080, 0.400 corrected for 5 tests, 18 patients"
            in found.text
        )


def test_the_summary_names_the_range_and_warns_of_selection(tmp_path: Path) -> None:
    results = read(tmp_path, Cohort(encoders=("one", "two"), signal=0.3))
    (sentence,) = summary.sentences(results)
    values = []
    for model in results.models:
        rows = model.metrics.filter(
            (pl.col("level") == "patient")
            & (pl.col("metric") == "auc")
            & (pl.col("class") == "macro")
        )
        values.append(rows["value"][0])
    assert f"{min(values):.3f} to {max(values):.3f}" in sentence
    assert "Corrected for choosing the highest of 2 models, the macro AUC is" in sentence
    (alone,) = summary.sentences(replace(results, models=results.models[:1]))
    assert "optimistic" not in alone


def test_a_best_model_without_interval_leaves_no_gap_in_the_summary(tmp_path: Path) -> None:
    results = read(tmp_path, Cohort(labels=("0", "1") * 8 + ("2",), encoders=("one", "two")))
    (sentence,) = summary.sentences(results)
    assert re.search(r" to [01]\.\d{3}, the highest with", sentence)


def test_an_absent_class_is_said_in_the_summary(tmp_path: Path) -> None:
    results = read(tmp_path, Cohort(labels=("0", "1") * 8))
    assert summary.sentences(results) == [
        "Task score: no macro AUC is defined; the table gives the reason."
    ]


def test_sharing_and_fairness_are_never_filled_for_the_author(tmp_path: Path) -> None:
    items = {item.number: item for item in checklist.checklist(read(tmp_path, LOST))}
    assert (items["18e"].topic, items["18f"].topic) == ("Data sharing", "Code sharing")
    assert all(items[number].by_author for number in ("14", "18e", "18f"))
    # The precision of a number of patients is known, the reason for it is the author's.
    assert "[author: how the number of patients was determined" in items["10"].content


def test_the_checklist_names_only_the_parts_that_the_cohort_has(tmp_path: Path) -> None:
    results = read(tmp_path, LOST)
    items = {item.number: item for item in checklist.checklist(results)}
    # No scanner is named, and every slide has the same amount of tissue.
    assert items["23b"].content == "AUC by site."
    models = tuple(
        replace(m, controls=dict(m.controls) | {"subgroups": m.controls["subgroups"].clear()})
        for m in results.models
    )
    bare = {item.number: item for item in checklist.checklist(replace(results, models=models))}
    assert bare["23b"].by_author
    assert bare["12d"].by_author


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ("leave_one_out", "a site that the training set lacks"),
        ("ignored", "sites were not considered"),
    ],
)
def test_how_test_parts_differ_follows_the_folds(tmp_path: Path, sites: str, words: str) -> None:
    cohort = Cohort(values={"folds": {"number": 3, "sites": sites}})
    items = {item.number: item for item in checklist.checklist(read(tmp_path, cohort))}
    assert words in items["16"].content


def test_of_a_fixed_split_only_the_author_knows_how_its_parts_differ(tmp_path: Path) -> None:
    results = replace(read(tmp_path, LOST), split=True)
    items = {item.number: item for item in checklist.checklist(results)}
    assert items["16"].by_author


def test_the_box_says_whether_covariates_reach_a_headline_or_come_near(tmp_path: Path) -> None:
    results = read(tmp_path, Cohort(signal=0.3))
    (model,) = results.models
    titles = []
    for difference in (-0.02, 0.05):
        table = model.controls["covariates"].with_columns(
            reached=pl.lit(True), difference=pl.lit(difference), low=pl.lit(-0.1)
        )
        changed = replace(model, controls=dict(model.controls) | {"covariates": table})
        (box,) = controls.covariate_warnings(replace(results, models=(changed,)))
        titles.append(box.title)
    assert titles == [
        "Covariates alone reach this headline.",
        "This headline is not shown to be above covariates alone.",
    ]


def test_tables_of_an_earlier_report_do_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    page = tmp_path / "report" / "report.html"
    for number, encoders in enumerate([("one", "two"), ("one",)]):
        folder = tmp_path / f"results{number}"
        build_page(Cohort(encoders=encoders).write(folder), folder, page)
        assert (page.parent / "tables" / "comparison.csv").exists() == (len(encoders) > 1)


def test_the_numbers_behind_drawn_figures_are_tables_too(tmp_path: Path) -> None:
    results = read(tmp_path, Cohort(encoders=("one", "two")))
    found = tables(results)
    for name in ("confusion", "reliability", "decision"):
        rows = sum(len(getattr(model, name)) for model in results.models)
        assert len(found[name]) == rows > 0


def test_a_precision_curve_has_a_point_a_threshold_and_no_other(tmp_path: Path) -> None:
    results = read(tmp_path, Cohort(signal=0.0))
    (model,) = results.models
    curves = model_detail.precision_curves(model)
    assert [curve.name for curve in curves] == list(model.task.class_names)
    target = model.patients["target"].to_numpy()
    for index, curve in enumerate(curves):
        scores = model.patients[f"prob_{curve.name}"].to_numpy()
        for recall, precision in zip(curve.x, curve.y, strict=True):
            picks = [
                scores >= threshold
                for threshold in scores
                if np.isclose((target[scores >= threshold] == index).sum(),
                              recall * (target == index).sum())
            ]  # fmt: skip
            assert any(np.isclose((target[pick] == index).mean(), precision) for pick in picks)
