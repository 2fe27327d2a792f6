"""`her2 predict --bundle`: the command, from a bundle and a real SVS to the table."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from her2.cli.main import app
from her2.config.jobs import VERSIONS
from her2.core.errors import UserError
from her2.core.files import digest
from her2.frozen.bundle.hashes import make_hashes, salt_of
from her2.frozen.bundle.read import read_bundle
from her2.mil.bags import Bag
from her2.prediction.development import OTHER_STAGES, SYNTHETIC, tissue_cautions
from her2.prediction.predict import PATIENT_TRAINED_ON, PRETRAINED_ON, SLIDE_TRAINED_ON
from her2.slides.fingerprint import fingerprint
from her2.storage.features import open_store
from tests.unit.bundle_makers import Parts, parts
from tests.unit.tile_makers import slide_facts

pytestmark = pytest.mark.usefixtures("one_thread")

LENIENT = {
    "options": {"min_tiles": 1, "min_tissue": 0.1}, "seed": None, "max_failed_tiles": 0.0,
    "tissue": {"detected": 3}, "annotated": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """What a bundle is written from; its tiling keeps the few tiles of the drawn slide."""
    return parts(tmp_path_factory.mktemp("parts")).with_body(tiling=LENIENT)


@pytest.fixture(scope="module")
def bundle(made: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write(tmp_path_factory.mktemp("bundle") / "her2.bundle")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def predicted(bundle: Path, cache: Path | None, out: Path, *arguments: object) -> Result:
    """Call the command line, and return what it did."""
    given = ["predict", "--bundle", bundle, "--out", out, *arguments]
    given += ["--cache", cache] if cache else []
    return CliRunner().invoke(app, [str(one) for one in given], env={"HER2_CACHE": ""})


def slide_row(out: Path) -> dict[str, Any]:
    return pl.read_csv(out).filter(level="slide").row(0, named=True)


def test_a_slide_becomes_a_row_of_what_the_bundle_says(
    bundle: Path, cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    done = predicted(bundle, cache, tmp_path / "out.csv", drawn_slide, "--threads", 1)
    assert done.exit_code == 0, done.output
    row = slide_row(tmp_path / "out.csv")
    opened = read_bundle(bundle)
    (store,) = (cache / "features").rglob("*.zarr.zip")
    expected = opened.model.predict(Bag("drawn", "", "", open_store(store), None))
    np.testing.assert_allclose(row["prob_high"], expected.probabilities[1], rtol=1e-9)
    assert row["models"] == 2
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["model"]["bundle"] == opened.schema.digest
    assert "slides: 1; model: score / tiny / abmil; cache:" in done.output
    assert "slides predicted: 1 of 1" in done.output


def test_a_bundle_that_was_moved_or_zipped_predicts_the_same_digits(
    made: Parts, bundle: Path, cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    """Without results, and without the cache that it was first used with."""
    assert predicted(bundle, cache, tmp_path / "a.csv", drawn_slide).exit_code == 0
    shutil.copytree(bundle, tmp_path / "moved")
    zipped = made.write(tmp_path / "her2.zip", zipped=True)
    for name, one in (("b", tmp_path / "moved"), ("c", zipped)):
        assert predicted(one, tmp_path / name, tmp_path / f"{name}.csv", drawn_slide).exit_code == 0
        assert (tmp_path / f"{name}.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_without_a_cache_it_is_beside_the_table(
    bundle: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    done = predicted(bundle, None, tmp_path / "new" / "out.csv", drawn_slide)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "new" / "her2-cache" / "features").rglob("*.zarr.zip"))
    assert f"cache: {tmp_path / 'new' / 'her2-cache'}" in done.output


def test_a_slide_of_the_training_data_is_said_to_be_one(
    made: Parts, cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    """Its content tells it, whatever the file and the patient are called; so does the patient."""
    salt = salt_of(["w"], made.body.encoder.digest)
    of_content = make_hashes(salt, patients=["x"], slides=[fingerprint(drawn_slide)])
    of_patient = make_hashes(salt, patients=["Drawn"], slides=[digest("y")], cases=["drawn"])
    found = []
    for number, hashes in enumerate((of_content, of_patient)):
        one = made.with_body(hashes=hashes).write(tmp_path / f"{number}.bundle")
        assert predicted(one, cache, tmp_path / "out.csv", drawn_slide).exit_code == 0
        found.append(str(slide_row(tmp_path / "out.csv")["cautions"]))
    assert SLIDE_TRAINED_ON in found[0]
    assert PATIENT_TRAINED_ON not in found[0]
    assert PRETRAINED_ON not in found[0]
    assert SLIDE_TRAINED_ON not in found[1]
    assert PATIENT_TRAINED_ON in found[1]
    assert PRETRAINED_ON in found[1]


def test_a_slide_outside_of_the_development_is_said_to_be_one(
    bundle: Path, cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    """A slide at twice the um/px lies outside, and its percentile says so."""
    (tmp_path / "slides.csv").write_text(f"slide_id,path,mpp\ns,{drawn_slide},1.0\n")
    done = predicted(bundle, cache, tmp_path / "out.csv", tmp_path / "slides.csv")
    assert done.exit_code == 0, done.output
    row = slide_row(tmp_path / "out.csv")
    assert "um/px" in str(row["cautions"])
    assert row["percentile_mpp"] == 100.0


def test_an_encoder_that_the_bundle_lacks_can_be_given(
    made: Parts, cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    lacking = made.with_encoder(included=False, why="its licence").write(tmp_path / "her2.bundle")
    out = tmp_path / "out.csv"
    done = predicted(lacking, tmp_path / "empty", out, drawn_slide)
    assert isinstance(done.exception, UserError)
    assert "--encoder" in str(done.exception)
    assert not out.exists()
    done = predicted(lacking, tmp_path / "empty", out, drawn_slide, "--encoder", made.encoder)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("kind", ["absent", "text", "results"])
def test_what_is_no_bundle_is_refused(
    kind: str, cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    if kind == "text":
        given.write_text("hello")
    elif kind == "results":
        (given / "models").mkdir(parents=True)
    done = predicted(given, cache, tmp_path / "out.csv", drawn_slide)
    assert isinstance(done.exception, UserError)
    assert str(given) in str(done.exception)
    assert not (tmp_path / "out.csv").exists()


def test_no_usable_slide_is_a_failure_with_the_table(
    bundle: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.svs").write_text("no slide")
    done = predicted(bundle, cache, tmp_path / "out.csv", tmp_path / "a.svs")
    assert done.exit_code == 1
    assert isinstance(done.exception, UserError)
    assert slide_row(tmp_path / "out.csv")["status"] == "failed"


def test_the_challenges_table_is_written(
    bundle: Path, cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    (tmp_path / "slides.csv").write_text(f"slide_id,path,patient_id\ns,{drawn_slide},7\n")
    done = predicted(
        bundle, cache, tmp_path / "out.csv", tmp_path / "slides.csv", "--format", "herohe"
    )
    assert done.exit_code == 0, done.output
    head, row = (tmp_path / "out.csv").read_text().split()
    assert head == "caseID,soft_prediction,hard_prediction"
    case, soft, hard = row.split(",")
    assert case == "7"
    assert hard == str(int(float(soft) >= 0.5))


def test_a_model_of_drawn_slides_or_of_other_stages_says_so_of_every_slide(
    made: Parts, cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    software = {**made.body.software.model_dump(), "stages": {"tile": 1, "embed": 2, "train": 3}}
    current = {**software, "stages": dict(VERSIONS)}
    found = []
    for number, (synthetic, one) in enumerate(((True, current), (False, software))):
        bundle = made.with_body(synthetic=synthetic, software=one).write(tmp_path / f"{number}")
        assert predicted(bundle, cache, tmp_path / "out.csv", drawn_slide).exit_code == 0
        found.append(str(slide_row(tmp_path / "out.csv")["cautions"]))
    assert [SYNTHETIC in one for one in found] == [True, False]
    assert [OTHER_STAGES in one for one in found] == [False, True]


@pytest.mark.parametrize(
    ("tissue", "annotated", "source", "regions", "words"),
    [
        ({"detected": 3}, 0, "detected", None, []),
        ({"detected": 2, "mask file": 1}, 1, "mask file", 4, []),
        ({"detected": 2, "mask file": 1}, 1, "detected", None, []),
        ({"detected": 3}, 0, "mask file", None, ["another source (mask file) than that of all"]),
        ({"detected": 3}, 3, "detected", None, ["from all of its tissue, in development"]),
        ({"detected": 3}, 0, "detected", 4, ["from drawn regions, in development"]),
        ({}, 0, "mask file", 4, []),
    ],
)  # fmt: skip
def test_tissue_that_was_chosen_in_another_way_is_said_to_be(
    made: Parts,
    tissue: dict[str, int],
    annotated: int,
    source: str,
    regions: int | None,
    words: list[str],
) -> None:
    tiling = made.body.tiling.model_copy(update={"tissue": tissue, "annotated": annotated})
    facts = slide_facts(tissue_source=source, regions=regions)
    found = list(tissue_cautions(tiling, facts))
    assert len(found) == len(words)
    for one, part in zip(found, words, strict=True):
        assert part in one
