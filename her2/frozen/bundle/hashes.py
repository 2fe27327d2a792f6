"""Salted hashes of what a model was trained on: a site can ask for its own patients, and no others.

A patient is hashed with scrypt, which is slow on purpose: `COST` takes about 40 ms and 16 MB for
one id. Who has the bundle can still try ids, one by one. Ids of six digits are a million, and take
a processor half a day; so short or consecutive ids are not hidden from somebody who wants to know
(docs/bundles.md). Fingerprints of slides are digests of their content, which nobody can guess
without the slide, so a fast keyed hash is enough for them.

The salt is the digest of the trained models and the encoder. It differs between bundles, so that
no table of hashes can be made before, and the same results give the same bytes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from her2.cohort.apart import barcode
from her2.core.files import digest
from her2.core.hardware import allowed_cpus
from her2.core.spelling import folded_id
from her2.frozen.bundle.schema import Hashes

COST = {"n": 1 << 14, "r": 8, "p": 1}
"""Cost of scrypt (N, r, p); 128 N r bytes are 16 MB."""
_BYTES = 16
_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """Those of somebody's patients and slides that a bundle was trained on.

    `patients` and `slides` trained or tuned a model, `pretraining` are patients and slides that
    its encoder was pre-trained on. Each is as it was given.
    """

    patients: tuple[str, ...]
    slides: tuple[str, ...]
    pretraining: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.patients or self.slides or self.pretraining)


def salt_of(models: Iterable[str], encoder: str) -> str:
    """Return the salt of a bundle, 64 hex digits.

    Args:
        models: SHA-256 of the weights file of each model.
        encoder: digest of the encoder.
    """
    return digest({"models": sorted(models), "encoder": encoder})


def make_hashes(
    salt: str,
    *,
    patients: Iterable[str],
    slides: Iterable[str],
    cases: Iterable[str] = (),
    pretraining_slides: Iterable[str] = (),
) -> Hashes:
    """Return the hashes of ids and fingerprints; equal ones count once.

    Args:
        salt: by `salt_of`.
        patients: ids of the patients that trained or tuned a model.
        slides: fingerprints of their slides.
        cases: ids of the cases that the encoder was pre-trained on.
        pretraining_slides: fingerprints of the slides that those patches come from.
    """
    blank = Hashes(
        salt=salt, **COST, patients=(), slides=(), pretraining_cases=(), pretraining_slides=()
    )
    return blank.model_copy(
        update={
            "patients": tuple(sorted(set(_patients(blank, list(patients))))),
            "slides": tuple(sorted({_slide(blank, one) for one in slides})),
            "pretraining_cases": tuple(sorted(set(_patients(blank, list(cases))))),
            "pretraining_slides": tuple(sorted({_slide(blank, one) for one in pretraining_slides})),
        }
    )


def seen(hashes: Hashes, patients: Iterable[str], fingerprints: Iterable[str]) -> Seen:
    """Return which patients and slides a bundle was trained on.

    Spellings of an id that a person would take for the same are the same
    (`her2.core.spelling.folded_id`), and so are TCGA barcodes of one patient.

    Args:
        hashes: those of the bundle.
        patients: ids of patients; each takes the time of one scrypt.
        fingerprints: fingerprints of slides (`her2.slides.fingerprint`).
    """
    ids, contents = list(dict.fromkeys(patients)), list(dict.fromkeys(fingerprints))
    by_id = dict(zip(ids, _patients(hashes, ids), strict=True))
    by_content = {one: _slide(hashes, one) for one in contents}
    trained, tiles = set(hashes.patients), set(hashes.slides)
    before = {*hashes.pretraining_cases, *hashes.pretraining_slides}
    return Seen(
        tuple(one for one, own in by_id.items() if own in trained),
        tuple(one for one, own in by_content.items() if own in tiles),
        tuple(one for one, own in {**by_id, **by_content}.items() if own in before),
    )


def _patients(hashes: Hashes, ids: Sequence[str]) -> list[str]:
    """Return the hash of each id; scrypt lets other threads run.

    Of a TCGA barcode it is that of the patient, since a slide's file is named by a deeper one.
    """

    def one(patient: str) -> str:
        return hashlib.scrypt(
            folded_id(barcode(patient) or patient).encode(),
            salt=bytes.fromhex(hashes.salt),
            n=hashes.n,
            r=hashes.r,
            p=hashes.p,
            maxmem=_MEMORY_BYTES,
            dklen=_BYTES,
        ).hex()

    with ThreadPoolExecutor(allowed_cpus()) as pool:
        return list(pool.map(one, ids))


def _slide(hashes: Hashes, fingerprint: str) -> str:
    key = bytes.fromhex(hashes.salt)
    return hashlib.blake2b(fingerprint.encode(), key=key, digest_size=_BYTES).hexdigest()
