"""A bundle of a finished run: it holds all that predicts, and nothing of where it was made."""

import getpass
import json
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from her2.cli.main import app
from her2.config.external_jobs import RefitSpec
from her2.config.jobs import EvaluateSpec
from her2.core.errors import UserError
from her2.core.files import write_json
from her2.core.stamps import read_stamp
from her2.core.tables import write_parquet
from her2.encoders.card import read_card, write_card
from her2.encoders.stage import read_encoder
from her2.frozen.bundle.asked import find_model
from her2.frozen.bundle.hashes import COST
from her2.frozen.bundle.read import read_bundle
from her2.frozen.bundle.schema import ENCODER_NAME
from her2.frozen.bundle.write import make_bundle
from her2.frozen.results import read_frozen
from her2.mil.bags import Bag
from her2.mil.refit import refit_model
from her2.storage.cache import Cache
from her2.storage.features import open_store
from tests.workflow.project import Project


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def bundle(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the documentation has it, with the word for an encoder without a licence."""
    path = tmp_path_factory.mktemp("made") / "a.bundle"
    done = command(
        "bundle", finished.folder / "results", "--task", "score", "--encoder", "tiny",
        "--head", "abmil", "--out", path, "--include-encoder", "drawn for this test",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "with the weights of its encoder" in done.output
    return path


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real cost of a hash is for tests/unit/test_bundle_hashes.py, and for the bundle above."""
    monkeypatch.setitem(COST, "n", 2)


@pytest.fixture(scope="module")
def slide(finished: Project) -> Bag:
    path = min((finished.folder / "results/features/tiny").glob("*.zarr.zip"))
    return Bag("s", "", "", open_store(path), None)


def test_it_predicts_in_an_empty_folder_as_the_results_do(
    finished: Project, bundle: Path, slide: Bag, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(bundle, moved)
    found = read_bundle(moved)
    results = finished.folder / "results"
    stamp = read_stamp(results / "stamps/evaluate/score/tiny/abmil.json")
    assert stamp is not None
    spec = EvaluateSpec.model_validate(stamp.spec)
    model = read_frozen(
        results / "evaluation/score/tiny/abmil",
        results / "models/score/tiny/abmil",
        task_name="score",
        encoder="tiny",
        head="abmil",
        section=spec.evaluation,
        threads=1,
    )
    assert len(found.model.folds) == 2
    assert found.model.thresholds == model.thresholds
    assert found.model.task == model.task
    own, expected = found.model.predict(slide), model.predict(slide)
    np.testing.assert_array_equal(own.each, expected.each)
    np.testing.assert_array_equal(own.attention, expected.attention)
    assert not (found.model.first.card.keys() - model.first.card.keys())
    folder = found.encoder_folder(tmp_path / "encoders")
    assert read_encoder(folder)[1].digest == model.first.card["encoder_digest"]


def test_it_says_what_the_run_was(finished: Project, bundle: Path) -> None:
    found = read_bundle(bundle)
    contents = found.schema
    cohort = pl.read_parquet(finished.folder / "results/cohort/slides.parquet")
    assert not contents.synthetic  # the fixture draws its slides, and gives them as a user does
    assert (found.mpp, found.size, found.tile_seed) == (1.0, 64, None)
    assert (found.tiling.min_tissue, found.tiling.min_tiles) == (0.3, 2)
    assert list(contents.groupings) == ["low vs high"]
    assert contents.development.patients == 12
    figures = pl.read_parquet(
        finished.folder / "results/evaluation/score/tiny/abmil/metrics.parquet"
    )
    auc = figures.filter(metric="auc", level="patient").row(0, named=True)
    (own,) = [
        one for one in contents.figures
        if (one.table, one.metric, one.level, one.of) == ("metrics", "auc", "patient", auc["class"])
    ]  # fmt: skip
    assert (own.value, own.low, own.high) == (auc["value"], auc["low"], auc["high"])
    assert found.trained_on(cohort["patient_id"], cohort["fingerprint"]).patients
    assert len(contents.hashes.patients) == len(contents.hashes.slides) == 12
    assert not found.trained_on(["spare"], ["0" * 64])


def test_nothing_of_where_it_was_made_is_in_it(finished: Project, bundle: Path) -> None:
    rows = [row.split(",") for row in finished.rows()]
    names = {name for row in rows for name in row[:3]}
    fingerprints = pl.read_parquet(finished.folder / "results/cohort/slides.parquet")["fingerprint"]
    private = {
        *names, *fingerprints, str(finished.folder), finished.folder.name, f"{Path.home()}/",
        f"/{getpass.getuser()}/", "/tmp/", "weights.safetensors",
    }  # fmt: skip
    for item in bundle.iterdir():
        content = item.read_bytes()
        assert not [one for one in private if one.encode() in content], item.name
        if item.suffix != ".safetensors":  # any short word is in millions of random bytes
            words = re.findall(r"[\w.-]+", content.decode())
            assert socket.gethostname() not in words
    kinds = {item.suffix for item in bundle.iterdir()}
    assert kinds == {".json", ".md", ".safetensors"}


def test_the_same_results_give_the_same_bytes(finished: Project, tmp_path: Path) -> None:
    """Also from a copy of them in another place, as one file."""
    shutil.copytree(finished.folder / "results", tmp_path / "copy", symlinks=True)
    places = (finished.folder / "results", tmp_path / "copy")
    made = [tmp_path / f"{index}.zip" for index in range(2)]
    for results, path in zip(places, made, strict=True):
        done = command("bundle", results, "--out", path, "--zip")
        assert done.exit_code == 0, done.output
        assert "without the weights of its encoder" in done.output
    assert made[0].read_bytes() == made[1].read_bytes()
    done = command("bundle", "check", made[0])
    assert "score / tiny / abmil, 4 files" in done.output
    assert ENCODER_NAME not in read_bundle(made[0]).files.sizes


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("scores", None, None), "no evaluated model is --task scores"),
        ((None, "uni2", "abmil"), "no evaluated model is --encoder uni2 --head abmil"),
    ],
)
def test_a_model_that_there_is_not_is_named_beside_those_that_there_are(
    finished: Project, names: tuple[str | None, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        find_model(finished.folder / "results", *names)
    assert "--task score --encoder tiny --head abmil" in str(caught.value)


def test_results_of_no_run_say_so(finished: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no evaluated model"):
        find_model(finished.folder, None, None, None)
    with pytest.raises(UserError, match="is no folder"):
        find_model(tmp_path / "nowhere", None, None, None)


@pytest.mark.parametrize(
    "lost",
    [
        "stamps/evaluate/score/tiny/abmil.json", "stamps/tile_bucket/64px-1mpp",
        "stamps/embed_bucket/tiny", "stamps/materialise_encoder/tiny.json",
        "encoders/tiny/weights.safetensors", "encoders/tiny/card.json", "folds/score.parquet",
        "cohort/slides.parquet", "evaluation/score/tiny/abmil/operating.parquet",
        "evaluation/score/tiny/abmil/priors.parquet", "models/score/tiny/abmil/r0f1/card.json",
    ],
)  # fmt: skip
def test_missing_results_are_named_and_nothing_is_written(
    finished: Project, tmp_path: Path, lost: str
) -> None:
    results = copied(finished, tmp_path)
    path = results / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as caught:
        make_bundle(find_model(results, None, None, None), tmp_path / "a.bundle", permitted="by me")
    assert any(part in str(caught.value) for part in (lost, str(path.parent)))
    assert not (tmp_path / "a.bundle").exists()


def test_words_that_no_bundle_can_hold_are_refused(finished: Project, tmp_path: Path) -> None:
    wanted = find_model(finished.folder / "results", None, None, None)
    with pytest.raises(UserError, match="one line") as caught:
        make_bundle(wanted, tmp_path / "a.bundle", licence="two\nlines", permitted="\x1b[31m")
    assert "--licence 'two\\nlines'" in str(caught.value)
    assert "--include-encoder '\\x1b[31m'" in str(caught.value)
    with pytest.raises(UserError, match="add --zip"):
        make_bundle(wanted, tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


def test_a_refit_that_the_run_has_not_is_named(finished: Project, tmp_path: Path) -> None:
    results = finished.folder / "results"
    done = command("bundle", results, "--out", tmp_path / "a", "--final", "refit")
    assert "refit.json" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_model_of_all_patients_is_a_bundle_of_one(finished: Project, tmp_path: Path) -> None:
    results = copied(finished, tmp_path)
    trained = read_stamp(results / "stamps/train_folds/score/tiny/abmil/r0f0-r0f1.json")
    assert trained is not None
    names = ("task", "head", "training", "buckets", "seed")
    spec = RefitSpec(**{name: trained.spec[name] for name in names}, chunks=("r0f0-r0f1",))
    models = results / "models/score/tiny/abmil"
    shutil.copytree(finished.folder / "cache", tmp_path / "cache", symlinks=True)
    refit_model(
        spec,
        Cache(tmp_path / "cache"),
        folds=results / "folds/score.parquet",
        models=models,
        features=results / "features/tiny",
        output=models / "refit.json",
    )
    wanted = find_model(results, None, None, None)
    make_bundle(wanted, tmp_path / "a", final="refit")
    found = read_bundle(tmp_path / "a")
    assert [fold.run for fold in found.model.folds] == ["refit"]
    assert found.schema.folds[0].slides["train"] == 12
    assert len(found.schema.hashes.patients) == 12
    assert "trained on all patients" in (tmp_path / "a/README.md").read_text()
    folds = make_bundle(wanted, tmp_path / "b")
    assert [fold.run for fold in folds.folds] == ["r0f0", "r0f1"]
    assert not {*folds.hashes.patients} & {*found.schema.hashes.patients}  # another salt


def edited(results: Path, rule: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what jobs of a rule were asked for, in their stamps."""
    for path in sorted((results / "stamps" / rule).rglob("*.json")):
        stamp = json.loads(path.read_text())
        change(stamp["spec"])
        path.write_text(json.dumps(stamp))


def test_slides_that_rules_drew_are_synthetic(finished: Project, tmp_path: Path) -> None:
    """Their state is in no spec (`her2.pipeline.layout.Layout.state`)."""
    results = copied(finished, tmp_path)
    edited(results, "tile_bucket", lambda spec: spec.pop("files"))
    assert make_bundle(find_model(results, None, None, None), tmp_path / "a.bundle").synthetic
    assert "**Synthetic.**" in (tmp_path / "a.bundle/README.md").read_text()


@pytest.mark.parametrize(
    ("rule", "change", "words"),
    [
        (
            "tile_bucket",
            lambda s: s.update(seed=int(s["bucket"][:4])),
            "asked for different things",
        ),
        ("tile_bucket", lambda s: s.update(version=1), "of another version of her2"),
        ("embed_bucket", lambda s: s.update(version=99), "of another version of her2"),
        ("materialise_encoder", lambda s: s.clear(), "of another version of her2"),
        ("evaluate", lambda s: s.update(unheard_of=1), "of another version of her2"),
    ],
)
def test_jobs_that_do_not_go_together_make_no_bundle(
    finished: Project, tmp_path: Path, rule: str, change: Callable[[Any], Any], words: str
) -> None:
    results = copied(finished, tmp_path)
    edited(results, rule, change)
    with pytest.raises(UserError, match=words):
        make_bundle(find_model(results, None, None, None), tmp_path / "a.bundle")


def test_what_is_left_over_from_another_manifest_does_not_count(
    finished: Project, tmp_path: Path
) -> None:
    """Jobs of other buckets leave their stamps and entries files."""
    results = copied(finished, tmp_path)
    clean = make_bundle(find_model(results, None, None, None), tmp_path / "a")
    for folder in ("stamps/tile_bucket/64px-1mpp", "stamps/embed_bucket/tiny", "features/tiny"):
        text = (results / folder / "0000-of-0002.json").read_text()
        other = text.replace("demo-", "gone-").replace("0.3", "0.9").replace("0.05", "0.9")
        assert other != text
        (results / folder / "0000-of-0009.json").write_text(other)
    again = make_bundle(find_model(results, None, None, None), tmp_path / "b")
    assert again.digest == clean.digest


@pytest.mark.parametrize(
    ("name", "after"),
    [
        (
            "folds/score.parquet",
            "train_folds/score/tiny/abmil/r0f0-r0f1, evaluate/score/tiny/abmil",
        ),
        ("features/tiny/0000-of-0002.json", "train_folds/score/tiny/abmil/r0f0-r0f1"),
        ("tiles/64px-1mpp/0000-of-0002.json", "embed_bucket/tiny/0000-of-0002"),
    ],
)
def test_a_model_that_is_older_than_what_it_was_made_from_makes_no_bundle(
    finished: Project, tmp_path: Path, name: str, after: str
) -> None:
    """Its training patients would not be in the hashes, or its tiles be found in another way."""
    results = copied(finished, tmp_path)
    if name.endswith(".json"):
        entries = json.loads((results / name).read_text())
        entries.pop(min(entries))
        write_json(results / name, entries)
    else:
        folds = pl.read_parquet(results / name)
        write_parquet(folds.filter(pl.col("patient_id") != "demo-003"), results / name)
    with pytest.raises(UserError, match="would describe another model") as caught:
        make_bundle(find_model(results, None, None, None), tmp_path / "a.bundle")
    assert f"{name} was changed after {after}" in str(caught.value)
    assert not (tmp_path / "a.bundle").exists()


def test_a_segmenter_that_was_replaced_since_makes_no_bundle(
    finished: Project, tmp_path: Path
) -> None:
    """Its tiles are those that another network chose, and the bundle would name this one."""
    results, name = copied(finished, tmp_path), "segmenters/hest/card.json"
    stamp = results / "stamps/tile_bucket/64px-1mpp/0000-of-0002.json"
    values = json.loads(stamp.read_text())
    values["read"][name] = "0" * 16  # as `test_artefact_segmenter.py` finds it there
    write_json(stamp, values)
    (results / name).parent.mkdir(parents=True)
    (results / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name} was changed after tile_bucket"):
        make_bundle(find_model(results, None, None, None), tmp_path / "a.bundle")


def test_an_encoder_that_was_replaced_since_makes_no_bundle(
    finished: Project, tmp_path: Path
) -> None:
    results = copied(finished, tmp_path)
    card = read_card(results / "encoders/tiny")
    write_card(results / "encoders/tiny", replace(card, weights_sha256="0" * 64))
    with pytest.raises(UserError, match="trained on features of"):
        make_bundle(find_model(results, None, None, None), tmp_path / "a.bundle")


def copied(finished: Project, folder: Path) -> Path:
    shutil.copytree(finished.folder / "results", folder / "results", symlinks=True)
    return folder / "results"


def test_results_that_no_bundle_can_hold_are_named(finished: Project, tmp_path: Path) -> None:
    """Here a note of two lines, which would break a table of the model card."""
    results = copied(finished, tmp_path)
    table = results / "evaluation/score/tiny/abmil/metrics.parquet"
    pl.read_parquet(table).with_columns(note=pl.lit("two\nlines")).write_parquet(table)
    with pytest.raises(UserError, match="cannot be put into a bundle") as caught:
        make_bundle(find_model(results, None, None, None), tmp_path / "a")
    assert "note: " in str(caught.value)
