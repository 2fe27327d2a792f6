"""`her2 predict`: rows of patients, the challenge's table, and what is said while it works."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from her2.core.errors import UserError
from her2.core.events import count_encoded, hearing, write_event
from her2.evaluation.groupings import Grouping
from her2.prediction.herohe import chosen_grouping, herohe_table
from her2.prediction.predictor import Predictor
from her2.prediction.progress import Progress
from her2.prediction.results import SlideResult, positive_score, results_table
from tests.unit.predict_makers import OWN, make_predictor, threshold


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return make_predictor(tmp_path_factory.mktemp("predictor"))


def slide(name: str, patient: str, *high: float, **changed: Any) -> SlideResult:
    """Return a slide with P(high) by each model."""
    each = np.array([[1 - one, one] for one in high])
    return replace(SlideResult(name, patient, "ok", tiles=10, each=each), **changed)


def patients(predictor: Predictor, *slides: SlideResult) -> list[dict[str, Any]]:
    return results_table(predictor, slides).filter(level="patient").rows(named=True)


def test_a_patient_is_the_mean_of_its_slides(predictor: Predictor) -> None:
    found = patients(
        predictor, slide("a", "p", 0.9, 0.7), slide("b", "p", 0.1, 0.1), slide("c", "q", 0.3, 0.3)
    )
    assert [row["patient_id"] for row in found] == ["p", "q"]
    assert found[0]["prob_high"] == pytest.approx(0.45)
    assert found[0]["spread_high"] == pytest.approx(0.05)  # of 0.5 and 0.4
    assert (found[0]["slides"], found[0]["tiles"], found[0]["models"]) == (2, 20, 2)
    assert (found[0]["predicted"], found[0]["status"]) == ("low", "ok")


def test_a_lost_slide_of_a_patient_is_not_hidden(predictor: Predictor) -> None:
    lost = SlideResult("b", "p", "failed", "the file does not exist")
    (row,) = patients(predictor, slide("a", "p", 0.9, 0.7), lost)
    assert (row["status"], row["slides"]) == ("ok", 1)
    assert row["prob_high"] == pytest.approx(0.8)
    assert row["reason"] == "b: the file does not exist"
    other = SlideResult("c", "p", "excluded", "no tissue found")
    (row,) = patients(predictor, lost, other)
    assert (row["status"], row["predicted"], row["prob_high"]) == ("failed", None, None)
    assert row["reason"] == "b: the file does not exist; c: no tissue found"


def test_decisions_are_by_the_thresholds_of_the_rows_level(predictor: Predictor) -> None:
    """A score at the threshold is positive."""
    thresholds = (
        threshold("slide", "specificity", 0.6), threshold("patient", "specificity", 0.4),
    )  # fmt: skip
    given = replace(predictor, model=replace(predictor.model, thresholds=thresholds))
    table = results_table(given, [slide("a", "p", 0.5, 0.5), slide("b", "q", 0.625, 0.575)])
    assert table["at_specificity_low vs high"].to_list() == [
        "negative", "positive", "positive", "positive",
    ]  # fmt: skip
    assert "at_sensitivity_low vs high" not in table.columns


def test_cautions_of_several_slides_say_of_which(predictor: Predictor) -> None:
    one = slide("a", "p", 0.5, cautions=("Few tiles.",))
    two = slide("b", "p", 0.5, cautions=("Few tiles.", "Far away."))
    (row,) = patients(predictor, one, two)
    assert row["cautions"] == "a, b: Few tiles. b: Far away."
    (row,) = patients(predictor, one)
    assert row["cautions"] == "Few tiles."


def test_a_score_is_the_share_of_the_positive_side() -> None:
    grouping = Grouping("0 vs 1+", (0,), (1,))
    assert positive_score(np.array([0.1, 0.3, 0.6]), grouping) == pytest.approx(0.75)
    assert positive_score(np.array([0.0, 0.0, 1.0]), grouping) == 0.5


def test_the_challenges_table_has_one_row_per_case(predictor: Predictor) -> None:
    """Its columns are those of the HEROHE challenge; a case without a prediction has none."""
    table = results_table(
        predictor,
        [slide("1a", "1", 0.9, 0.7), slide("1b", "1", 0.4, 0.4), slide("2", "2", 0.4, 0.4),
         SlideResult("3", "3", "failed", "damaged")],
    )  # fmt: skip
    found = herohe_table(table, chosen_grouping(predictor, None))
    assert found.columns == ["caseID", "soft_prediction", "hard_prediction"]
    assert found["caseID"].to_list() == ["1", "2", "3"]
    assert found["soft_prediction"].to_list() == pytest.approx([0.6, 0.4, None])
    assert found["hard_prediction"].to_list() == [1, 0, None]


def test_the_challenge_needs_a_grouping(predictor: Predictor) -> None:
    two = (*predictor.groupings, Grouping("other", (1,), (0,)))
    several, none = replace(predictor, groupings=two), replace(predictor, groupings=())
    with pytest.raises(UserError, match="'low vs high', 'other'; say which is HER2-positive"):
        chosen_grouping(several, None)
    with pytest.raises(UserError, match="--grouping no: the model has the groupings"):
        chosen_grouping(several, "no")
    with pytest.raises(UserError, match="the groupings none; it needs one"):
        chosen_grouping(none, None)
    assert chosen_grouping(several, OWN).positive == (1,)


def test_progress_counts_what_is_not_in_the_cache() -> None:
    """1,000 tiles, of which 400 are in the cache; 200 of 600 in 60 s leave 120 s."""
    now, said = [0.0], io.StringIO()
    progress = Progress(said, lambda: now[0])
    with progress.stage("embedding", 3, 1000):
        write_event("embedded", "a", cached=True, tiles=400)
        now[0] = 60.0
        count_encoded("b", 200)
        assert said.getvalue() == (
            "her2 predict: embedding: 1 of 3 slides, 200 of 600 tiles, 2 min left\n"
        )
        now[0] = 61.0
        count_encoded("b", 200)
        now[0] = 1000.0  # nothing is left, so nothing is said
        count_encoded("c", 200)
        write_event("embedded", "b", tiles=400)
        write_event("embedded", "c", tiles=200)
    assert said.getvalue().count("\n") == 1
    count_encoded("d", 200)  # of whatever comes after the stage
    assert progress.line(1000.0) == "embedding: 3 of 3 slides, 600 of 600 tiles"


def test_progress_of_slides_is_that_of_slides_that_took_work() -> None:
    """Four slides, two of them in the cache: one in 10 s leaves 10 s."""
    now, said = [0.0], io.StringIO()
    progress = Progress(said, lambda: now[0])
    with progress.stage("tiling", 4):
        for name in ("a", "b"):
            write_event("tiled", name, cached=True)
        now[0] = 10.0
        write_event("left_out", "c", reason="damaged")
    assert said.getvalue() == "her2 predict: tiling: 3 of 4 slides, 10 s left\n"


def test_events_are_heard_only_while_somebody_listens() -> None:
    heard: list[str] = []
    with hearing(lambda event: heard.append(event.name)):
        write_event("tiled", "a")
    write_event("tiled", "b")
    assert heard == ["a"]
