"""`her2 view`: the table behind the page of all slides, against the tables of the evaluation."""

import gzip
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from her2.cohort.audit import read_cohort_table
from her2.cohort.manifest import Cohort as Manifest
from her2.config import Task
from her2.config.jobs import CohortSpec
from her2.config.names import PUBLISHED
from her2.core.files import write_json
from her2.explanation.places import RunPlaces
from her2.filters.registry import LISTED
from her2.frozen.bundle.asked import Wanted
from her2.report.results import read_results
from her2.report.sections.gallery import gallery
from her2.storage.entries import FeatureEntry, write_entries
from her2.viewer.cohort.facts import BROWN, CAUTION, DIFFERS, MARKS, REJECTED, SCALE
from her2.viewer.cohort.numbers import numbers_of
from her2.viewer.cohort.table import USABLE, cohort_table, kind_of, natural
from her2.viewer.pages.cohort import Tables, as_json
from her2.viewer.run import DEVELOPMENT, EXTERNAL, NotThereError, ViewedCohort, ViewedRun
from tests.unit.external_report_maker import Outside, Validated
from tests.unit.report_maker import BUCKET

MODEL = "score/plain/abmil"
SIDES = {
    "tasks": {
        "status": {
            "of": "score",
            "label": "her2",
            "classes": {"negative": ["0", "1"], "positive": ["2"]},
            "positive": ["2+"],
        }
    }
}
MADE = Validated(
    labels=(*("0", "1", "2") * 6, None, "unheard of"),
    sites=('<img src=x onerror="window.broken=1">', "=1+1", None),
    tile_reasons={4: ("excluded", "3 tiles, fewer than tiling.min_tiles 5"),
                  7: ("failed", "/data/secret/slide-07.svs: is damaged at 1,234")},
    embed_reasons={10: ("failed", "its tiles cannot be read")},
    external={"yale": Outside(labels=("0", "2", None, "other") * 3),
              "two": Outside(section=SIDES, labels=("0", "1", "2", "2") * 3)},
)  # fmt: skip


def viewed(made: Validated, folder: Path) -> ViewedRun:
    made.write(folder)
    config = made.config()
    places = {DEVELOPMENT: folder} | {
        EXTERNAL + name: folder / "validation" / name for name in made.external
    }
    spec = CohortSpec(rows="drawn", buckets=(BUCKET,), grids=(), labels=("her2",))
    stamp = {"job": "", "spec": spec.model_dump(mode="json"), "read": {}, "made": {}}
    for place in places.values():
        write_json(folder / "stamps" / place.relative_to(folder) / "tabulate_cohort.json", stamp)
        for encoder in made.encoders:
            old = {"slide-00": FeatureEntry("failed", "of another manifest", None, 0, 0, 0)}
            write_entries(place / "features" / encoder / "0000-of-0099.json", old)
    cohorts = {
        key: ViewedCohort(
            key=key, title=key.removeprefix(EXTERNAL), synthetic=False, folder=place,
            table=read_cohort_table(place / "cohort"), cohort=Manifest((), place), rows={},
            masks=None,
        )
        for key, place in places.items()
    }  # fmt: skip
    models = {f"score/{name}/abmil": Wanted(folder, "score", name, "abmil")
              for name in made.encoders}  # fmt: skip
    return ViewedRun(folder, RunPlaces(config, folder), cohorts, models)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ViewedRun:
    return viewed(MADE, tmp_path_factory.mktemp("run") / "results")


def rows_of(table: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Each slide as the page reads it, by cohort and id."""
    columns = table["columns"]
    texts = {
        name: [None if code < 0 else own["names"][code] for code in own["codes"]]
        for name, own in columns.items()
        if isinstance(own, dict) and "codes" in own
    }
    assert {len(values) for values in texts.values()} == {table["rows"]}
    return {
        (texts["cohort"][row], slide): {
            **{name: values[row] for name, values in texts.items()},
            "p": {name: own[row] for name, own in columns["probabilities"].items()},
            "rejected": {name: own[row] for name, own in columns["rejected"].items()},
            "marks": {name for bit, name in enumerate(MARKS) if columns["marks"][row] >> bit & 1},
            "cautions": columns["cautions"].get(str(row), []),
            "tiles": columns["tiles"][row],
        }
        for row, slide in enumerate(columns["slide_id"])
    }


@pytest.fixture(scope="module")
def rows(run: ViewedRun) -> dict[tuple[str, str], dict[str, Any]]:
    return rows_of(json.loads(gzip.decompress(as_json(cohort_table(run, MODEL)))))


@pytest.mark.parametrize(
    ("cohort", "folder"),
    [
        (DEVELOPMENT, "evaluation/score"),
        ("external:yale", "validation/yale/evaluation/score"),
        ("external:two", "validation/two/evaluation/status"),
    ],
)
def test_numbers_of_slides_with_a_label_are_exactly_those_of_the_evaluation(
    run: ViewedRun, rows: dict[tuple[str, str], dict[str, Any]], cohort: str, folder: str
) -> None:
    table = pl.read_parquet(run.folder / folder / "plain/abmil/slides.parquet")
    classes = [name.removeprefix("prob_") for name in table.columns if name.startswith("prob_")]
    assert len(table) > 5
    for own in table.iter_rows(named=True):
        found = rows[cohort, own["slide_id"]]
        assert found["truth"] == classes[own["target"]]
        assert found["predicted"] == classes[own["predicted"]]
        assert {name: found["p"][name] for name in classes} == {
            name: own[f"prob_{name}"] for name in classes
        }
        assert all(found["p"][name] is None for name in found["p"].keys() - set(classes))


def test_slides_without_a_label_have_the_mean_of_all_models_and_no_truth(
    run: ViewedRun, rows: dict[tuple[str, str], dict[str, Any]]
) -> None:
    table = pl.read_parquet(run.folder / "evaluation/score/plain/abmil/predictions.parquet")
    for slide in ("slide-18", "slide-19"):
        own = table.filter(pl.col("slide_id") == slide)
        assert len(own) == 3  # of each fold's model
        found = rows[DEVELOPMENT, slide]
        assert found["truth"] is None
        for name in ("0", "1+", "2+"):
            assert found["p"][name] == own[f"prob_{name}"].mean()
    assert rows[DEVELOPMENT, "slide-19"]["label"] == "unheard of"
    found = rows["external:yale", "yale-03"]
    assert (found["truth"], found["label"]) == (None, "other")
    assert found["predicted"] in ("0", "1+", "2+")


def test_what_was_not_predicted_has_its_reason_and_the_class_of_its_label(
    rows: dict[tuple[str, str], dict[str, Any]],
) -> None:
    excluded, damaged, unread = (rows[DEVELOPMENT, f"slide-{n:02d}"] for n in (4, 7, 10))
    assert excluded["status"] == "excluded"
    assert excluded["standing"] == "excluded: … tiles, fewer than tiling.min_tiles …"
    assert damaged["reason"] == ".../slide-07.svs: is damaged at 1,234"
    assert (unread["status"], unread["reason"]) == ("failed", "its tiles cannot be read")
    assert rows[DEVELOPMENT, "slide-00"]["status"] == "ok"  # whatever another manifest's job said
    for one in (excluded, damaged, unread):
        assert (one["truth"], one["predicted"]) == ("1+", None)
        assert set(one["p"].values()) == {None}
    assert rows[DEVELOPMENT, "slide-00"]["standing"] == USABLE


def test_every_slide_of_every_cohort_is_there_once(
    run: ViewedRun, rows: dict[tuple[str, str], dict[str, Any]]
) -> None:
    assert set(rows) == {
        (key, slide) for key, one in run.cohorts.items() for slide in one.slide_ids
    }
    table = cohort_table(run, MODEL)
    assert [one["slides"] for one in table["cohorts"]] == [20, 12, 12]
    assert table["classes"] == ["0", "1+", "2+", "negative", "positive"]


def test_it_says_which_numbers_they_are(run: ViewedRun) -> None:
    development, yale, two = (one["numbers"] for one in cohort_table(run, MODEL)["cohorts"])
    assert "out-of-fold" in development
    assert "evaluation/score/plain/abmil/slides" in development
    assert "calibrated probabilities of all folds' models" in yale
    assert "validation/two/evaluation/status/plain/abmil/slides" in two


def test_rejected_shares_and_marks_are_those_of_the_reports_gallery(tmp_path: Path) -> None:
    run = viewed(MADE, tmp_path / "results")
    path = run.folder / "cohort/slides.parquet"
    table = pl.read_parquet(path)
    number = pl.int_range(len(table))
    table = table.with_columns(
        tiles=pl.when(number == 2).then(0).otherwise(20),
        **{
            f"rejected_{name}": (number * (i + 1) // 3) % 9
            for i, name in enumerate(one.name for one in LISTED)
        },
        not_drawn=pl.when(number == 3).then(30),
        brown=pl.when(number == 5).then(0.4),
        file_mpp_x=pl.when(number == 6).then(0.5),
        file_mpp_y=pl.when(number == 6).then(0.5),
        mpp_x=pl.when(number == 8).then(0.5).otherwise(0.25),
        mpp_y=pl.when(number == 8).then(0.5).otherwise(0.25),
    )
    table.write_parquet(path)
    cards = {one.slide_id: one for one in gallery(read_results(MADE.spec(), run.folder)).cards}
    changed = replace(run.cohorts[DEVELOPMENT], table=table)
    rows = rows_of(cohort_table(replace(run, cohorts={DEVELOPMENT: changed}), MODEL))
    for (_, slide), found in rows.items():
        assert found["rejected"] == pytest.approx(dict(cards[slide].causes), abs=1e-5)
        if slide != "slide-10":  # tiled, and not embedded
            assert (REJECTED in found["marks"]) == cards[slide].marked
    assert {slide for (_, slide), one in rows.items() if one["marks"] - {REJECTED}} == {
        "slide-05", "slide-06", "slide-08",
    }  # fmt: skip
    for slide, mark, words in (
        ("slide-05", BROWN, "40% of the tissue is brown, without eosin: IHC?"),
        ("slide-06", DIFFERS, "0.25 um/px in the manifest, 0.5 in its file"),
        ("slide-08", SCALE, "0.5 um/px, most slides 0.25"),
    ):
        assert mark in rows[DEVELOPMENT, slide]["marks"]
        assert rows[DEVELOPMENT, slide]["cautions"] == [words]


def test_without_a_model_there_are_slides_and_truths_alone(run: ViewedRun) -> None:
    table = cohort_table(replace(run, models={}), None)
    assert (table["model"], table["models"]) == (None, [])
    found = rows_of(table)
    assert found[DEVELOPMENT, "slide-00"]["truth"] == "0"
    assert all(one["predicted"] is None for one in found.values())


def test_a_model_of_another_task_tells_its_own_truth(run: ViewedRun) -> None:
    status = Task(label="her2", classes={"low": ["0", "1"], "high": ["2"]})
    config = run.config.model_copy(update={"tasks": {**run.config.tasks, "status": status}})
    models = {"status/plain/abmil": Wanted(run.folder, "status", "plain", "abmil")}
    both = replace(run, places=replace(run.places, config=config), models=models)
    answer = cohort_table(both, "status/plain/abmil")
    rows = rows_of(answer)
    assert rows[DEVELOPMENT, "slide-02"]["truth"] == "high"
    assert {one["predicted"] for one in rows.values()} == {None}
    assert [one["numbers"] for one in answer["cohorts"]] == [
        "not predicted by this model",
        "not predicted by this model",
        "not predicted: the cohort has no truth for this task",
    ]


def test_what_tiling_does_not_know_is_not_none_rejected(run: ViewedRun) -> None:
    own = run.cohorts[DEVELOPMENT]
    table = own.table.drop(pl.selectors.starts_with("rejected_")).with_columns(
        tiles=pl.lit(None, pl.Int64), mpp_x=pl.lit(None, pl.Float64)
    )
    answer = cohort_table(replace(run, cohorts={DEVELOPMENT: replace(own, table=table)}), MODEL)
    for found in rows_of(answer).values():
        assert set(found["rejected"].values()) == {None}
        assert (found["tiles"], found["marks"]) == (None, set())


def test_a_model_that_does_not_exist_is_not_there(run: ViewedRun) -> None:
    with pytest.raises(NotThereError, match="score/plain/abmil"):
        cohort_table(run, "score/plain/other")


def test_slides_that_a_bundle_predicted_are_a_cohort_without_truth(run: ViewedRun) -> None:
    table = pl.DataFrame(
        {
            "slide_id": ["b-10", "b-9", "b-8"],
            "patient_id": ["b", "b", None],
            "status": ["ok", "ok", "failed"],
            "reason": [None, None, "is no slide"],
            "predicted": ["high", "low", None],
            "prob_low": [0.25, 0.75, None],
            "prob_high": [0.75, 0.25, None],
            "tiles": [7, 8, None],
            "cautions": ["It is far away.", None, None],
            "site": ["here", None, None],
        }
    )
    one = replace(run.cohorts[DEVELOPMENT], key="predicted", title="predicted", table=table)
    for cohorts, key in (({"predicted": one}, None), ({**run.cohorts, "predicted": one}, MODEL)):
        answer = cohort_table(replace(run, cohorts=cohorts), key)
        rows = rows_of(answer)
        own = [rows["predicted", name] for name in ("b-8", "b-9", "b-10")]
        assert [one["predicted"] for one in own] == [None, "low", "high"]
        assert [one["p"]["high"] for one in own] == [None, 0.25, 0.75]
        assert {one["truth"] for one in own} == {None}
        assert own[0]["standing"] == "failed: is no slide"
        assert own[2]["marks"] == {CAUTION}
        assert own[2]["cautions"] == ["It is far away."]
        assert "of the bundle" in answer["cohorts"][-1]["numbers"]
        assert answer["columns"]["slide_id"][-3:] == ["b-8", "b-9", "b-10"]


HOSTILE = ("</script><script>window.broken=1</script>", '"quoted", \\', "a\u2028b\0c", "9" * 5000,
           "=cmd|'/c calc'!A1", "\u202egnp.exe", "\U0001f52c")  # fmt: skip


def test_any_text_comes_through_as_it_is(run: ViewedRun) -> None:
    own = run.cohorts[DEVELOPMENT]
    names = pl.Series("site", [HOSTILE[i % len(HOSTILE)] for i in range(len(own.table))])
    table = own.table.with_columns(names, names.alias("scanner"), names.alias("reason"))
    answer = cohort_table(replace(run, cohorts={DEVELOPMENT: replace(own, table=table)}), MODEL)
    rows = rows_of(json.loads(gzip.decompress(as_json(answer))))
    for index, slide in enumerate(own.table["slide_id"]):
        assert rows[DEVELOPMENT, slide]["site"] == HOSTILE[index % len(HOSTILE)]
        assert rows[DEVELOPMENT, slide]["scanner"] == HOSTILE[index % len(HOSTILE)]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("3 tiles, fewer than tiling.min_tiles 5", "… tiles, fewer than tiling.min_tiles …"),
        ("12,345 tiles, more than 1,000.5", "… tiles, more than …"),
        (
            "its file a-1.svs cannot be read (No such file)",
            "its file … cannot be read (No such file)",
        ),
        (".../b c.mrxs: is damaged at level 2", ".../b …: is damaged at level …"),
        ("a-1: no tissue found", "…: no tissue found"),
        ("see cohort.root", "see cohort.root"),
        ("", "no reason is known"),
    ],
)
def test_reasons_of_a_kind_are_one_filter(reason: str, kind: str) -> None:
    assert kind_of(reason, "a-1") == kind


def test_numbers_of_the_published_protocol_are_not_called_out_of_fold(
    run: ViewedRun, tmp_path: Path
) -> None:
    own = run.model(MODEL)
    twin = Wanted(tmp_path, own.task, own.encoder, f"{own.head}{PUBLISHED}")
    shutil.copytree(own.folder("evaluation"), twin.folder("evaluation"))
    cohort = run.cohort(DEVELOPMENT)
    assert "not trained on the slide's patient" in numbers_of(run, cohort, own).words
    found = numbers_of(run, cohort, twin)
    assert "not trained on the slide's patient" not in found.words
    assert "folds divide slides and not patients" in found.words
    assert found.table.equals(numbers_of(run, cohort, own).table)
    assert found.task is run.config.tasks[own.task]


@pytest.mark.parametrize("slide_id", ["t", "s", "tiss", "12"])
def test_a_short_id_leaves_the_words_of_a_reason(slide_id: str) -> None:
    assert kind_of(f"{slide_id}: no tissue was found", slide_id) == "…: no tissue was found"
    assert kind_of(f"{slide_id}.svs: is damaged", slide_id) == "…: is damaged"


def test_a_long_reason_takes_no_time() -> None:
    before = time.process_time()
    kind_of("a" * 200_000, "b")
    assert time.process_time() - before < 1


def test_ids_are_in_the_order_in_which_people_count() -> None:
    names = ["a-10", "a-9", "a-010", "b", "10", "9", "a-" + "9" * 5000, "", "a"]
    assert sorted(names, key=natural) == [
        "", "9", "10", "a", "a-9", "a-10", "a-010", "a-" + "9" * 5000, "b",
    ]  # fmt: skip


def test_a_table_is_made_once_for_each_model(
    run: ViewedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(run: ViewedRun, key: str | None) -> dict[str, object]:
        made.append(key)
        return {"model": key}

    monkeypatch.setattr("her2.viewer.pages.cohort.cohort_table", make)
    tables = Tables()
    for key in ("a", None, "a", None):
        assert json.loads(gzip.decompress(tables.of(run, key))) == {"model": key}
    assert made == ["a", None]
