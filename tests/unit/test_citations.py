"""Works are declared where a method lives, and listed by the report."""

import pytest

from her2.core.citations import cite, declared
from her2.report.sections.paper.references import known_works, references


def test_a_declared_work_is_listed_where_the_text_names_it() -> None:
    work = cite("Nobody et al. 1999", "Proceedings 1")
    assert cite("Nobody et al. 1999", "Proceedings 1") == work
    assert declared()[work] == "Proceedings 1"
    assert references([f"As in {work}."]) == "References. Nobody et al. 1999, Proceedings 1."
    assert "Nobody" not in references(["Nothing of the kind (Guo et al. 2017)."])


def test_a_work_that_appeared_in_two_places_is_an_error() -> None:
    cite("Nobody and Someone 2001", "here")
    with pytest.raises(ValueError, match="Nobody and Someone 2001.*'here'.*'there'"):
        cite("Nobody and Someone 2001", "there")


def test_the_measures_of_explanation_bring_their_works() -> None:
    assert known_works()["Petsiuk et al. 2018"] == "BMVC"
    assert known_works()["Zhang et al. 2016"] == "ECCV"
