"""A bundle predicts as its results do, with the encoder that it names and no other."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import numpy as np
import pytest
import safetensors.torch
import torch

from her2.config import EncoderSection, TilingSection
from her2.config.catalogue import row
from her2.core.errors import UserError
from her2.core.files import digest, file_digest
from her2.encoders.card import CARD_NAME, WEIGHTS_NAME, read_card
from her2.encoders.stage import read_encoder
from her2.evaluation.temperature import scale
from her2.frozen.bundle.read import Bundle, check_encoder, read_bundle
from her2.frozen.bundle.schema import ENCODER_NAME
from her2.mil.losses import output_count
from her2.mil.model import Model, predict
from her2.mil.priors import with_shares
from tests.unit.bag_makers import bag
from tests.unit.bundle_makers import HEAD, PATIENTS, RANDOM, Parts, features, parts
from tests.unit.products import materialise


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def folder(made: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write(tmp_path_factory.mktemp("bundles") / "a.bundle")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return read_bundle(folder)


@pytest.fixture(scope="module")
def without(made: Parts, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same, of an encoder that nobody publishes and that is not in it."""
    own = made.with_encoder(source="checkpoint", included=False, why="no licence is stated")
    return read_bundle(own.write(tmp_path_factory.mktemp("bundles") / "b.bundle"))


# The model


@pytest.mark.parametrize("zipped", [False, True])
def test_it_predicts_as_its_models_do(made: Parts, tmp_path: Path, zipped: bool) -> None:
    path = made.write(tmp_path / "moved", zipped=zipped)
    found = read_bundle(path)
    slide = bag("s", features(made.body.encoder.dimension), None)
    each = []
    for fold in made.body.folds:
        blank = torch.zeros(fold.dimension)
        model = Model(HEAD.build(fold.dimension, output_count(fold.loss, 2)), blank, blank + 1)
        model.load_state_dict(safetensors.torch.load_file(made.weights[fold.weights]))
        own = np.asarray(predict(model, slide).probabilities[None], np.float64)
        corrected = with_shares(own, np.asarray(fold.share), np.asarray(fold.seen))
        each.append(scale(corrected, fold.temperature)[0])
    prediction = found.model.predict(slide)
    np.testing.assert_array_equal(prediction.each, each)
    np.testing.assert_array_equal(prediction.probabilities, np.mean(each, axis=0))


def test_it_says_what_a_slide_needs(made: Parts, bundle: Bundle) -> None:
    assert bundle.name == "score / tiny / abmil"
    assert (bundle.mpp, bundle.size, bundle.tile_seed) == (1.0, 160, 7)
    assert bundle.tiling == TilingSection(max_tiles=50)
    assert bundle.max_failed_tiles == 0.05
    assert bundle.development == made.body.development
    assert [one.asked for one in bundle.model.thresholds] == [0.9]
    assert bundle.model.first.card["encoder_digest"] == made.body.encoder.digest
    assert bundle.model.first.card["tiles"] == {"mpp": 1.0, "px": 160}
    assert bundle.model.first.task.class_names == ("low", "high")
    assert bundle.model.first.head == HEAD


def test_it_knows_the_slides_it_was_trained_on(bundle: Bundle) -> None:
    found = bundle.trained_on([PATIENTS[0], "somebody"], [digest(PATIENTS[1]), digest("x")])
    assert found.patients == PATIENTS[:1]
    assert found.slides == (digest(PATIENTS[1]),)


@pytest.mark.parametrize("kind", ["pickle", "zip of pickle", "text"])
def test_weights_that_are_no_safetensors_are_never_run(
    made: Parts, tmp_path: Path, kind: str
) -> None:
    """Even if their digest is the stated one."""
    evil = tmp_path / "evil"
    if kind == "text":
        evil.write_text("import os")
    else:
        torch.save({"a": torch.zeros(1)}, evil, _use_new_zipfile_serialization=kind != "pickle")
    own = Parts(made.body, {**made.weights, "r0f1.safetensors": evil}, made.encoder)
    with pytest.raises(UserError, match=r"r0f1.safetensors is not the model"):
        read_bundle(own.write(tmp_path / "a.bundle"))


# The encoder


@pytest.mark.parametrize("zipped", [False, True])
def test_the_encoder_in_a_bundle_is_a_folder_that_can_embed(
    made: Parts, tmp_path: Path, zipped: bool
) -> None:
    path = made.write(tmp_path / "a.bundle", zipped=zipped)
    found = read_bundle(path)
    into = tmp_path / "encoders"
    folder = found.encoder_folder(into)
    assert read_encoder(folder)[1] == read_card(made.encoder)
    times = {item: item.stat().st_mtime_ns for item in folder.iterdir()}
    assert found.encoder_folder(into) == folder
    assert {item: item.stat().st_mtime_ns for item in folder.iterdir()} == times


def test_the_encoder_in_a_bundle_has_the_stated_weights(
    made: Parts, bundle: Bundle, tmp_path: Path
) -> None:
    """Also where somebody has sealed other weights in."""
    check_encoder(bundle)
    materialise(RANDOM, 4, _folder(tmp_path / "other"))
    own = Parts(
        made.body, {**made.weights, ENCODER_NAME: tmp_path / "other" / WEIGHTS_NAME}, made.encoder
    )
    found = read_bundle(own.write(tmp_path / "a.bundle"))
    with pytest.raises(UserError, match=made.body.encoder.weights_sha256):
        check_encoder(found)
    folder = found.encoder_folder(tmp_path / "into")
    with pytest.raises(UserError, match="other weights than its card says"):
        read_encoder(folder)


def test_two_uses_of_the_same_weights_have_folders_of_their_own(
    made: Parts, bundle: Bundle, tmp_path: Path
) -> None:
    other = made.with_encoder(storage="float32").write(tmp_path / "b.bundle")
    one, two = (found.encoder_folder(tmp_path) for found in (bundle, read_bundle(other)))
    assert read_card(one).digest == read_card(two).digest
    assert [read_card(path).storage for path in (one, two)] == ["float16", "float32"]


@pytest.mark.parametrize("what", ["folder", "weights"])
def test_an_encoder_that_is_given_serves_if_it_is_the_same(
    without: Bundle, made: Parts, tmp_path: Path, what: str
) -> None:
    given = made.encoder
    if what == "weights":
        given = tmp_path / "mine.safetensors"
        shutil.copyfile(made.encoder / WEIGHTS_NAME, given)
    folder = without.encoder_folder(tmp_path / "into", given=given)
    _, card = read_encoder(folder)
    assert card.digest == without.schema.encoder.digest
    assert card.source == "checkpoint"


@pytest.mark.parametrize("what", ["folder", "weights"])
def test_other_weights_are_refused_with_both_digests(
    without: Bundle, tmp_path: Path, what: str
) -> None:
    (tmp_path / "other").mkdir()
    card = materialise(RANDOM, 4, tmp_path / "other")
    given = tmp_path / "other" / ("" if what == "folder" else WEIGHTS_NAME)
    with pytest.raises(UserError) as caught:
        without.encoder_folder(tmp_path / "into", given=given)
    assert without.schema.encoder.digest in str(caught.value)
    assert card.digest in str(caught.value)
    assert str(given) in str(caught.value)
    assert not any((tmp_path / "into").iterdir())


def test_a_folder_whose_weights_are_not_those_of_its_card_is_refused(
    without: Bundle, made: Parts, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    shutil.copytree(made.encoder, given)
    state = safetensors.torch.load_file(given / WEIGHTS_NAME)
    name = next(iter(state))
    state[name] = state[name] + 1
    safetensors.torch.save_file(state, given / WEIGHTS_NAME)
    with pytest.raises(UserError, match="holds other weights than its card says"):
        without.encoder_folder(tmp_path / "into", given=given)
    assert not any((tmp_path / "into").iterdir())


def test_an_encoder_of_nobody_else_has_to_be_given(without: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        without.encoder_folder(tmp_path)
    said = str(caught.value)
    assert "has no weights of its encoder tiny" in said
    assert "no licence is stated" in said
    assert "--encoder PATH" in said
    assert without.schema.encoder.digest in said


def _of_row(made: Parts, name: str, **changed: Any) -> Parts:
    """A bundle whose encoder is said to be a row of the catalogue, with the bits of a tiny one."""
    entry = row(name)
    values = {
        "source": "catalogue", "model": name, "licence": entry.licence, "included": False,
        "why": "access must be asked for", "revision": "abc123", **changed,
    }  # fmt: skip
    return made.with_encoder(**values)


def test_a_gated_encoder_that_is_absent_says_what_to_do(
    made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_bundle(_of_row(made, "uni2-h").write(tmp_path / "a.bundle"))
    asked = []

    def gated(hub: str, file: str, revision: str | None = None) -> str:
        asked.append((hub, file, revision))
        raise huggingface_hub.errors.GatedRepoError.__new__(huggingface_hub.errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gated)
    with pytest.raises(UserError) as caught:
        found.encoder_folder(tmp_path / "into")
    said = str(caught.value)
    for words in ("Request it at https://huggingface.co/MahmoodLab/UNI2-h", "hf auth login",
                  "--encoder PATH", found.schema.encoder.digest, str(found.path)):  # fmt: skip
        assert words in said
    assert asked == [("MahmoodLab/UNI2-h", "pytorch_model.bin", "abc123")]
    assert not any((tmp_path / "into").iterdir())


def test_fetched_weights_with_other_bits_are_refused_with_both_digests(
    made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the authors have replaced their file."""
    found = read_bundle(_of_row(made, "lunit-vits16").write(tmp_path / "a.bundle"))
    other = materialise(RANDOM, 4, _folder(tmp_path / "other"))
    (tmp_path / "file").write_bytes(b"a later file than that which the catalogue pins")
    sections = []

    def made_of(spec: Any, output: Path) -> Any:
        sections.append(spec.encoder)
        return other

    monkeypatch.setattr("her2.frozen.bundle.read.fetch", lambda *_, **__: tmp_path / "file")
    monkeypatch.setattr("her2.frozen.bundle.read.materialise_encoder", made_of)
    with pytest.raises(UserError) as caught:
        found.encoder_folder(tmp_path / "into")
    assert other.digest in str(caught.value)
    assert found.schema.encoder.digest in str(caught.value)
    # The bundle's digest decides, not the pin of this version's row.
    assert sections[0].sha256 == file_digest(tmp_path / "file")


def test_fetched_weights_with_the_same_bits_serve(
    made: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a library are fetched by building it; here it has the random weights of a seed."""
    found = read_bundle(
        made.with_encoder(source="timm", included=False, licence="cc-by-nc-4.0").write(
            tmp_path / "a.bundle"
        )
    )
    specs = []

    def published(spec: Any, output: Path) -> Any:
        specs.append(spec.encoder)
        return materialise(RANDOM, 3, output)

    monkeypatch.setattr("her2.frozen.bundle.read.materialise_encoder", published)
    folder = found.encoder_folder(tmp_path / "into")
    assert read_encoder(folder)[1].source == "timm"
    (asked,) = specs
    assert isinstance(asked, EncoderSection)
    assert (asked.source, asked.model, asked.size) == ("timm", "timm/test_vit", 160)


def test_a_row_that_this_version_lacks_is_named(made: Parts, tmp_path: Path) -> None:
    own = _of_row(made, "uni2-h", model="uni9-x").write(tmp_path / "a.bundle")
    with pytest.raises(UserError, match=r"no 'uni9-x'") as caught:
        read_bundle(own).encoder_folder(tmp_path / "into")
    assert "--encoder PATH" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"architecture": "not_in_timm"}, "not_in_timm"),
        ({"library": "nolib"}, "nolib"),
        ({"arguments": {"act_layer": "os.system"}}, "is not a supported layer"),
        ({"arguments": {"unheard_of": 3}}, "describes no encoder"),
    ],
)
def test_an_encoder_that_no_library_has_is_refused(
    made: Parts, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    found = read_bundle(made.with_encoder(**changed).write(tmp_path / "a.bundle"))
    with pytest.raises(UserError, match=words):
        read_encoder(found.encoder_folder(tmp_path / "into"))


def test_a_card_that_is_edited_in_the_folder_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.encoder_folder(tmp_path)
    card = json.loads((folder / CARD_NAME).read_text())
    (folder / CARD_NAME).unlink()
    (folder / CARD_NAME).write_text(json.dumps({**card, "mean": [0.1, 0.1, 0.1]}))
    with pytest.raises(UserError, match="was edited"):
        bundle.encoder_folder(tmp_path)


def test_a_bundle_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "empty" / "b"
    shutil.copytree(folder, moved)
    found = read_bundle(moved)
    assert (moved / ENCODER_NAME).exists()
    assert {one.saved.folder.parent for one in found.model.folds} == {moved}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
