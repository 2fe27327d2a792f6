"""Bundles of tiles that segmenters chose: they name the weights and accept no others."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn
from typer.testing import CliRunner, Result

from her2.cli.main import app
from her2.config import TilingSection
from her2.config.jobs import SegmenterSpec
from her2.core.errors import UserError
from her2.frozen.bundle.read import Bundle, read_bundle
from her2.frozen.bundle.schema import SegmenterFacts
from her2.frozen.bundle.seal import parse_contents
from her2.frozen.bundle.segmenters import segmenter_facts
from her2.prediction.of_bundle import SEGMENTERS
from her2.segmenters.base import ArtefactSegmenter, Segmenter
from her2.storage.cache import Cache
from her2.storage.tiles import read_table
from her2.tiling.segmenter import fetch_segmenter
from her2.tiling.segmenter_card import SegmenterCard, read_segmenter_card
from tests.unit import test_artefact_segmenters as of_artefacts
from tests.unit import test_segmenters as of_tissue
from tests.unit.bundle_makers import Parts, edit, parts
from tests.unit.segmenter_makers import offline, put

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = (of_tissue.small(), of_artefacts.small())


@dataclass(frozen=True)
class Case:
    """A segmenter of two layers in the place of a published one, and results that used it."""

    one: Segmenter
    root: Path

    @property
    def options(self) -> dict[str, Any]:
        """Return what the config says of it; every artefact is only measured."""
        if isinstance(self.one, ArtefactSegmenter):
            limits = {artefact.short: 1.0 for artefact in self.one.artefacts}
            return {self.one.key: self.one.name, "artefact_limits": limits}
        return {self.one.key: self.one.name}

    @property
    def folder(self) -> Path:
        """Return where the job has put the weights."""
        return self.root / "results" / "segmenters" / self.one.folder

    @property
    def file(self) -> Path:
        """Return the file that the job read."""
        return self.root / f"{self.one.folder}.ckpt"

    def fetch(self, file: Path, folder: Path) -> SegmenterCard:
        """Run the job."""
        artefacts = isinstance(self.one, ArtefactSegmenter)
        spec = SegmenterSpec(segmenter=self.one.name, artefacts=artefacts, weights=file)
        return fetch_segmenter(spec, folder)

    def other_network(self) -> nn.Module:
        """Return the network with one weight that is another."""
        network = self.one.build()
        with torch.no_grad():
            list(network.parameters())[-1].add_(0.25)
        return network


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Return both segmenters, fetched by the jobs of a run; there is no network any more."""
    offline(monkeypatch)
    found = []
    for one in BOTH:
        put(monkeypatch, one)
        case = Case(one, tmp_path)
        torch.save(one.build().state_dict(), case.file)
        case.fetch(case.file, case.folder)
        found.append(case)
    return found


@pytest.fixture(params=BOTH, ids=[one.key for one in BOTH])
def case(request: pytest.FixtureRequest, cases: list[Case]) -> Case:
    return next(case for case in cases if case.one is request.param)


def write(made: Parts, *cases: Case) -> Bundle:
    options = {"min_tiles": 1, "min_tissue": 0.1}
    for case in cases:
        options |= case.options
    section, root = TilingSection.model_validate(options), cases[0].root
    facts = segmenter_facts(root / "results", section)
    tissue = [f"segmenter {one.name}, weights {one.weights_sha256[:12]}"
              for one in facts if one.key == "segmenter"]  # fmt: skip
    tiling = {
        "options": section, "seed": None, "max_failed_tiles": 0.0, "annotated": 0,
        "tissue": dict.fromkeys(tissue or ["detected"], 3), "segmenters": facts,
    }  # fmt: skip
    return read_bundle(made.with_body(tiling=tiling).write(root / "her2.bundle"))


@pytest.fixture
def bundle(made: Parts, case: Case) -> Bundle:
    return write(made, case)


def facts_of(bundle: Bundle) -> SegmenterFacts:
    (facts,) = bundle.schema.tiling.segmenters
    return facts


def predicted(bundle: Path, out: Path, *arguments: object) -> Result:
    given = ["predict", "--bundle", bundle, "--out", out, "--cache", out.parent / "cache"]
    return CliRunner().invoke(app, [str(one) for one in (*given, *arguments)])


def error_of(done: Result) -> str:
    assert isinstance(done.exception, UserError), done.output
    return str(done.exception)


def test_a_bundle_says_which_weights_chose_the_tiles_and_has_none(
    bundle: Bundle, case: Case
) -> None:
    facts, card = facts_of(bundle), read_segmenter_card(case.folder, case.one)
    assert (facts.key, facts.name, facts.licence) == (case.one.key, case.one.name, card.licence)
    assert facts.weights_sha256 == card.weights_sha256
    readme = (bundle.path / "README.md").read_text()
    said = f"the {case.one.kind} {case.one.name}. Its weights ({card.licence}) are not here"
    assert said in " ".join(readme.split())
    assert f"`{case.one.flag} PATH`" in readme
    assert not [path for path in bundle.path.iterdir() if "seg" in path.name]


def test_a_bundle_of_no_segmenter_says_nothing_of_one(made: Parts, tmp_path: Path) -> None:
    found = read_bundle(made.write(tmp_path / "a.bundle"))
    values = json.loads((found.path / "bundle.json").read_text())
    assert "segmenters" not in values["tiling"]
    assert segmenter_facts(tmp_path, TilingSection()) == ()
    assert found.segmenter_folders(tmp_path) == {}
    assert "--segmenter" not in (found.path / "README.md").read_text()


def test_options_for_segmenters_that_a_bundle_does_not_name_are_named_together(
    made: Parts, drawn_slide: Path, tmp_path: Path
) -> None:
    path = made.write(tmp_path / "a.bundle")
    given = ("--segmenter", tmp_path / "a", "--artefact-segmenter", tmp_path / "b")
    said = error_of(predicted(path, tmp_path / "out.csv", drawn_slide, *given))
    assert "leave them out" in said
    assert f"--segmenter {tmp_path / 'a'}" in said
    assert f"--artefact-segmenter {tmp_path / 'b'}" in said


@pytest.mark.parametrize("known", [True, False])
def test_a_segmenter_and_its_weights_are_named_together(
    made: Parts, case: Case, known: bool
) -> None:
    facts = SegmenterFacts(
        key=case.one.key, name=case.one.name, architecture="", licence="",
        weights_sha256="0" * 64, digest="1" * 64,
    )  # fmt: skip
    tiling = made.body.tiling.model_dump()
    options = TilingSection.model_validate(case.options)
    tiling |= {"segmenters": [facts]} if known else {"options": options}
    with pytest.raises(ValidationError, match=f"segmenters .*{case.one.key} {case.one.name}"):
        made.with_body(tiling=tiling)


def test_without_a_network_the_error_names_segmenter_digest_and_option(
    bundle: Bundle, case: Case, drawn_slide: Path, tmp_path: Path
) -> None:
    said = error_of(predicted(bundle.path, tmp_path / "out.csv", drawn_slide))
    for words in (str(bundle.path), f"the {case.one.kind} {case.one.name}",
                  "Name or service not known", f"{case.one.flag} PATH",
                  facts_of(bundle).weights_sha256,
                  f"results/segmenters/{case.one.folder}"):  # fmt: skip
        assert words in said
    assert not (tmp_path / "out.csv").exists()
    assert not list((tmp_path / "cache" / SEGMENTERS).glob("*/*"))


def test_segmenters_that_cannot_be_had_are_named_together(
    made: Parts, cases: list[Case], drawn_slide: Path, tmp_path: Path
) -> None:
    said = error_of(predicted(write(made, *cases).path, tmp_path / "out.csv", drawn_slide))
    assert "--segmenter PATH" in said
    assert "--artefact-segmenter PATH" in said


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_given_weights_predict_and_serve_the_next_call_from_the_cache(
    made: Parts, cases: list[Case], drawn_slide: Path, tmp_path: Path, kind: str
) -> None:
    bundle, out = write(made, *cases), tmp_path / "out.csv"
    given = [(case.one.flag, case.folder if kind == "folder" else case.file) for case in cases]
    done = predicted(bundle.path, out, drawn_slide, *(word for pair in given for word in pair))
    assert done.exit_code == 0, done.output
    (row,) = pl.read_csv(out).filter(level="slide").iter_rows(named=True)
    assert row["status"] == "ok"
    assert "source" not in row["cautions"]
    (product,) = (one for one in Cache(tmp_path / "cache").products() if one.kind == "tiles")
    tiled = read_table(product.path, product.key).facts
    found = [f"segmenter {one.name}, weights {one.weights_sha256[:12]}"
             for one in bundle.schema.tiling.segmenters]  # fmt: skip
    assert [tiled.tissue_source, tiled.artefact_source] == found
    if kind == "file":
        for case in cases:
            case.file.unlink()
        assert predicted(bundle.path, out, drawn_slide).exit_code == 0


@pytest.mark.parametrize("kind", ["folder", "file", "hub"])
def test_other_weights_are_refused_with_both_digests(
    bundle: Bundle, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / "other.ckpt"
    torch.save(case.other_network().state_dict(), file)
    own = case.fetch(file, tmp_path / "other")
    given = {"folder": tmp_path / "other", "file": file}
    if kind == "hub":
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    with pytest.raises(UserError) as caught:
        bundle.segmenter_folders(
            tmp_path / "into", given={case.one.key: given[kind]} if kind in given else {}
        )
    assert facts_of(bundle).weights_sha256 in str(caught.value)
    assert own.weights_sha256 in str(caught.value)
    assert not list(tmp_path.glob("into/*/*"))


def test_weights_that_are_run_otherwise_by_this_version_are_refused(
    bundle: Bundle, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = of_artefacts if isinstance(case.one, ArtefactSegmenter) else of_tissue
    put(monkeypatch, module.small(margin_px=4, version=2))
    with pytest.raises(UserError, match=r"as another version of her2 runs it \(2 here\)"):
        bundle.segmenter_folders(tmp_path / "into", given={case.one.key: case.folder})


def test_a_segmenter_that_this_version_lacks_is_named(bundle: Bundle, case: Case) -> None:
    def later(values: dict[str, Any]) -> None:
        values["tiling"]["options"][case.one.key] = "segmenter9"
        values["tiling"]["segmenters"][0]["name"] = "segmenter9"

    edit(bundle.path, later)
    with pytest.raises(UserError, match=rf"tiling\.options\.{case.one.key}"):
        parse_contents((bundle.path / "bundle.json").read_bytes(), "here")


def test_a_folder_in_the_cache_with_swapped_weights_is_refused(
    bundle: Bundle, case: Case, drawn_slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    assert predicted(bundle.path, out, drawn_slide, case.one.flag, case.file).exit_code == 0
    (folder,) = (tmp_path / "cache" / SEGMENTERS).iterdir()
    (folder / "weights.safetensors").unlink()
    state = case.other_network().state_dict()
    safetensors.torch.save_file(state, folder / "weights.safetensors")
    said = error_of(predicted(bundle.path, out, drawn_slide))
    assert "holds other weights than its card says" in said


def test_results_without_the_card_make_no_bundle(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a valid card of a segmenter"):
        segmenter_facts(tmp_path / "nothing", TilingSection.model_validate(case.options))
