"""Folds without the slides that tiling could not use: mended where they can be, or refused."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2.cohort.folds import check_disjoint, make_folds
from her2.cohort.manifest import SlideRow
from her2.cohort.usable import EXCLUDED, usable_counts
from her2.config import Task
from her2.core.errors import UserError
from tests.unit.test_folds import BINARY, TASK, balanced, cohort, row, spec

GRIDS = ("224px-0.5mpp", "96px-1mpp")
SCARCE = [row(f"q{i}", "a", "3+") for i in range(3)]
FEW = [*balanced(8, 3), *SCARCE]
"""Eight patients of each class, and three of 3+."""


def folds_of(
    rows: list[SlideRow],
    folder: Path,
    lost: Mapping[str, str],
    *,
    grids: tuple[str, ...] = GRIDS,
    on: tuple[str, ...] = GRIDS,
    **changed: object,
) -> pl.DataFrame:
    """Return the folds of rows of which some slides are lost on some grids."""
    names = [one.slide_id for one in rows]
    reasons = {
        f"{EXCLUDED}{grid}": pl.Series(
            [lost.get(name) if grid in on else None for name in names], dtype=pl.String
        )
        for grid in grids
    }
    pl.DataFrame({"slide_id": names, **reasons}).write_parquet(folder / "audited.parquet")
    return make_folds(
        spec(**changed), cohort(rows), folder / "folds.parquet", audited=folder / "audited.parquet"
    )


def refusal(rows: list[SlideRow], folder: Path, lost: Mapping[str, str], **changed: object) -> str:
    with pytest.raises(UserError) as error:
        folds_of(rows, folder, lost, **changed)
    assert not (folder / "folds.parquet").exists()
    return str(error.value)


def lost(*patients: str) -> dict[str, str]:
    return {f"{patient}-a": f"no tissue in {patient}" for patient in patients}


def with_split(rows: list[SlideRow], parts: Mapping[str, str]) -> list[SlideRow]:
    return [replace(one, split=parts.get(one.patient_id, "train")) for one in rows]


def at_sites(rows: list[SlideRow], sites: Mapping[str, str]) -> list[SlideRow]:
    spread = {one.patient_id: "ABC"[i % 3] for i, one in enumerate(rows)}
    return [replace(one, site=(spread | dict(sites))[one.patient_id]) for one in rows]


@pytest.mark.parametrize("protocol", ["sound", "published"])
@pytest.mark.parametrize("sites", ["ignored", "stratified"])
def test_without_a_lost_slide_the_folds_are_the_same_bytes(tmp_path, protocol, sites):
    make_folds(spec(protocol=protocol, sites=sites), cohort(FEW), tmp_path / "plain.parquet")
    folds_of(FEW, tmp_path, {}, protocol=protocol, sites=sites)
    assert (tmp_path / "folds.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()


def test_a_lost_slide_of_a_large_class_moves_nobody(tmp_path):
    plain = folds_of(FEW, tmp_path, {})
    assert folds_of(FEW, tmp_path, lost("p00", "p31+")).equals(plain)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("on", [GRIDS, GRIDS[:1]])
@pytest.mark.parametrize("repeats", [1, 4])
def test_one_lost_slide_of_a_scarce_class_keeps_it_in_every_training_set(
    tmp_path, number, on, repeats
):
    """Before, the fold that had it as its only one for training stopped the run, at training."""
    plain = folds_of(FEW, tmp_path, {}, repeats=repeats)
    gone = lost(f"q{number}")
    table = folds_of(FEW, tmp_path, gone, on=on, repeats=repeats)
    kept = table.filter(~pl.col("slide_id").is_in(list(gone)) & (pl.col("label") == 3))
    for fold in kept.partition_by("repeat", "fold"):
        assert "train" in fold["role"].to_list()
    changed = table.filter(table["role"] != plain["role"])
    assert set(changed["patient_id"]) <= {"q0", "q1", "q2"} - {f"q{number}"}
    assert table.filter(pl.col("role") == "test").equals(plain.filter(pl.col("role") == "test"))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gone=st.sets(st.sampled_from([one.patient_id for one in FEW]), max_size=12))
def test_whoever_is_lost_each_class_is_trained_and_tuned_on_where_patients_allow(tmp_path, gone):
    left = {one.patient_id for one in FEW} - gone
    tests = folds_of(FEW, tmp_path, {}).filter(pl.col("role") == "test")
    usable = tests.filter(pl.col("patient_id").is_in(list(left)))
    places = [usable.filter(label=index)["fold"].n_unique() for index in range(4)]
    if min(places) < 2:  # a class in one test set only is never trained and tested
        with pytest.raises(UserError, match="no figures can be had"):
            folds_of(FEW, tmp_path, lost(*gone))
        return
    table = folds_of(FEW, tmp_path, lost(*gone))
    check_disjoint(table)
    for fold in table.filter(pl.col("patient_id").is_in(list(left))).partition_by("repeat", "fold"):
        for own in fold.filter(pl.col("role") != "test").partition_by("label"):
            roles = set(own["role"])
            assert "train" in roles
            assert "tune" in roles or len(own) == 1


def test_a_lost_slide_of_a_patient_with_another_one_changes_nothing(tmp_path):
    rows = [*FEW, row("q1", "b", "3+")]
    assert folds_of(rows, tmp_path, lost("q1")).equals(folds_of(rows, tmp_path, {}))


def test_the_advice_names_slides_and_changes_that_do_work(tmp_path):
    message = refusal(FEW, tmp_path, lost("q0", "q1"))
    assert message.splitlines() == [
        "task on 'her2': no figures can be had without the slides that cannot be used. Each of "
        "these would do: replace or repair one of the slides q0-a, q1-a; merge the classes '2+' "
        "and '3+' in `tasks`; take the class '3+' out of `tasks`, so that its slides are only "
        "predicted",
        *(
            f"  - grid {grid}, class '3+': none is tested by a model that knows every class (1 of "
            "3 patients usable; q0-a: no tissue in q0; q1-a: no tissue in q1)"
            for grid in GRIDS
        ),
    ]
    assert len(folds_of(FEW, tmp_path, lost("q0")))
    merged = Task(label="her2", classes={"0": ["0"], "1+": ["1+"], "2+": ["2+", "3+"]})
    assert len(folds_of(FEW, tmp_path, lost("q0", "q1"), task=merged))
    dropped = Task(label="her2", classes={"0": ["0"], "1+": ["1+"], "2+": ["2+"]})
    assert len(folds_of(FEW, tmp_path, lost("q0", "q1"), task=dropped))


def test_other_numbers_of_folds_are_advised_only_where_they_help(tmp_path):
    """Both usable patients in one test set: no model that tests them has seen their class."""
    rows = [*balanced(8, 3), *(row(f"q{i}", "a", "3+") for i in range(6))]
    plain = folds_of(rows, tmp_path, {})
    first = plain.filter(
        (pl.col("role") == "test") & (pl.col("label") == 3) & (pl.col("fold") == 0)
    )
    together = set(first["patient_id"])
    assert len(together) == 2
    gone = lost(*({f"q{i}" for i in range(6)} - together))
    (tmp_path / "folds.parquet").unlink()
    message = refusal(rows, tmp_path, gone)
    number = int(message.partition("set folds.number to ")[2].partition(";")[0])
    assert len(folds_of(rows, tmp_path, gone, folds=number))
    for other in {2, 4} - {number}:
        with pytest.raises(UserError):
            folds_of(rows, tmp_path, gone, folds=other)


def test_a_class_that_is_lost_on_one_grid_is_named_with_the_grid(tmp_path):
    message = refusal(FEW, tmp_path, lost("q0", "q1", "q2"), on=GRIDS[1:])
    assert f"grid {GRIDS[1]}, class '3+': none is left to train on in any fold (0 of 3" in message
    assert GRIDS[0] not in message
    assert "replace or repair the slides q0-a, q1-a, q2-a;" in message


def test_two_classes_are_never_merged(tmp_path):
    rows = balanced(4)
    message = refusal(
        rows, tmp_path, lost(*(f"p{i}{c}" for i in range(4) for c in ("2+", "3+"))), task=BINARY
    )
    assert "merge" not in message
    assert "take the class" not in message
    assert "replace or repair the slides" in message


@pytest.mark.parametrize("protocol", ["sound", "published"])
def test_both_protocols_refuse_a_class_without_any_usable_slide(tmp_path, protocol):
    message = refusal(FEW, tmp_path, lost("q0", "q1", "q2"), protocol=protocol)
    unit = "patients" if protocol == "sound" else "slides"
    assert f"class '3+': none is left to train on in any fold (0 of 3 {unit} usable" in message


def test_the_published_protocol_draws_no_other_folds(tmp_path):
    plain = folds_of(FEW, tmp_path, {}, protocol="published")
    assert folds_of(FEW, tmp_path, lost("q1"), protocol="published").equals(plain)


def test_a_drawn_tuning_set_of_a_fixed_split_gives_its_patient_back(tmp_path):
    rows = with_split(FEW, {"p00": "test", "q0": "test"})
    plain = folds_of(rows, tmp_path, {}, split=True)
    train = plain.filter((pl.col("role") == "train") & (pl.col("label") == 3))["patient_id"][0]
    table = folds_of(rows, tmp_path, lost(train), split=True)
    (other,) = {"q1", "q2"} - {train}
    assert table.filter(pl.col("patient_id") == other)["role"].to_list() == ["train"]


def test_a_tuning_set_in_the_manifest_is_the_users(tmp_path):
    rows = with_split(FEW, {"p00": "test", "p01+": "tune", "q0": "test", "q1": "tune"})
    assert len(folds_of(rows, tmp_path, lost("q1"), split=True))
    (tmp_path / "folds.parquet").unlink()
    message = refusal(rows, tmp_path, lost("q2"), split=True)
    assert "replace or repair slide q2-a; set the column 'split' of patient q1 to train;" in message
    assert "folds.number" not in message
    moved = with_split(FEW, {"p00": "test", "p01+": "tune", "q0": "test"})
    assert len(folds_of(moved, tmp_path, lost("q2"), split=True))


def test_a_fixed_split_may_lose_a_class_of_its_test_set_but_not_all_of_it(tmp_path):
    rows = with_split(FEW, {"p00": "test", "q0": "test"})
    assert len(folds_of(rows, tmp_path, lost("q0"), split=True))
    (tmp_path / "folds.parquet").unlink()
    message = refusal(rows, tmp_path, lost("q0", "p00"), split=True)
    assert "none is left in a test set" in message


def test_with_a_site_held_out_the_only_patient_of_the_others_is_trained_on(tmp_path):
    rows = [*FEW, row("q3", "a", "3+")]
    rows = at_sites(rows, {"q0": "A", "q1": "A", "q2": "B", "q3": "B"})
    for gone, kept in (("q0", "q1"), ("q1", "q0")):
        table = folds_of(rows, tmp_path, lost(gone), sites="leave_one_out")
        held_out = table.filter(pl.col("patient_id").is_in(["q2", kept]))
        (b,) = held_out.filter(patient_id="q2", role="test")["fold"]
        assert held_out.filter(patient_id=kept, fold=b)["role"].to_list() == ["train"]
        counts = usable_counts(table, {"g": lost(gone)}, TASK)
        assert counts.filter(role="train")["usable"].min() == 1


def test_a_fold_without_a_class_is_no_reason_to_stop_where_another_repeat_has_it(tmp_path):
    """The two usable patients of a class are tested by one model in a repeat, by two in another."""
    rows = [*balanced(8, 3), *(row(f"q{i}", "a", "3+") for i in range(6))]
    plain = folds_of(rows, tmp_path, {}, repeats=2)
    tests = plain.filter((pl.col("role") == "test") & (pl.col("label") == 3))
    by_repeat = [
        dict(tests.filter(repeat=r).select("patient_id", "fold").iter_rows()) for r in (0, 1)
    ]
    pairs = itertools.combinations(sorted(by_repeat[0]), 2)
    pair = next(
        (a, b)
        for a, b in pairs
        if by_repeat[0][a] == by_repeat[0][b] and by_repeat[1][a] != by_repeat[1][b]
    )
    gone = lost(*(set(by_repeat[0]) - set(pair)))
    counts = usable_counts(folds_of(rows, tmp_path, gone, repeats=2), {"g": gone}, TASK)
    without = counts.filter(role="train", usable=0)
    assert without.select("repeat", "fold", "class").rows() == [(0, by_repeat[0][pair[0]], "3+")]


def test_a_class_of_one_site_cannot_be_had_with_sites_held_out(tmp_path):
    rows = at_sites(FEW, {"q0": "A", "q1": "B", "q2": "C"})
    message = refusal(rows, tmp_path, lost("q0", "q1"), sites="leave_one_out")
    assert "set `folds.sites: stratified`" not in message  # one patient: nor there
    assert "folds.number" not in message
    more = [*balanced(8, 3), *(row(f"q{i}", "a", "3+") for i in range(6))]
    rows = at_sites(more, {"q0": "A", "q1": "A", "q2": "A", "q3": "B", "q4": "B", "q5": "C"})
    message = refusal(rows, tmp_path, lost("q3", "q4", "q5"), sites="leave_one_out")
    assert "set `folds.sites: stratified`" in message
