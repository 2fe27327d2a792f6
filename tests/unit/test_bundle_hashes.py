"""Hashes that tell a site of its own patients, and nobody of anybody else's."""

import hashlib

import pytest

from her2.core.files import digest
from her2.frozen.bundle.hashes import COST, make_hashes, salt_of, seen
from her2.frozen.bundle.schema import Hashes

SALT = salt_of(["a", "b"], "e")


@pytest.fixture(scope="module")
def hashes() -> Hashes:
    return make_hashes(
        SALT, patients=["P-007", "042"], slides=[digest("s")], cases=["TCGA-1"],
        pretraining_slides=[digest("t")],
    )  # fmt: skip


def test_a_site_learns_which_of_its_own_were_trained_on(hashes: Hashes) -> None:
    found = seen(hashes, ["P-007", "P-008", "TCGA-1"], [digest("s"), digest("u"), digest("t")])
    assert found.patients == ("P-007",)
    assert found.slides == (digest("s"),)
    assert found.pretraining == ("TCGA-1", digest("t"))
    assert found


def test_other_patients_and_slides_are_not_known(hashes: Hashes) -> None:
    assert not seen(hashes, ["P-07", "43"], [digest("u")])


@pytest.mark.parametrize("spelling", ["p-007", "P-007 ", "42", "42.0"])
def test_another_spelling_of_an_id_is_the_same_patient(hashes: Hashes, spelling: str) -> None:
    assert seen(hashes, [spelling], []).patients == (spelling,)


@pytest.mark.parametrize("trained", ["TCGA-A1-A0SB", "TCGA-A1-A0SB-01Z-00-DX1"])
@pytest.mark.parametrize("own", ["tcga-a1-a0sb", "TCGA-A1-A0SB-01A-01-TS1.5f3e"])
def test_barcodes_of_one_patient_are_the_same_patient(trained: str, own: str) -> None:
    """`her2 predict` takes a slide's name for its patient, which is a deeper barcode."""
    assert seen(make_hashes(SALT, patients=[trained], slides=[]), [own], []).patients == (own,)
    assert not seen(make_hashes(SALT, patients=[trained], slides=[]), ["TCGA-A1-A0SC"], [])


def test_a_patient_costs_a_scrypt_of_16_megabytes(hashes: Hashes) -> None:
    own = hashlib.scrypt(b"p-007", salt=bytes.fromhex(SALT), n=2**14, r=8, p=1, dklen=16).hex()
    assert own in hashes.patients
    assert 128 * COST["n"] * COST["r"] == 16 << 20
    assert (hashes.n, hashes.r, hashes.p) == (2**14, 8, 1)


def test_the_same_models_give_the_same_hashes_and_others_do_not(hashes: Hashes) -> None:
    again = make_hashes(SALT, patients=["42", "P-007", "p-007"], slides=[digest("s")] * 2)
    assert again.patients == hashes.patients
    assert again.slides == hashes.slides
    other = make_hashes(salt_of(["a", "c"], "e"), patients=["P-007", "042"], slides=[digest("s")])
    assert not {*other.patients, *other.slides} & {*again.patients, *again.slides}


@pytest.mark.parametrize(
    "other", [(["a"], "e"), (["a", "b"], "f"), (["a", "b", "b"], "e"), ([], "e")]
)
def test_the_salt_is_that_of_the_models_and_the_encoder(other: tuple[list[str], str]) -> None:
    assert salt_of(["b", "a"], "e") == SALT
    assert salt_of(*other) != SALT


def test_neither_ids_nor_their_order_are_in_it(hashes: Hashes) -> None:
    text = hashes.model_dump_json()
    assert "P-007" not in text
    assert digest("s") not in text
    assert list(hashes.patients) == sorted(hashes.patients)
