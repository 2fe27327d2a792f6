"""Labels and ids as people write them: what is unambiguous is read, and nothing is guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2.config import NAME_PATTERN
from her2.importing.labels import her2_score, her2_status, legal_id, legal_ids, status_of


@pytest.mark.parametrize(
    ("text", "score", "status"),
    [
        ("0", "0", ""), ("1", "1+", ""), ("2 +", "2+", ""), ("2.0", "2+", ""),
        ("Score 1", "1+", ""), ("IHC: 3+", "3+", ""), ("+++", "3+", ""), ("HER2/neu 1+", "1+", ""),
        ("HER2 2+ (FISH neg)", "2+", "negative"), ("2+ ISH positiv", "2+", "positive"),
        ("2+, FISH: not amplified", "2+", "negative"), ("FISH: nicht amplifiziert", "", "negative"),
        ("FISH non amplifié", "", "negative"), ("não amplificado", "", "negative"),
        ("IHC 2+ / FISH amplified", "2+", "positive"), ("2+(FISH-)", "2+", "negative"),
        ("2+ FISH +", "2+", "positive"), ("ISH-positiv", "", "positive"),
        ("2+ ISH non-amplified (ratio 1.3)", "2+", "negative"), ("2+ (FISH 2.3)", "2+", ""),
        ("2+ FISH equivocal", "2+", ""), ("2+ FISH fehlt", "2+", ""), ("IHC 3+ (90 %)", "3+", ""),
        ("negativ", "", "negative"), ("négatif", "", "negative"),
        ("HER2 3+ positiv", "3+", "positive"), ("positive (3+)", "3+", "positive"),
        ("3+ (FISH nicht nötig)", "3+", ""), ("FISH neg. HER2 3+", "3+", "negative"),
    ],
)  # fmt: skip
def test_what_is_unambiguous_is_read(text, score, status):
    assert (her2_score(text), her2_status(text)) == (score, status)


@pytest.mark.parametrize(
    "text",
    ["", "NA", "[Not Available]", "HER2-low", "1+ a 2+", "1+/2+", "1-2+", "0-1+", "4+", "10", "1.5",
     "H2301234", "Equivocal", "low", "2+ or 3+", "+", "3+?", "2+ → 3+", "1+ (später 3+)",
     "1+ (Zweitbefund 2+)", "HER2 low (1+)", "equivocal (2+)", "pos (ER 3+)", "not (3+)", "10 %",
     "focal 3+", "FISH ratio 2.3", "2,50", "ER positive", "triple negative", "positive?",
     "vermutlich positiv", "prob. neg", "neg, FISH pending", "FISH negativ, später positiv",
     "HER2 negative, FISH positive", "2+, FISH pos?"],
)  # fmt: skip
def test_what_is_ambiguous_stays_empty(text):
    assert (her2_score(text), her2_status(text)) == ("", "")


@pytest.mark.parametrize("text", ["no amplification", "not positive", "pas négatif", "neg / pos"])
def test_a_status_that_is_denied_is_none(text):
    assert her2_status(text) == ""


@pytest.mark.parametrize(
    ("score", "fish", "status"),
    [("0", "positive", "negative"), ("1+", "", "negative"), ("2+", "", ""),
     ("2+", "positive", "positive"), ("2+", "negative", "negative"), ("3+", "negative", "positive"),
     ("", "positive", "")],
)  # fmt: skip
def test_hybridisation_decides_where_the_score_does_not(score, fish, status):
    assert status_of(score, fish) == status


def test_umlauts_are_spelt_out_and_other_signs_become_dashes():
    assert legal_id(" H2301234 Ä1 HE ") == "H2301234-Ae1-HE"
    assert legal_id("Straße/7 (2)") == "Strasse-7-2"
    assert legal_id("???") == ""


@given(st.text())
def test_an_id_is_legal_or_empty(text):
    import re

    found = legal_id(text)
    assert not found or re.fullmatch(NAME_PATTERN, found)
    assert legal_id(found) == found


def test_texts_that_become_one_id_are_told():
    assert legal_ids(["a b", "a-b", "A_B", "c"])[1] == {"a-b": ["a b", "a-b"]}
